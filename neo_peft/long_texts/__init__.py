"""Texts that are longer than the model's input.

windows.py     tagging: they are read whole, in windows that share some words
truncation.py  classification: they are cut
"""
