"""Compute the results of a study from its finished runs: means, deviations and 95 % intervals.

For each split, the results are the lines of a table: the majority class, a baseline without a
language model, a linear head alone and the untuned base (if all runs have scored them), and the
tuned models. Each line has all metrics. The file results.json has these lines; `study_page.py`
makes the tables.
"""

import statistics
from collections import Counter
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.bootstrap import count_differing, paired, same_rows
from neo_peft.runs.folder import read_finished_run
from neo_peft.runs.predictions import PredictionKind, reported_split
from neo_peft.runs.verdict import other_name
from neo_peft.studies.choice import choices, is_compared, is_done
from neo_peft.studies.finished import FinishedRun
from neo_peft.studies.recipe_lines import recipe_lines
from neo_peft.studies.study_lines import epoch_lines, table_line, untuned_lines
from neo_peft.studies.variants import RECIPE, value_name


def collect(folder: Path, plan: dict, failed: dict[str, str]) -> dict:
    """Return the results of a study for each protocol, and what results.json records with them.

    `failed` is {name: reason} for the runs without a result; a reason is "diverged" or "refused".
    """
    scores = first_scores(folder, plan, failed)
    runs, others, by_protocol = [], [], {}
    for run in plan["runs"]:
        if run["name"] in failed or not is_done(plan, run, scores):
            continue
        finished_run = read_run(folder, run)
        if is_compared(plan, run, scores):
            runs.append(finished_run)
            by_protocol.setdefault(finished_run.record["protocol"], []).append(finished_run)
        else:
            others.append(finished_run)
    if not runs:
        reasons = ", ".join(sorted({*failed.values()}))
        raise InputError(f"no run of {folder} has a result: {reasons}")
    copied = ("task", "method", "model", "data", "swept", "values", "seeds", "command")
    copied += tuple(name for name in ("grid", "chosen", "tried") if name in plan)
    return {name: plan[name] for name in copied} | {
        "metric": runs[0].task.metric,
        "labels": list(runs[0].task.labels),
        "protocols": {
            protocol: protocol_results(plan, its_runs, failed)
            for protocol, its_runs in by_protocol.items()
        },
        "choices": choices(plan, scores, failed),
        "runs": [run.folder.name for run in runs],
        "not_compared": [run.folder.name for run in others],  # a recipe's values, not the chosen
        **{name: runs[0].record[name] for name in ("versions", "commit", "device")},
        "seconds": round(sum(run.record["seconds"] for run in runs + others), 1),
    }


def read_run(folder: Path, run: dict) -> FinishedRun:
    """Return a run of the plan that is finished."""
    path = folder / run["name"]
    return FinishedRun(run["value"], run["seed"], path, *read_finished_run(path))


def first_scores(folder: Path, plan: dict, failed: dict[str, str]) -> dict[str, float]:
    """Return the score on validation of each first seed's run, by its name, where recipes have a
    sweep."""
    return {
        run["name"]: read_run(folder, run).validation
        for run in plan["runs"]
        if "choice" in run and run["seed"] == 0 and run["name"] not in failed
    }


def protocol_results(plan: dict, runs: list[FinishedRun], failed: dict[str, str]) -> dict:
    """Return the results of one protocol: the lines of each split, the best value and others.

    "judged" is the split on which the tuned models are compared with the others.
    """
    first, swept = runs[0], plan["swept"]
    groups = {value: [run for run in runs if run.value == value] for value in plan["values"]}
    # A tagging run is scored after each epoch, so one run gives the scores of all epochs.
    one_run = first.task.is_tagging and swept == "epochs" and len(groups) == 1
    best = best_value(groups)
    for run in runs:
        if "verdict" not in run.record:
            raise InputError(f"{run.folder} is a run of an older version, without a baseline")
    names = {"majority": "majority", "baseline": f"baseline, {baseline_name(first.task)}"}
    if all("head_alone" in run.scores for run in runs):
        names["head_alone"] = other_name(first.task, "head_alone")
    if all("before" in run.scores for run in runs):
        names["before"] = "before"
    lines = {}
    for split in first.scores["after"]:
        split_lines = lines[split] = []
        for kind, name in names.items():
            split_lines += untuned_lines(name, kind, swept, groups, split)
        if one_run and split == "validation":
            split_lines += epoch_lines(groups[best])
        for value, value_runs in groups.items():
            # A sweep chooses its value on validation, so test is shown for that value only.
            if split == "validation" or swept in ("epochs", RECIPE) or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(swept, value)
                line = table_line(name, "after", value_runs, split)
                counts = failures(plan, value, first, failed)
                line |= {"value": value, "best": value == best, "failed": counts}
                split_lines.append(line)
    judged = reported_split(lines)
    return {
        "rows": first.record["rows"],
        "preset": first.record["flags"].get("preset"),
        "best": best,
        "lines": lines,
        "judged": judged,
        "verdict": study_verdict(groups[best], list(names), judged),
        "head_missing": any(run.record["verdict"]["head_missing"] for run in runs),
        "before_missing": "before" not in names,
        "kept_epochs": [run.record["kept_epoch"] for run in groups[best]] if one_run else None,
        "keeps": sorted({run.record["flags"]["keep"] for run in runs}),
        **({"recipes": recipe_lines(groups, judged)} if swept == RECIPE else {}),
    }


def best_value(groups: dict[object, list[FinishedRun]]) -> object:
    """Return the value that is best on validation, among those with the most finished seeds."""

    def seeds_and_mean(value: object) -> tuple[int, float]:
        runs = groups[value]
        return len(runs), statistics.fmean(run.validation for run in runs)

    return max(filter(groups.get, groups), key=seeds_and_mean)


def failures(
    plan: dict, value: object, first: FinishedRun, failed: dict[str, str]
) -> dict[str, int]:
    """Return how many seeds of a value failed, by reason, under the protocol of the run `first`."""
    protocol = first.record["flags"]["protocol"]
    return Counter(
        failed[run["name"]]
        for run in plan["runs"]
        if run["value"] == value
        and run["flags"]["protocol"] == protocol
        and run["name"] in failed
        and ("choice" not in run or run["seed"])  # the first seed's runs only choose
    )


def study_verdict(runs: list[FinishedRun], others: list[str], split: str) -> dict:
    """Return the comparison of tuned runs with the best of the others, by the task's metric.

    It has "compared_with" (its name), "other_score" and "difference" (tuned minus other). If all
    seeds have the same rows it also has "low", "high" and "p" of a paired bootstrap, and "differ",
    the number of rows with different predictions.
    """
    task, count = runs[0].task, len(runs)

    def mean_score(when: str) -> float:
        return statistics.fmean(run.scores[when][split][task.metric] for run in runs)

    other = max(others, key=mean_score)
    verdict = {
        "compared_with": other_name(task, other),
        "other_score": mean_score(other),
        "difference": mean_score("after") - mean_score(other),
    }
    kinds = PredictionKind(other), PredictionKind("after")
    same = same_rows(task, [run.predictions(kind, split) for kind in kinds for run in runs])
    if not same:
        return verdict
    rows, predicted = same
    sides = predicted[:count], predicted[count:]
    comparison = paired(task, rows, *sides)[task.metric]
    interval = {name: comparison[name] for name in ("low", "high", "p")}
    return verdict | interval | {"differ": count_differing(*sides)}
