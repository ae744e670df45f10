"""Model files of other programs: GPT-Neo checkpoints and peft adapters.

base_config.py     read and check a base model's config.json
base_folder.py     find a base model's files: bundled, in a folder, on the hub
published.py       the shapes of the published sizes
tokenizer.py       load a base model's tokenizer
mapped_tensors.py  the tensors of a safetensors file, each mapped into memory by itself
base.py            load the GPT-Neo and the tokenizer that --model names
peft_config.py     read peft's adapter_config.json as settings
peft_head.py       the head that a peft adapter was trained with
peft_lora.py       LoRA in peft's format: its options as settings, and its tensor names
peft_prompt.py     a soft prompt in peft's format: the same
peft_prefix.py     a prefix in peft's format: the same
peft_tensors.py    read the tensors of an adapter's file, without those of the base
adapter.py         save and load an adapter in peft's format; save a whole model
"""
