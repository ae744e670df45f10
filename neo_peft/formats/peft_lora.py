"""LoRA in peft's format: which of its options are settings of ours, and its tensors' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_peft.methods import LORA

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings

KNOWN = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights"),
}
REQUIRED: set[str] = set()
TARGETS = ("q_proj", "v_proj")  # peft's own for GPT-Neo
# The starts that leave the base's weights where they are.
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


# Which values are read, and how they are called where another one came.
RANGES = {
    "r": (lambda r: type(r) is int and 1 <= r <= 16_384, "a whole number from 1 to 16384"),
    "lora_alpha": (lambda alpha: _is_number(alpha) and 0 < alpha < 1e30, "a number above 0"),
    "lora_dropout": (
        lambda share: share is None or (_is_number(share) and 0 <= share < 1),
        "a number from 0 to below 1",
    ),
    "bias": (
        lambda bias: bias in (None, *LORA.flags["bias"]),
        f"one of {', '.join(LORA.flags['bias'])}",
    ),
    "init_lora_weights": (
        lambda start: start in STARTS,
        "a start that leaves the base's weights where they are",
    ),
}


def to_settings(config: dict) -> dict:
    """Return a checked config as settings of ours."""
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
    """Return what peft's config says of the LoRA in a model."""
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
    """Name the adapted layers so that peft finds the same: by the ends of their names where those
    are enough."""
    from neo_peft.lora import linear_layers, lora_layers

    adapted = [*lora_layers(model)]
    kinds = sorted({name.rsplit(".", 1)[-1] for name in adapted})
    meant = [name for name in linear_layers(model) if name.rsplit(".", 1)[-1] in kinds]
    return kinds if meant == adapted else sorted(adapted)


def key(name: str) -> str:
    """Return peft's key of a parameter. The names within the trunk are peft's own, `base_layer`
    among them."""
    return f"base_model.model.{name}"
