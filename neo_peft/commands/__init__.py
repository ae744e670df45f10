"""What a user runs beside train.py and evaluate.py, one file each: python -m neo_peft COMMAND."""
