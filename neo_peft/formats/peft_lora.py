"""LoRA in peft's format: its options as settings, and its tensor names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_peft.methods import LORA

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings

# peft's options that are supported, or have no effect here
KNOWN = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights"),
}
REQUIRED: set[str] = set()  # options that the config must have
TARGETS = ("q_proj", "v_proj")  # peft's default for GPT-Neo
# initializations that do not change the base's weights
INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


# for each option: a check of its value, and the expected value for the error message
RANGES = {
    "r": (lambda r: type(r) is int and 1 <= r <= 16_384, "a whole number from 1 to 16384"),
    "lora_alpha": (lambda alpha: _is_number(alpha) and 0 < alpha < 1e30, "a number above 0"),
    "lora_dropout": (
        lambda p: p is None or (_is_number(p) and 0 <= p < 1),
        "a number of at least 0 and below 1",
    ),
    "bias": (
        lambda bias: bias in (None, *LORA.flags["bias"]),
        f"one of {', '.join(LORA.flags['bias'])}",
    ),
    "init_lora_weights": (
        lambda init: init in INITS,
        "an initialization that does not change the base's weights",
    ),
}


def to_settings(config: dict) -> dict:
    """Return our settings for a checked adapter_config.json."""
    targets = config.get("target_modules") or TARGETS
    return {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout") or 0.0,
        "target_modules": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        "bias": config.get("bias") or "none",
        "rslora": bool(config.get("use_rslora")),
        "lora_init": "gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
    }


def to_config(model: TunedModel, settings: Settings) -> dict:
    """Return peft's config entries for a model's LoRA layers."""
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": peft_targets(model),
        "bias": settings.bias,
        "use_rslora": settings.rslora,
        "fan_in_fan_out": False,
        "init_lora_weights": "gaussian" if settings.lora_init == "gaussian" else True,
        "modules_to_save": [str(model.head_kind)] if model.head else None,
    }


def peft_targets(model: TunedModel) -> list[str]:
    """Return `target_modules` for a model's LoRA layers: the last parts of their names (such as
    "q_proj"), or their full names if the last parts would also match other layers."""
    from neo_peft.lora import linear_layers, lora_layers

    adapted = [*lora_layers(model)]
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in adapted})
    matched = [name for name in linear_layers(model) if name.rsplit(".", 1)[-1] in last_parts]
    return last_parts if matched == adapted else sorted(adapted)


def key(name: str) -> str:
    """Return peft's key for a parameter. Our parameter names are peft's too, such as `base_layer`
    in a LoRA layer."""
    return f"base_model.model.{name}"
