"""The commands, one file each: python -m neo_peft NAME. They parse flags and print results.

flags.py     the flags that several commands share
train.py     tune a GPT-Neo for a task
evaluate.py  score a finished run again, or an untuned base model
predict.py   predict the labels or tags of new text with a finished run
export.py    write a finished run for peft, or for transformers without peft
study.py     run a task with several seeds and numbers of epochs, or sweep a flag
report.py    show finished runs as an HTML page
compare.py   which of two runs is better, or whether chance alone could explain it
sizes.py     the number of parameters that each method trains, and the bytes that it stores
"""
