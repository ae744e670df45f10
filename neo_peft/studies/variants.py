"""What a study compares: the values of a flag, the combinations of two flags' values, or recipes.
No torch here."""

import dataclasses
import re
from typing import Any, NamedTuple

from neo_peft.defaults import STUDY_METHODS
from neo_peft.errors import InputError
from neo_peft.runs.folder import short_name
from neo_peft.runs.from_flags import settings_from
from neo_peft.settings import Settings, flag_name
from neo_peft.studies.sweep import Sweep, swept_settings
from neo_peft.tasks import TASKS, Task, get_task

# What is "swept" in a plan of recipes, and in a plan of two sweeps.
RECIPE, GRID = "recipe", "settings"


class Variant(NamedTuple):
    """Settings that a study compares with others."""

    value: object  # a swept value, two of them as one text, or the name of a recipe
    name: str  # the start of its runs' names
    settings: Settings  # without the seed and the protocol
    choice: object = None  # the value of the swept flag, where recipes have a sweep


def sweep_variants(
    given: dict[str, Any], epochs: int, sweeps: list[Sweep]
) -> tuple[list[Variant], list[list]]:
    """Return the variants of one or two sweeps, and the values of each sweep."""
    names = [sweep.swept for sweep in sweeps]
    for name in names:
        if name in given:
            raise InputError(f"{flag_name(name)} is the swept flag; do not give it as well")
    if len({*names}) < len(names):
        raise InputError(f"{flag_name(names[0])} is swept twice; name all its values in one sweep")
    flags = default_flags({*given, *names}, get_task(given["task"])) | {"epochs": epochs} | given
    combinations = swept_settings(flags, sweeps, run_settings)
    columns = len(sweeps[-1].values)
    axes = [[values[-1] for values, _ in combinations[:columns]]]
    if len(sweeps) == 2:
        axes.insert(0, [values[0] for values, _ in combinations[::columns]])
    for swept, axis in zip(names, axes):
        refuse_repeated(flag_name(swept), axis, [part_name(swept, value) for value in axis])
    variants = []
    for values, settings in combinations:
        pairs = list(zip(names, values))
        value = values[0] if len(pairs) == 1 else ", ".join(value_name(*pair) for pair in pairs)
        variants.append(Variant(value, "-".join(part_name(*pair) for pair in pairs), settings))
    return variants, axes


def recipe_variants(
    given: dict[str, Any],
    epochs: int,
    recipes: dict[str, dict[str, Any]],
    sweep: Sweep | None = None,
) -> list[Variant]:
    """Return the variants of recipes, each with all values of a sweep if there is one. They have
    the defaults of train.py: the best epoch is kept, and no text is generated."""
    variants, names = [], [safe(name) for name in recipes]
    refuse_repeated("the recipe", list(recipes), names)
    for (recipe, its_flags), name in zip(recipes.items(), names):
        common = {} if sweep and sweep.swept == "epochs" else {"epochs": epochs}
        flags = common | given | its_flags
        try:
            if sweep is None:
                variants.append(Variant(recipe, name, settings_from(flags)))
                continue
            if sweep.swept in flags:
                raise InputError(f"{flag_name(sweep.swept)} is the swept flag; leave it out")
            combinations = swept_settings(flags, [sweep], settings_from)
        except InputError as error:
            raise InputError(f"recipe {recipe}: {error}") from None
        parts = [part_name(sweep.swept, value) for (value,), _ in combinations]
        refuse_repeated(flag_name(sweep.swept), [values[0] for values, _ in combinations], parts)
        for part, ((value,), settings) in zip(parts, combinations):
            variants.append(Variant(recipe, f"{name}-{part}", settings, value))
    return variants


def refuse_repeated(what: str, values: list, names: list[str]) -> None:
    """Raise InputError if two values have the same name in the folders of runs."""
    if repeated := [value for value, name in zip(values, names) if names.count(name) > 1]:
        raise InputError(
            f"{what} {repeated[0]} is given twice, or is too similar to another value; give each "
            "value once"
        )


def safe(text: str) -> str:
    """Return a text that can be a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", text)


def part_name(swept: str, value: Any) -> str:
    """Return a swept value as a part of a folder's name: `rank-8`."""
    shown = re.sub(r"[^\w.+-]", "-", short_name(str(value)))
    return f"{swept.replace('_', '-')}-{shown}"


def value_name(swept: str, value: Any) -> str:
    """Return a value's name in a table: `5 epochs`, `rank 8`, a model's or a recipe's."""
    if swept == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    return value if swept in ("model", RECIPE, GRID) else f"{swept.replace('_', ' ')} {value}"


# ---- The settings of a run


def default_flags(given_names: set[str], task: Task) -> dict[str, Any]:
    """Return the defaults of a study that differ from train.py's, unless a given flag sets them."""
    defaults = {}
    if not task.is_tagging and not {"preset", "metric", "patience"} & given_names:
        # Each number of epochs is a result, as in the original study. With a preset, `keep` is the
        # preset's, or the default of train.py.
        defaults["keep"] = "last"
    if not {"method", "adapter", "preset"} & given_names:
        defaults["method"] = STUDY_METHODS[task.is_tagging]
    return defaults


def run_settings(given: dict[str, Any]) -> Settings:
    """Return a run's settings. A run without a head is scored by generated text as well."""
    settings = settings_from(given)
    without_head = not (TASKS[settings.task].is_tagging or settings.with_head)
    return dataclasses.replace(settings, generate=without_head)
