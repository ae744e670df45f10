"""Other programs' model files: GPT-Neo's checkpoints and peft's adapters.

base_config.py   a base's config.json, read and checked
base_folder.py   where a base's files stand: bundled, in a folder, on the hub
tokenizer.py     a base's tokenizer
base.py          from --model to a GPT-Neo and its tokenizer
peft_config.py   peft's adapter_config.json as settings
peft_lora.py     LoRA: which of its options are settings, and its tensors' names
peft_prompt.py   the same of a soft prompt
adapter.py       an adapter's tensors, saved and loaded as peft does; a whole model, saved
"""
