"""Refuse a base model that this machine can never have in memory, before it is loaded."""

from dataclasses import replace
from pathlib import Path

import torch

from neo_peft.errors import InputError
from neo_peft.formats.base import weight_bytes
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED, split_revision
from neo_peft.formats.published import PUBLISHED, published_config
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.methods import base_dtype
from neo_peft.settings import Settings
from neo_peft.system import hub
from neo_peft.system.hardware import DTYPES, find_device, find_precision
from neo_peft.system.memory import memory_limit

LIBRARIES = 320_000_000  # bytes of a process with Python, torch and the data, measured
FP32 = 4  # bytes of a number


class TooLargeError(InputError):
    """The base does not fit into the memory of this machine."""


def folder_of(settings: Settings) -> Path | None:
    """Return the folder of a base that is on this machine. Nothing is downloaded."""
    folder = BUNDLED.get(settings.model, Path(settings.model))
    return folder if folder.is_dir() else hub.cached_folder(*split_revision(settings.model))


def config_of(settings: Settings) -> Config | None:
    """Return the config of a base: that in its folder, or of a published size. None if it is not
    known on this machine."""
    folder = folder_of(settings)
    if folder is not None and (folder / "config.json").exists():
        return read_config(folder)
    name = split_revision(settings.model)[0]
    return published_config(name) if name in PUBLISHED else None


def base_bytes(config: Config, settings: Settings, dtype: torch.dtype) -> int:
    """Return the bytes of a base's weights in memory. `dtype` is that of its frozen matrices."""
    with torch.device("meta"):
        trunk = GPTNeo(config)
    numbers = [p.numel() for p in trunk.parameters() if p.dim() > 1]
    if settings.quantize != "none":
        numbers = [trunk.wte.weight.numel(), trunk.wpe.weight.numel()]
    return weight_bytes(trunk, settings.quantize) - (FP32 - dtype.itemsize) * sum(numbers)


def refuse_too_large(settings: Settings, training: bool = False) -> None:
    """Raise TooLargeError if the base does not fit into the memory of this machine. Of its files
    only the config is read.

    training: if the method trains the base, its gradients and AdamW's averages are counted too.
    """
    config = config_of(settings)
    limit = memory_limit(torch.device(find_device(settings.device)))
    if config is None or limit is None or least_bytes(config, settings, training) <= limit:
        return
    needed = shown(least_bytes(config, settings, training))
    advice = "a method that does not train the base needs less"
    if not settings.trains_base:
        kinds = [replace(settings, quantize=kind) for kind in ("int8", "nf4")]
        sizes = [f"{shown(least_bytes(config, kind, training))}" for kind in kinds]
        advice = f"at least {sizes[0]} with --quantize int8, {sizes[1]} with --quantize nf4"
    raise TooLargeError(
        f"{settings.model} needs at least {needed} of memory, without any text, and this process "
        f"can have {shown(limit)}: {advice}"
    )


def least_bytes(config: Config, settings: Settings, training: bool) -> int:
    """Return the bytes of a process that has loaded the base."""
    precision = find_precision(settings.precision, find_device(settings.device))
    base = base_bytes(config, settings, base_dtype(settings, DTYPES[precision]))
    return LIBRARIES + base * (4 if training and settings.trains_base else 1)


def shown(size: float) -> str:
    """Return a number of bytes for people."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    if size >= 1e6:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e3:.0f} kB"
