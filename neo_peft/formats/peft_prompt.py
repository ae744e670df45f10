"""A soft prompt in peft's format: its options as settings, and its tensor names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings

# peft's options that are supported, or have no effect here
KNOWN = {
    *("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"),
    *("tokenizer_kwargs", "modules_to_save"),
}
REQUIRED = {"num_virtual_tokens"}  # options that the config must have
# for each option: a check of its value, and the expected value for the error message
RANGES = {
    "num_virtual_tokens": (
        lambda length: type(length) is int and 1 <= length <= 16_384,
        "a whole number from 1 to 16384",
    )
}


def to_settings(config: dict) -> dict:
    """Return our settings for a checked adapter_config.json."""
    return {"prompt_length": config.get("num_virtual_tokens")}


def to_config(model: TunedModel, settings: Settings) -> dict:
    """Return peft's config entries for a model's prompt."""
    return sizes(model) | {
        # The stored embeddings replace any initial values. With "TEXT" peft would first load a
        # tokenizer to compute them.
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }


def sizes(model: TunedModel) -> dict:
    """Return the entries on the sizes of the prompt and the model; those of a prefix are equal."""
    trunk = model.transformer.config
    return {
        "num_virtual_tokens": len(model.prompt),
        "token_dim": trunk.hidden_size,
        "num_layers": trunk.num_layers,
        "num_attention_heads": trunk.num_heads,
        "num_transformer_submodules": 1,
    }


def key(name: str) -> str:
    """Return peft's key for the prompt embeddings, or for a head. LoRA's key for a head differs."""
    return "prompt_embeddings" if name == "prompt.embeddings" else f"base_model.{name}"
