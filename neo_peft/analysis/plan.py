"""The plan of a study: the settings of all its runs, made before the first run. No torch here.

A study sweeps one flag: the number of epochs, or another one. Each value is run with each seed. A
tagging task has one run for all epochs, since it is scored after each epoch. An answer task has a
run for each number of epochs, each with its own schedule, as in the study that this project
follows.
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
EPOCHS = {"similarity": [1, 5, 10, 20]}  # of answer tasks that have numbers of their own
# Flags that cannot be swept: a study sets them itself (task, seed), or they do not change the
# trained model (device, json).
NOT_SWEPT = (
    "task",
    "protocol",
    "seed",
    "preset",
    "json",
    "generate",
    "eval_limit",
    "device",
    "checkpoint_every",
    "checkpoint_activations",
)
SWITCHES = {item.name for item in dataclasses.fields(Settings) if item.type is bool}
SWITCHED = {"off": False, "on": True}  # the values of a swept flag without a value


def make_plan(
    given: dict[str, Any],
    seeds: int = 3,
    epochs: list[int] | None = None,
    sweep: tuple[str, list] | None = None,
    command: str = "",
) -> dict:
    """Return the plan of a study from the flags of train.py that are given.

    `sweep` is a field of Settings and its values as they are typed. Without one the numbers of
    epochs are swept. Raises InputError for bad flags.
    """
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    task = get_task(given["task"])
    epochs = epochs_of(task, epochs)
    swept, values = sweep or ("epochs", epochs)
    if swept in given:
        raise InputError(f"{flag_name(swept)} is what the sweep is over; leave it out")
    flags = _usual_flags({*given, swept}, task) | {"epochs": max(epochs)} | given
    meant = [SWITCHED[value] for value in values] if swept in SWITCHES else values
    settings = [_settings(flags | {swept: value}) for value in meant]
    if swept not in SWITCHES:
        values = [getattr(of_value, swept) for of_value in settings]  # as numbers
    parts = [re.sub(r"[^\w.+-]", "-", short_name(str(value))) for value in values]
    names = [f"{swept.replace('_', '-')}-{part}" for part in parts]
    if repeated := [value for value, name in zip(values, names) if names.count(name) > 1]:
        raise InputError(
            f"{flag_name(swept)} {repeated[0]} comes twice, or too much alike; name each value once"
        )
    protocols = [given["protocol"]] if "protocol" in given else protocols_of(settings[0])
    runs = []
    # Values are the inner loop, so that each has run once after the first seed.
    for protocol, seed in product(protocols, range(seeds)):
        prefix = f"{protocol}-" if len(protocols) > 1 else ""
        for value, name, of_value in zip(values, names, settings):
            flags = flags_of(of_value) | {"seed": seed, "protocol": protocol}
            name = f"{prefix}{name}-seed-{seed}"
            runs.append({"name": name, "value": value, "seed": seed, "flags": flags})
    made = {name: getattr(settings[0], name) for name in ("task", "method", "model", "data")}
    made |= {"swept": swept, "values": values, "seeds": seeds, "command": command, "runs": runs}
    return json.loads(json.dumps(made))  # as it will be read again: tuples are lists


def epochs_of(task: Task, given: list[int] | None) -> list[int]:
    """Return the numbers of epochs of a study: those that are given, or the task's usual ones."""
    epochs = given or ([10] if task.tags_words else EPOCHS.get(task.name, [1, 5, 10]))
    if task.tags_words and len(epochs) > 1:
        raise InputError(
            f"--epochs {' '.join(map(str, epochs))}: {task.name} is one run that is scored after "
            "each epoch; give one number"
        )
    return epochs


def _usual_flags(settled: set[str], task: Task) -> dict[str, Any]:
    """Return flags that a study gives its runs where `settled` names nothing that decides them."""
    usual = {}
    if not task.tags_words and "preset" not in settled:
        # Each number of epochs is a result of its own, as in the source. Presets set this too.
        usual["keep"] = "last"
    if not {"method", "adapter", "preset"} & settled:
        usual["method"] = STUDY_METHODS[task.tags_words]
    return usual


def _settings(given: dict[str, Any]) -> Settings:
    """Return a run's settings. Answers of the language model are scored by generation too."""
    settings = settings_from(given)
    said = not (TASKS[settings.task].tags_words or settings.with_head)
    return dataclasses.replace(settings, generate=said)


def protocols_of(settings: Settings) -> list[str]:
    """Return the protocols that the data has: the settings' own where it can be split in one way
    only."""
    splits = load_splits(get_task(settings.task), settings.data, "clean", labels=settings.labels)
    return [settings.protocol] if splits.protocol == "single" else list(PROTOCOLS)


def read_sweep(text: str) -> tuple[str, list[str]]:
    """Return the field and the values of a sweep that is typed as `NAME=VALUE,VALUE`.

    A flag without a value has the values `off` and `on`.
    """
    name, _, values = text.partition("=")
    flag = name.strip().removeprefix("--").replace("_", "-")
    can_be = {
        flag_name(item.name).removeprefix("--"): item.name
        for item in dataclasses.fields(Settings)
        if (item.metadata["choices"] or item.type in (int, float, int | None, bool))
        and item.name not in NOT_SWEPT
    }
    if flag not in can_be:
        raise InputError(f"{name!r} is no flag that can be swept; those are {', '.join(can_be)}")
    field = can_be[flag]
    found = [value.strip() for value in values.split(",")]
    if not all(found):
        raise InputError(f"{text!r} is not NAME=VALUE,VALUE, as in rank=4,8,16")
    if field in SWITCHES and (wrong := [value for value in found if value not in SWITCHED]):
        raise InputError(f"{flag_name(field)} is there or not: {wrong[0]!r} is neither off nor on")
    return field, found


def value_name(swept: str, value: Any) -> str:
    """Return a swept value as a table shows it, such as `5 epochs`, `rank 8` or a model's name."""
    if swept == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    return value if swept == "model" else f"{swept.replace('_', ' ')} {value}"


def read_plan(folder: Path) -> dict:
    """Return the plan of the study in a folder. Raises InputError where it holds none."""
    if not (folder / PLAN).is_file():
        raise InputError(f"--resume {folder} holds no {PLAN}: no study was begun there")
    plan = read_checked_json(folder / PLAN)
    kinds = dict.fromkeys(("task", "method", "model", "data", "swept", "command"), str)
    kinds |= {"values": list, "seeds": int, "runs": list}
    if wrong := [name for name, kind in kinds.items() if not isinstance(plan.get(name), kind)]:
        raise InputError(f"{folder / PLAN} is no study's plan: it lacks its {wrong[0]}")
    if not plan["runs"] or not all(map(_is_run, plan["runs"])):
        raise InputError(
            f"{folder / PLAN} is no study's plan: not each of its runs has a name, a value, a "
            "seed, flags"
        )
    return plan


def _is_run(run: object) -> bool:
    """Return whether a value is a run of a plan. Its name must be that of a folder."""
    return (
        isinstance(run, dict)
        and {"name", "value", "seed", "flags"} <= run.keys()
        and isinstance(run["flags"], dict)
        and re.fullmatch(r"\w[\w.+-]*", str(run["name"])) is not None
    )
