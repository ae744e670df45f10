"""Compute the results of a study from its finished runs: means, deviations and 95 % intervals.

For each split, the results are the lines of a table: the majority class, a baseline without a
language model, a linear head alone and the untuned base (if all runs have scored them), and the
tuned models. Each line has all metrics. The file results.json has these lines; `study_page.py`
makes the tables.
"""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from neo_peft.analysis.plan import value_name
from neo_peft.errors import InputError
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.bootstrap import count_differing, intervals, paired, same_rows
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.folder import METRICS, check_unchanged, read_finished_run
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.runs.tables import metrics_shown
from neo_peft.runs.verdict import other_name
from neo_peft.tasks import Task


@dataclass
class FinishedRun:
    """A finished run of a study."""

    value: object  # the swept value
    seed: int  # its seed
    folder: Path  # its folder
    record: dict  # run.json
    task: Task  # its task

    @property
    def scores(self) -> dict[str, dict]:
        """The scores as {when: {split: scores}}; see `PredictionKind`."""
        return self.record["scores"]

    def predictions(self, kind: PredictionKind, split: str) -> list[dict]:
        """Return the rows of a split with predictions of the run."""
        return read_predictions(self.folder, kind, split)


def collect(folder: Path, plan: dict, failed: dict[str, str]) -> dict:
    """Return the results of a study for each protocol, and what results.json records with them.

    `failed` is {name: reason} for the runs without a result; a reason is "diverged" or "refused".
    """
    runs, by_protocol = [], {}
    for run in plan["runs"]:
        if run["name"] not in failed:
            path = folder / run["name"]
            finished_run = FinishedRun(run["value"], run["seed"], path, *read_finished_run(path))
            runs.append(finished_run)
            by_protocol.setdefault(finished_run.record["protocol"], []).append(finished_run)
    if not runs:
        reasons = ", ".join(sorted({*failed.values()}))
        raise InputError(f"no run of {folder} has a result: {reasons}")
    copied = ("task", "method", "model", "data", "swept", "values", "seeds", "command")
    return {name: plan[name] for name in copied} | {
        "metric": runs[0].task.metric,
        "labels": list(runs[0].task.labels),
        "protocols": {
            protocol: protocol_results(plan, its_runs, failed)
            for protocol, its_runs in by_protocol.items()
        },
        "runs": [run.folder.name for run in runs],
        **{name: runs[0].record[name] for name in ("versions", "commit", "device")},
        "seconds": round(sum(run.record["seconds"] for run in runs), 1),
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
            if split == "validation" or swept == "epochs" or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(swept, value)
                line = table_line(name, "after", value_runs, split)
                counts = failures(plan, value, first, failed)
                line |= {"value": value, "best": value == best, "failed": counts}
                split_lines.append(line)
    judged = reported_split(lines)
    return {
        "rows": first.record["rows"],
        "best": best,
        "lines": lines,
        "judged": judged,
        "verdict": study_verdict(groups[best], list(names), judged),
        "head_missing": any(run.record["verdict"]["head_missing"] for run in runs),
        "before_missing": "before" not in names,
        "kept_epochs": [run.record["kept_epoch"] for run in groups[best]] if one_run else None,
        "keeps": sorted({run.record["flags"]["keep"] for run in runs}),
    }


def best_value(groups: dict[object, list[FinishedRun]]) -> object:
    """Return the value that is best on validation, among those with the most finished seeds."""

    def seeds_and_mean(value: object) -> tuple[int, float]:
        runs = groups[value]
        scores = [run.scores["after"]["validation"][run.task.metric] for run in runs]
        return len(runs), statistics.fmean(scores)

    return max(filter(groups.get, groups), key=seeds_and_mean)


def failures(
    plan: dict, value: object, first: FinishedRun, failed: dict[str, str]
) -> dict[str, int]:
    """Return how many seeds of a value failed, by reason, under the protocol of the run `first`."""
    protocol = first.record["flags"]["protocol"]
    return Counter(
        failed[run["name"]]
        for run in plan["runs"]
        if run["value"] == value and run["flags"]["protocol"] == protocol and run["name"] in failed
    )


# ---- The lines of a table


def table_line(name: str, when: str, runs: list[FinishedRun], split: str) -> dict:
    """Return the line of runs that differ only in the seed. Without any run it has no scores.

    `when` is as in `PredictionKind`.
    """
    if not runs:
        return {"name": name, "kind": when, "scores": {}}
    scores = spreads([scores_shown(run, when, split) for run in runs])
    ranges = mean_intervals(runs, PredictionKind(when), split)
    if "generated" in scores:
        generated = mean_intervals(runs, PredictionKind(when, generated=True), split)
        ranges["generated"] = generated.get("accuracy", {})
    for metric in scores.keys() & ranges.keys():
        scores[metric] |= ranges[metric]
    return {"name": name, "kind": when, "scores": scores}


def scores_shown(run: FinishedRun, when: str, split: str) -> dict[str, float]:
    """Return the scores of a run that a table shows.

    If text was generated as well, "generated" is its accuracy, and "unanswered" the share of texts
    that start with no label.
    """
    scores = run.scores[when][split]
    shown = {metric: scores[metric] for metric in metrics_shown(run.task)}
    if generated := run.record["generated"].get(when):
        shown["generated"] = generated[split]["accuracy"]
        shown["unanswered"] = generated[split]["unanswered"] / generated[split]["total"]
    return shown


def spreads(seed_scores: list[dict[str, float]]) -> dict[str, dict]:
    """Return the "mean", "sd" and "seeds" (all values) of each metric over the seeds.

    "sd" is the sample standard deviation, or None if there is one seed.
    """
    by_metric = {}
    for metric in seed_scores[0]:
        values = [scores[metric] for scores in seed_scores]
        sd = statistics.stdev(values) if len(values) > 1 else None
        by_metric[metric] = {"mean": statistics.fmean(values), "sd": sd, "seeds": values}
    return by_metric


def mean_intervals(runs: list[FinishedRun], kind: PredictionKind, split: str) -> dict[str, dict]:
    """Return the 95 % interval of the mean over the seeds, {metric: {"low", "high"}}.

    The resamples are the same for all seeds. Return {} if the seeds have different rows.
    """
    task = runs[0].task
    same = same_rows(task, [run.predictions(kind, split) for run in runs])
    low_high = intervals(task, *same) if same else {}
    return {metric: {"low": low, "high": high} for metric, (low, high) in low_high.items()}


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


def untuned_lines(
    name: str, kind: str, swept: str, groups: dict[object, list[FinishedRun]], split: str
) -> list[dict]:
    """Return one line of scores without tuning, or a line for each value if their scores differ.

    For example, each swept model has its own scores before tuning, and each swept number of
    training rows has its own baseline.
    """
    runs = [run for value_runs in groups.values() for run in value_runs]
    by_seed = {run.seed: run for run in runs}
    if all(run.scores[kind] == by_seed[run.seed].scores[kind] for run in runs):
        return [table_line(name, kind, [by_seed[seed] for seed in sorted(by_seed)], split)]
    return [
        table_line(f"{name}, {value_name(swept, value)}", kind, value_runs, split)
        | {"value": value}
        for value, value_runs in groups.items()
        if value_runs
    ]


def epoch_lines(runs: list[FinishedRun]) -> list[dict]:
    """Return a line with the validation scores of each epoch, from metrics.jsonl of each run."""
    epochs_of_runs = []
    for run in runs:
        metrics = read_metrics(check_unchanged(run.folder, run.record, METRICS))
        epochs_of_runs.append([line for line in metrics if "validation" in line])
    kept, lines = [run.record["kept_epoch"] for run in runs], []
    for epochs in zip(*epochs_of_runs):
        number, scores = epochs[0]["epoch"], spreads([epoch["validation"] for epoch in epochs])
        lines.append(
            {
                "name": f"epoch {number}",
                "kind": "epoch",
                "value": number,
                "kept": kept.count(number),
                "scores": scores,
            }
        )
    return lines
