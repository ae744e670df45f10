"""The swept flags of a study: which flags can be swept, and the settings of each value. No torch
here."""

import dataclasses
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from neo_peft.errors import InputError
from neo_peft.settings import BALANCED, Settings, flag_name

# Flags that cannot be swept: a study sets them itself (seed), or they do not change the trained
# model (device, json).
NOT_SWEPT = (
    "task",
    "protocol",
    "seed",
    "preset",
    "json",
    "generate",
    "no_before",
    "eval_limit",
    "device",
    "checkpoint_every",
    "checkpoint_activations",
)
SWITCHES = {item.name for item in dataclasses.fields(Settings) if item.type is bool}
SWITCH_VALUES = {"off": False, "on": True}  # values in a sweep of a flag that takes no value
# Flags of which only these words can be swept: their other values have commas or equals signs.
WORDS = {"class_weights": ("none", BALANCED)}
TIMES = "x"  # 3x is three times the value that the flag has otherwise


class Sweep(NamedTuple):
    """A swept flag."""

    swept: str  # a field of Settings
    values: list  # its values as text


def read_sweep(text: str) -> Sweep:
    """Return the field of Settings and the values in a text such as `rank=4,8`.

    The values of a flag that takes no value are `off` and `on`.
    """
    name, _, values = text.partition("=")
    flag = name.strip().removeprefix("--").replace("_", "-")
    fields = {
        flag_name(item.name).removeprefix("--"): item.name
        for item in dataclasses.fields(Settings)
        if (
            item.metadata["choices"]
            or item.type in (int, float, int | None, bool)
            or item.name in WORDS
        )
        and item.name not in NOT_SWEPT
    }
    if flag not in fields:
        raise InputError(f"{name!r} cannot be swept; the flags that can are {', '.join(fields)}")
    field = fields[flag]
    parts = [value.strip() for value in values.split(",")]
    if not all(parts):
        raise InputError(f"{text!r} is not NAME=VALUE,VALUE, as in rank=4,8,16")
    if field in SWITCHES and (wrong := [value for value in parts if value not in SWITCH_VALUES]):
        raise InputError(f"{flag_name(field)} can be off or on, not {wrong[0]!r}")
    if field in WORDS and (wrong := [value for value in parts if value not in WORDS[field]]):
        raise InputError(
            f"a sweep of {flag_name(field)} can have {' and '.join(WORDS[field])}, not "
            f"{wrong[0]!r}; give weights of labels in a file of --recipes"
        )
    return Sweep(field, parts)


def swept_settings(
    flags: dict[str, Any], sweeps: list[Sweep], make: Callable[[dict[str, Any]], Settings]
) -> list[tuple[tuple, Settings]]:
    """Return the swept values and the settings of each combination of the sweeps' values.

    flags: the other flags. make: makes settings from flags.

    A value is a number or a word, as it is shown.
    """
    own = None
    combinations = []
    for texts in product(*(sweep.values for sweep in sweeps)):
        chosen = {}
        for sweep, text in zip(sweeps, texts):
            chosen[sweep.swept] = SWITCH_VALUES[text] if sweep.swept in SWITCHES else text
            if (times := _times(sweep.swept, text)) is not None:
                own = own or make(flags)
                chosen[sweep.swept] = float(f"{times * getattr(own, sweep.swept):.6g}")
        settings = make(flags | chosen)
        values = [
            text if sweep.swept in SWITCHES | WORDS.keys() else getattr(settings, sweep.swept)
            for sweep, text in zip(sweeps, texts)
        ]
        combinations.append((tuple(values), settings))
    return combinations


def _times(swept: str, text: Any) -> float | None:
    """Return 3.0 for the value `3x` of a flag that is a real number, else None."""
    types = {item.name: item.type for item in dataclasses.fields(Settings)}
    if types[swept] is not float or not str(text).endswith(TIMES):
        return None
    try:
        return float(str(text).removesuffix(TIMES))
    except ValueError:
        return None
