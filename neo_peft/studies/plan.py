"""The plan of a study: the settings of all its runs, made before the first run. No torch here.

A study compares the values of one flag: numbers of epochs, or those of a sweep. With two sweeps it
compares all combinations of their values. Or it compares recipes. `variants.py` makes the settings
of each. Each is run with each seed. Where recipes have a sweep, the first seed chooses each
recipe's value on validation, and the other seeds run this value only (`choice.py`).

Epochs are swept in two ways. A tagging task has one run for each seed, scored after each epoch. A
classification task has a run for each number of epochs, because each has its own learning rate
schedule, as in the original study.
"""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from neo_peft.corpora.sources import PROTOCOLS, load_splits
from neo_peft.errors import InputError
from neo_peft.runs.folder import flags_of
from neo_peft.settings import Settings
from neo_peft.studies.sweep import Sweep
from neo_peft.studies.variants import GRID, RECIPE, recipe_variants, sweep_variants
from neo_peft.system.files import read_checked_json
from neo_peft.tasks import TASKS, Task, get_task

PLAN, RESULTS = "study.json", "results.json"  # in a study's folder
# Numbers of epochs for a classification task, if they are not [1, 5, 10].
EPOCHS = {"similarity": [1, 5, 10, 20]}


def make_plan(
    given: dict[str, Any],
    seeds: int = 3,
    epochs: list[int] | None = None,
    sweep: tuple[str, list] | None = None,
    command: str = "",
    second: tuple[str, list] | None = None,
    recipes: dict[str, dict[str, Any]] | None = None,
) -> dict:
    """Return the plan of a study. `given` has the flags of train.py as settings.

    `sweep` is a field of Settings and its values as text. The default is to sweep the numbers of
    epochs. `second` is a second sweep. `recipes` has the flags of each recipe by its name, which
    replace those of `given`. Raises InputError for bad flags.
    """
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    task = get_task(given["task"])
    epochs, layout = epochs_of(task, epochs), {}
    sweeps = [Sweep(*item) for item in (sweep, second) if item]
    if recipes:
        variants = recipe_variants(given, max(epochs), recipes, *sweeps)
        layout = {"method": f"{RECIPE}s", "swept": RECIPE}
        layout |= {"chosen": sweeps[0].swept, "tried": sweeps[0].values} if sweeps else {}
    else:
        sweeps = sweeps or [Sweep("epochs", epochs)]
        if sweeps[0].swept == "epochs" and task.is_tagging and "eval_every" in given:
            raise InputError(
                f"--eval-every: a study of {task.name} is scored after each epoch, so that its "
                "lines are epochs; leave it away, or sweep another flag"
            )
        variants, axes = sweep_variants(given, max(epochs), sweeps)
        layout = {"swept": GRID if second else sweeps[0].swept}
        if second:
            grid = [{"swept": sweep.swept, "values": axis} for sweep, axis in zip(sweeps, axes)]
            layout["grid"] = grid
    first = variants[0].settings
    # Recipes are compared in one table, with one protocol.
    one_protocol = recipes or "protocol" in given
    protocols = [first.protocol] if one_protocol else protocols_of(first)
    runs = []
    # Values are the inner loop: the first seed's runs already compare all values.
    for protocol, seed in product(protocols, range(seeds)):
        prefix = f"{protocol}-" if len(protocols) > 1 else ""
        for value, name, settings, choice in variants:
            run = {"name": f"{prefix}{name}-seed-{seed}", "value": value, "seed": seed}
            run |= {} if choice is None else {"choice": choice}
            runs.append(run | {"flags": flags_of(settings) | {"seed": seed, "protocol": protocol}})
    made = {name: getattr(first, name) for name in ("task", "method", "model", "data")} | layout
    made["values"] = list(dict.fromkeys(variant.value for variant in variants))
    made |= {"seeds": seeds, "command": command, "runs": runs}
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


def protocols_of(settings: Settings) -> list[str]:
    """Return the protocols of the data: only that of the settings if all give the same splits."""
    task, labels, columns = get_task(settings.task), settings.labels, settings.columns
    splits = load_splits(task, settings.data, "clean", labels=labels, columns=columns)
    return [settings.protocol] if splits.protocol == "single" else list(PROTOCOLS)


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
