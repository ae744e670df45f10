"""The plan of a study: the settings of all its runs, made before the first run. No torch here.

A study sweeps one flag: the number of epochs, or another one. It runs each value with each seed.
Epochs are swept in two ways. A tagging task has one run for each seed, scored after each epoch. A
classification task has a run for each number of epochs, because each has its own learning rate
schedule, as in the original study.
"""

import dataclasses
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from neo_peft.corpora.sources import PROTOCOLS, load_splits
from neo_peft.defaults import STUDY_METHODS
from neo_peft.errors import InputError
from neo_peft.runs.folder import flags_of, short_name
from neo_peft.runs.from_flags import settings_from
from neo_peft.settings import Settings, flag_name
from neo_peft.system.files import read_checked_json
from neo_peft.tasks import TASKS, Task, get_task

PLAN, RESULTS = "study.json", "results.json"  # in a study's folder
# Numbers of epochs for a classification task, if they are not [1, 5, 10].
EPOCHS = {"similarity": [1, 5, 10, 20]}
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


def make_plan(
    given: dict[str, Any],
    seeds: int = 3,
    epochs: list[int] | None = None,
    sweep: tuple[str, list] | None = None,
    command: str = "",
) -> dict:
    """Return the plan of a study. `given` has the flags of train.py as settings.

    `sweep` is a field of Settings and its values as text. The default is to sweep the numbers of
    epochs. Raises InputError for bad flags.
    """
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    task = get_task(given["task"])
    epochs = epochs_of(task, epochs)
    swept, values = sweep or ("epochs", epochs)
    if swept in given:
        raise InputError(f"{flag_name(swept)} is the swept flag; do not give it as well")
    if swept == "epochs" and task.is_tagging and "eval_every" in given:
        raise InputError(
            f"--eval-every: a study of {task.name} is scored after each epoch, so that its lines "
            "are epochs; leave it away, or sweep another flag"
        )
    flags = _default_flags({*given, swept}, task) | {"epochs": max(epochs)} | given
    field_values = [SWITCH_VALUES[value] for value in values] if swept in SWITCHES else values
    settings = [_settings(flags | {swept: value}) for value in field_values]
    if swept not in SWITCHES:
        values = [getattr(run_settings, swept) for run_settings in settings]  # numbers, not text
    parts = [re.sub(r"[^\w.+-]", "-", short_name(str(value))) for value in values]
    names = [f"{swept.replace('_', '-')}-{part}" for part in parts]
    if repeated := [value for value, name in zip(values, names) if names.count(name) > 1]:
        raise InputError(
            f"{flag_name(swept)} {repeated[0]} is given twice, or is too similar to another value; "
            "give each value once"
        )
    protocols = [given["protocol"]] if "protocol" in given else protocols_of(settings[0])
    runs = []
    # Values are the inner loop: the first seed's runs already compare all values.
    for protocol, seed in product(protocols, range(seeds)):
        prefix = f"{protocol}-" if len(protocols) > 1 else ""
        for value, name, run_settings in zip(values, names, settings):
            flags = flags_of(run_settings) | {"seed": seed, "protocol": protocol}
            name = f"{prefix}{name}-seed-{seed}"
            runs.append({"name": name, "value": value, "seed": seed, "flags": flags})
    made = {name: getattr(settings[0], name) for name in ("task", "method", "model", "data")}
    made |= {"swept": swept, "values": values, "seeds": seeds, "command": command, "runs": runs}
    return json.loads(json.dumps(made))  # as `read_plan` returns it: tuples become lists


def epochs_of(task: Task, given: list[int] | None) -> list[int]:
    """Return the numbers of epochs of a study: the given ones, or the task's defaults."""
    epochs = given or ([10] if task.is_tagging else EPOCHS.get(task.name, [1, 5, 10]))
    if task.is_tagging and len(epochs) > 1:
        raise InputError(
            f"--epochs {' '.join(map(str, epochs))}: a study of {task.name} has one run, which is "
            "scored after each epoch; give one number"
        )
    return epochs


def _default_flags(given_names: set[str], task: Task) -> dict[str, Any]:
    """Return the defaults of a study that differ from train.py's, unless a given flag sets them."""
    defaults = {}
    if not task.is_tagging and not {"preset", "metric", "patience"} & given_names:
        # Each number of epochs is a result, as in the original study. With a preset, `keep` is the
        # preset's, or the default of train.py.
        defaults["keep"] = "last"
    if not {"method", "adapter", "preset"} & given_names:
        defaults["method"] = STUDY_METHODS[task.is_tagging]
    return defaults


def _settings(given: dict[str, Any]) -> Settings:
    """Return a run's settings. A run without a head is scored by generated text as well."""
    settings = settings_from(given)
    without_head = not (TASKS[settings.task].is_tagging or settings.with_head)
    return dataclasses.replace(settings, generate=without_head)


def protocols_of(settings: Settings) -> list[str]:
    """Return the protocols of the data: only that of the settings if all give the same splits."""
    task, labels, columns = get_task(settings.task), settings.labels, settings.columns
    splits = load_splits(task, settings.data, "clean", labels=labels, columns=columns)
    return [settings.protocol] if splits.protocol == "single" else list(PROTOCOLS)


def read_sweep(text: str) -> tuple[str, list[str]]:
    """Return the field of Settings and the values in a text such as `rank=4,8`.

    The values of a flag that takes no value are `off` and `on`.
    """
    name, _, values = text.partition("=")
    flag = name.strip().removeprefix("--").replace("_", "-")
    fields = {
        flag_name(item.name).removeprefix("--"): item.name
        for item in dataclasses.fields(Settings)
        if (item.metadata["choices"] or item.type in (int, float, int | None, bool))
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
    return field, parts


def value_name(swept: str, value: Any) -> str:
    """Return the name of a swept value in a table: `5 epochs`, `rank 8` or a model's name."""
    if swept == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    return value if swept == "model" else f"{swept.replace('_', ' ')} {value}"


def read_plan(folder: Path) -> dict:
    """Return the plan of the study in a folder. Raises InputError if there is none."""
    if not (folder / PLAN).is_file():
        raise InputError(f"--resume {folder} has no {PLAN}: no study was started there")
    plan = read_checked_json(folder / PLAN)
    kinds = dict.fromkeys(("task", "method", "model", "data", "swept", "command"), str)
    kinds |= {"values": list, "seeds": int, "runs": list}
    if wrong := [name for name, kind in kinds.items() if not isinstance(plan.get(name), kind)]:
        raise InputError(f"{folder / PLAN} is not a study's plan: it has no valid {wrong[0]!r}")
    if not plan["runs"] or not all(map(_is_run, plan["runs"])):
        raise InputError(
            f"{folder / PLAN} is not a study's plan: each run needs a name, a value, a seed and "
            "flags"
        )
    return plan


def _is_run(run: object) -> bool:
    """Return whether a value is a run of a plan. Its name must be valid as a folder's name."""
    return (
        isinstance(run, dict)
        and {"name", "value", "seed", "flags"} <= run.keys()
        and isinstance(run["flags"], dict)
        and re.fullmatch(r"\w[\w.+-]*", str(run["name"])) is not None
    )
