"""LoRA and soft prompt tuning on GPT-Neo, from scratch in PyTorch.

Letters in shape comments: B examples of a batch, T tokens of the longest text, N tokens of a packed
batch, M target positions, P prompt embeddings, H hidden size, K labels, V vocabulary size, r rank.

The public names below are imported at their first use, because torch takes seconds to import.
"""

from importlib import import_module

_MODULES = {
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
    "predict": "runs.texts",
    "evaluate": "decoding",
    "fit": "loop",
    "run": "runs.training",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'neo_peft' has no attribute {name!r}")
    return getattr(import_module(f"neo_peft.{_MODULES[name]}"), name)
