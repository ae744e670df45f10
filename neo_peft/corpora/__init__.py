"""Data: one file for each corpus or file format.

sources.py    from --data to the rows of each split
readers.py    how each file is parsed
own_rows.py   a user's own rows, and new text
"""
