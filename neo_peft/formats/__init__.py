"""Other programs' model files: GPT-Neo's checkpoints and peft's adapters.

base.py          from --model to a GPT-Neo and its tokenizer
peft_config.py   peft's adapter_config.json as settings
peft_lora.py     LoRA: which of its options are settings, and its tensors' names
peft_prompt.py   the same of a soft prompt
adapter.py       an adapter's tensors, saved and loaded as peft does
whole_model.py   a whole model as a folder that transformers loads
"""
