"""The commands, one file each: python -m neo_peft NAME. Flags and printing only.

flags.py     what the command lines share
train.py     tune a GPT-Neo for a task
evaluate.py  score a run again, or an untuned base model
predict.py   answer new text with a finished run
export.py    write a run for peft, or for transformers alone
study.py     repeat a task's experiment over seeds and epochs, or a sweep
report.py    finished runs as a page
compare.py   which of two runs is better, or whether chance alone could do it
sizes.py     what each method trains and stores
"""
