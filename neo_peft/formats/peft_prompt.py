"""A soft prompt in peft's format: its config, and the name of its tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings

KNOWN = {
    *("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"),
    *("tokenizer_kwargs", "modules_to_save"),
}
REQUIRED = {"num_virtual_tokens"}
RANGES = {
    "num_virtual_tokens": (
        lambda length: type(length) is int and 1 <= length <= 16_384,
        "a whole number from 1 to 16384",
    )
}


def to_settings(config: dict) -> dict:
    """Return a checked config as settings of ours."""
    return {"prompt_length": config.get("num_virtual_tokens")}


def to_config(model: TunedModel, settings: Settings) -> dict:
    """Return what peft's config says of the prompt in front of a model."""
    trunk = model.transformer.config
    return {
        "num_virtual_tokens": len(model.prompt),
        "token_dim": trunk.hidden_size,
        "num_layers": trunk.num_layers,
        "num_attention_heads": trunk.num_heads,
        "num_transformer_submodules": 1,
        # Once the rows are loaded their start no longer matters; with it peft would look for a
        # tokenizer, to make the start again.
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }


def key(name: str) -> str:
    """Return peft's key of the prompt's parameter, or of a head's, which differs from LoRA's."""
    return "prompt_embeddings" if name == "prompt.embeddings" else f"base_model.{name}"
