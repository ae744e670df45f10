"""What a study runs: from its flags to the settings of every run, written down before the first
begins. No torch here.

A study repeats runs over seeds, once for each value of one flag: the number of epochs, unless
something else is swept. A tagging task's epochs are all seen in one run, which is scored after
each; an answer task gets a run of its own, with its own schedule, for each number, as in the study
that this project follows.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from neo_peft.corpora.sources import PROTOCOLS, load_splits
from neo_peft.errors import InputError
from neo_peft.runs.folder import flags_of
from neo_peft.runs.from_flags import settings_from
from neo_peft.settings import Settings
from neo_peft.system.files import read_sealed
from neo_peft.tasks import TASKS, get_task

PLAN, RESULTS = "study.json", "results.json"  # in a study's folder
STUDIES = Path("studies")
EPOCHS = {"similarity": (1, 5, 10, 20)}
EPOCHS_OF_ANSWERS, EPOCHS_OF_TAGS = (1, 5, 10), (10,)
# What a sweep cannot be over: what a study gives by itself, and what changes only how a run is
# computed, or scored.
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
SWITCHED = {"off": False, "on": True}  # how a sweep says a flag that is there or not


def make_plan(
    given: dict[str, Any],
    seeds: int = 3,
    epochs: list[int] | None = None,
    sweep: tuple[str, list] | None = None,
    command: str = "",
) -> dict:
    """Make the plan of a study from the flags of train.py that are given. Raises InputError for bad
    ones.

    `sweep` is a field of Settings and its values, as they are typed; without one the epochs are
    swept.
    """
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    task = get_task(given["task"])
    epochs = epochs or list(
        EPOCHS_OF_TAGS if task.tags_words else EPOCHS.get(task.name, EPOCHS_OF_ANSWERS)
    )
    if task.tags_words and len(epochs) > 1:
        shown = " ".join(map(str, epochs))
        raise InputError(
            f"--epochs {shown}: {task.name} is one run that is scored after each epoch; give one "
            "number"
        )
    field, values = sweep or ("epochs", epochs)
    if field in given:
        raise InputError(f"{_flag(field)} is what the sweep is over; leave it out")
    usual = {"epochs": max(epochs)}
    if not (task.tags_words or "preset" in given):
        usual["keep"] = (
            # each number of epochs is a result of its own, as in the source; presets say it too
            "last"
        )
    if not {"method", "adapter", "preset"} & {*given, field}:
        usual["method"] = "lora" if task.tags_words else "prompt"
    typed = [SWITCHED[value] for value in values] if _is_switch(field) else values
    settings = [_settings(usual | given | {field: value}) for value in typed]
    if not _is_switch(field):
        values = [getattr(of_value, field) for of_value in settings]  # as numbers
    names = [f"{field.replace('_', '-')}-{_plain(value)}" for value in values]
    if repeated := [value for value, name in zip(values, names) if names.count(name) > 1]:
        raise InputError(
            f"{_flag(field)} {repeated[0]} comes twice, or too much alike; name each value once"
        )
    protocols = [given["protocol"]] if "protocol" in given else protocols_of(settings[0])
    runs = []
    for protocol in protocols:
        # outside: a value that cannot be run is known after the first seed
        for seed in range(seeds):
            for value, name, of_value in zip(values, names, settings):
                flags = (
                    flags_of(of_value)
                    | {"seed": seed}
                    | ({"protocol": protocol} if protocol else {})
                )
                prefix = f"{protocol}-" if len(protocols) > 1 else ""
                runs.append(
                    {
                        "name": f"{prefix}{name}-seed-{seed}",
                        "value": value,
                        "seed": seed,
                        "flags": flags,
                    }
                )
    made = {name: getattr(settings[0], name) for name in ("task", "method", "model", "data")}
    made |= {"swept": field, "values": values, "seeds": seeds, "command": command, "runs": runs}
    return json.loads(json.dumps(made))  # as it will be read again: tuples are lists


def _settings(given: dict[str, Any]) -> Settings:
    """Make a run's settings; an answer that is said is scored by free generation too, beside the
    labels' rank."""
    settings = settings_from(given)
    said = not (TASKS[settings.task].tags_words or settings.with_head)
    return dataclasses.replace(settings, generate=True) if said else settings


def protocols_of(settings: Settings) -> list[str | None]:
    """Find which protocols the data has; one that needs no name is None."""
    splits = load_splits(get_task(settings.task), settings.data, "clean", labels=settings.labels)
    return [None] if splits.protocol == "single" else list(PROTOCOLS)


def read_sweep(text: str) -> tuple[str, list[str]]:
    """Read `NAME=VALUE,VALUE`, the sweep over a flag of numbers or choices, or one that is `off` or
    `on`."""
    name, _, values = text.partition("=")
    field = name.strip().removeprefix("--").replace("-", "_")
    can_be = [item.name for item in dataclasses.fields(Settings) if _can_be_swept(item)]
    if field not in can_be:
        raise InputError(f"{name!r} is no flag that can be swept; those are {', '.join(can_be)}")
    found = [value.strip() for value in values.split(",")]
    if not all(found):
        raise InputError(f"{text!r} is not NAME=VALUE,VALUE, as in rank=4,8,16")
    if _is_switch(field) and (wrong := [value for value in found if value not in SWITCHED]):
        raise InputError(f"{_flag(field)} is there or not: {wrong[0]!r} is neither off nor on")
    return field, found


def _can_be_swept(item: dataclasses.Field) -> bool:
    one_value = item.type in (int, float, int | None, bool) or bool(item.metadata["choices"])
    return one_value and item.name not in NOT_SWEPT


def _is_switch(field: str) -> bool:
    return any(item.name == field and item.type is bool for item in dataclasses.fields(Settings))


def value_name(swept: str, value: Any) -> str:
    """Name what was tuned with a value: `5 epochs`, `rank 8`, the model's own name."""
    if swept == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    return value if swept == "model" else f"{swept.replace('_', ' ')} {value}"


def read_plan(folder: Path) -> dict:
    """Read the plan of a study that was begun in a folder."""
    if not (folder / PLAN).is_file():
        raise InputError(f"--resume {folder} holds no {PLAN}: no study was begun there")
    plan = read_sealed(folder / PLAN)
    kinds = {
        "task": str,
        "method": str,
        "model": str,
        "data": str,
        "swept": str,
        "values": list,
        "seeds": int,
        "command": str,
        "runs": list,
    }
    if wrong := [name for name, kind in kinds.items() if not isinstance(plan.get(name), kind)]:
        raise InputError(f"{folder / PLAN} is no study's plan: it lacks its {wrong[0]}")
    if not plan["runs"] or not all(map(_is_run, plan["runs"])):
        raise InputError(
            f"{folder / PLAN} is no study's plan: not each of its runs has a name, a value, a "
            "seed, flags"
        )
    return plan


def _is_run(run: object) -> bool:
    """Say whether a value is a run of a plan, whose name is a folder's in the study's own."""
    if not isinstance(run, dict) or not {"name", "value", "seed", "flags"} <= run.keys():
        return False
    return (
        isinstance(run["flags"], dict) and re.fullmatch(r"\w[\w.+-]*", str(run["name"])) is not None
    )


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _plain(value: Any) -> str:
    """Say a value so that it can be part of a folder's name; of a path its last part."""
    text = Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)
    return re.sub(r"[^\w.+-]", "-", text)
