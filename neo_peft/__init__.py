"""LoRA and soft prompt tuning on GPT-Neo, from scratch in PyTorch.

The letters in shape comments: B examples, T tokens of the longest, N tokens of a batch, M positions
that are read, P prompt embeddings, H hidden size, K labels, V vocabulary, r rank.

The public names below are imported when they are first used, since torch alone takes seconds to
import.
"""

from importlib import import_module

_HOME = {
    "InputError": "errors",
    "Settings": "settings",
    "make_settings": "settings",
    "get_task": "tasks",
    "load_splits": "corpora.sources",
    "load_base": "formats.base",
    "GPTNeo": "gptneo",
    "add_lora": "lora",
    "merge_lora": "lora",
    "SoftPrompt": "prompt",
    "TunedModel": "model",
    "load_untuned": "runs.loading",
    "load": "runs.loading",
    "save_adapter": "formats.adapter",
    "AdapterSet": "runs.adapter_set",
    "predict": "decoding",
    "evaluate": "decoding",
    "fit": "loop",
    "run": "runs.training",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'neo_peft' has no attribute {name!r}")
    return getattr(import_module(f"neo_peft.{_HOME[name]}"), name)
