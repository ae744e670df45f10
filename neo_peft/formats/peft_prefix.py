"""A prefix in peft's format: its options as settings, and its tensor names.

peft's file has keys and values in the order of `Prefix.keys_values`, without its optional MLP
(`prefix_projection`), which is not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_peft.formats import peft_prompt

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings

# peft's options that are supported, or have no effect here
KNOWN = {
    *("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"),
    *("encoder_hidden_size", "modules_to_save"),
}
REQUIRED, RANGES = peft_prompt.REQUIRED, peft_prompt.RANGES
to_settings = peft_prompt.to_settings


def to_config(model: TunedModel, settings: Settings) -> dict:
    """Return peft's config entries for a model's prefix."""
    own = {"encoder_hidden_size": model.transformer.config.hidden_size, "prefix_projection": False}
    return peft_prompt.sizes(model) | own


def key(name: str) -> str:
    """Return peft's key for the prefix, or for a head, which is that of a prompt."""
    return "prompt_embeddings" if name == "prompt.keys_values" else peft_prompt.key(name)
