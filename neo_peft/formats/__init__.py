"""Other programs' model files: GPT-Neo's checkpoints and peft's adapters.

base.py          from --model to a GPT-Neo and its tokenizer
peft_config.py   peft's adapter_config.json as settings
adapter.py       an adapter's tensors, saved and loaded as peft does
"""
