"""What each recipe of a comparison gives and costs, computed from its finished runs.

A line has, by the task's metric on the reported split, the difference from a linear head alone (a
paired bootstrap), and the costs as means over the seeds: the trained numbers, the stored bytes, the
CPU seconds and the peak memory of training, and the measures of `measure.py`.
"""

import statistics
from collections.abc import Callable

from neo_peft.methods import HEAD
from neo_peft.runs.bootstrap import count_differing, paired, same_rows
from neo_peft.runs.folder import RUN, TIMINGS, check_unchanged, recorded_settings
from neo_peft.runs.log import cpu_seconds
from neo_peft.runs.predictions import PredictionKind
from neo_peft.settings import Settings
from neo_peft.studies.finished import FinishedRun
from neo_peft.studies.measure import read_measured

AFTER, HEAD_ALONE = PredictionKind("after"), PredictionKind("head_alone")
Groups = dict[object, list[FinishedRun]]  # the runs of each recipe, without failed ones


def recipe_lines(groups: Groups, split: str) -> list[dict]:
    """Return a line for each recipe that has a run. `split` is the reported one."""
    head = head_recipe(groups)
    lines = []
    for recipe, runs in groups.items():
        if runs:
            difference = difference_from_head(runs, groups.get(head), split)
            line = {"name": recipe, "compared_with": head or "a linear head alone"}
            lines.append(line | {"difference": difference} | costs(runs))
    return lines


def head_recipe(groups: Groups) -> object | None:
    """Return the first recipe that trains a linear head alone, or None."""
    for recipe, runs in groups.items():
        if runs and settings_of(runs[0]).parts == (HEAD,):
            return recipe
    return None


def difference_from_head(
    runs: list[FinishedRun], heads: list[FinishedRun] | None, split: str
) -> dict | None:
    """Return the difference of a recipe's score from that of a linear head alone.

    heads: the runs of the recipe of a head; None to compare with the head alone that each run has
        scored itself.

    It has "difference", "low", "high", and "differ", the number of rows that are predicted
    differently. Return None for the head itself, without a head, or with different rows.
    """
    if heads is runs:
        return None
    if heads is None and not all("head_alone" in run.scores for run in runs):
        return None
    task, kind = runs[0].task, AFTER if heads else HEAD_ALONE
    others = heads or runs
    predicted = [run.predictions(kind, split) for run in others]
    same = same_rows(task, predicted + [run.predictions(AFTER, split) for run in runs])
    if not same:
        return None
    rows, answers = same
    sides = answers[: len(others)], answers[len(others) :]
    comparison = paired(task, rows, *sides)[task.metric]
    found = {name: comparison[name] for name in ("difference", "low", "high")}
    return found | {"differ": count_differing(*sides)}


def costs(runs: list[FinishedRun]) -> dict:
    """Return what a recipe costs: means over its seeds, or None for what was not measured."""
    record, measured = runs[0].record, [read_measured(run.folder) for run in runs]
    settings = settings_of(runs[0])

    def mean(value_of: Callable[[FinishedRun], float | None]) -> float | None:
        values = [value_of(run) for run in runs]
        return None if None in values else statistics.fmean(values)

    def measures(name: str) -> dict | None:
        """Return the means of each measure."""
        found = [item.get(name) for item in measured]
        if None in found:
            return None
        return {key: statistics.fmean(item[key] for item in found) for key in found[0]}

    return {
        "trainable": record.get("trainable"),
        "added_parameters": added_parameters(record),
        "added_positions": settings.prefix_length,
        "stored_bytes": mean(stored_bytes),
        "cpu_seconds": mean(training_seconds),
        "peak_bytes": mean(lambda run: run.record.get("memory", {}).get("peak_bytes")),
        "forgetting": measures("forgetting"),
        "inference": measures("inference"),
    }


def settings_of(run: FinishedRun) -> Settings:
    return recorded_settings(run.folder / RUN, run.record["flags"])


def added_parameters(record: dict) -> int | None:
    """Return how many parameters the tuned model has in addition to the base."""
    if "total" not in record or "parameters" not in record["base"]:
        return None
    return record["total"] - record["base"]["parameters"]


def stored_bytes(run: FinishedRun) -> int:
    """Return the size of the run's weights, with the head."""
    names = [name for name in run.record["files"] if name.endswith(".safetensors")]
    return sum((run.folder / name).stat().st_size for name in names)


def training_seconds(run: FinishedRun) -> float | None:
    """Return the CPU seconds of training, with the scoring of validation after each epoch."""
    if TIMINGS not in run.record["files"]:
        return None
    return cpu_seconds(check_unchanged(run.folder, run.record, TIMINGS))
