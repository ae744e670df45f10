"""From the finished runs of a study to its results: means, deviations and 95 % intervals.

Results are lines of a table, a list for each split: the majority class, a baseline without a
language model, the bare base model, and what was tuned. Each line has all metrics. results.json
holds the lines, and `study_page.py` shows them.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from neo_peft.analysis.plan import value_name
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.runs.baselines import predict_baseline
from neo_peft.runs.bootstrap import asked, differing, intervals, paired, same_rows
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.folder import METRICS, read_record, task_of_run, unchanged
from neo_peft.runs.job import limited_rows
from neo_peft.runs.predictions import Answers, read_predictions, reported_split
from neo_peft.runs.tables import metrics_shown
from neo_peft.tasks import Task, get_task


def collect(folder: Path, plan: dict, failed: dict[str, str]) -> dict:
    """Return the results of a study, protocol by protocol.

    `failed` has the names of the runs without a result, and why: "diverged" or "refused".
    """
    runs = [
        run | {"folder": folder / run["name"]} for run in plan["runs"] if run["name"] not in failed
    ]
    if not runs:
        raise InputError(
            f"no run of {folder} came to an end: {', '.join(sorted({*failed.values()}))}"
        )
    of_protocols: dict[str, list[dict]] = {}
    for run in runs:
        run["record"] = read_record(run["folder"])
        of_protocols.setdefault(run["record"]["protocol"], []).append(run)
    record = runs[0]["record"]
    copied = ("task", "method", "model", "data", "swept", "values", "seeds", "command")
    return {name: plan[name] for name in copied} | {
        "metric": task_of_run(runs[0]["folder"], record).metric,
        "protocols": {
            protocol: protocol_results(plan, of_protocol, failed)
            for protocol, of_protocol in of_protocols.items()
        },
        "runs": [run["name"] for run in runs],
        "versions": record["versions"],
        "commit": record["commit"],
        "device": record["device"],
        "seconds": round(sum(run["record"]["seconds"] for run in runs), 1),
    }


def protocol_results(plan: dict, runs: list[dict], failed: dict[str, str]) -> dict:
    """Return the results of one protocol: the lines of each split, and which value is the best on
    validation."""
    record, swept = runs[0]["record"], plan["swept"]
    task = task_of_run(runs[0]["folder"], record)
    groups = [(value, [run for run in runs if run["value"] == value]) for value in plan["values"]]
    ended = [(value, of_value) for value, of_value in groups if of_value]
    # A tagging run is scored after each epoch, so that one run shows them all.
    one_run = task.tags_words and swept == "epochs" and len(groups) == 1
    # A value that fails with one seed is not better than one that succeeds with all seeds.
    best, of_best = max(ended, key=lambda group: (len(group[1]), mean_after(task, group[1])))
    untuned = {
        "majority": "majority",
        "floor": f"floor, {add_baselines(task, runs)}",
        "before": "before",
    }
    lines: dict[str, list[dict]] = {}
    for split in record["scores"]["after"]:
        lines[split] = []
        for kind, name in untuned.items():
            lines[split] += untuned_lines(task, name, kind, swept, ended, split)
        if one_run and split == "validation":
            lines[split] += epoch_lines(of_best)
        for value, of_value in groups:
            # Validation chooses: test is shown for the best value of a sweep alone.
            if split == "validation" or swept == "epochs" or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(swept, value)
                tuned = table_line(task, name, "after", of_value, split)
                tuned |= {"value": value, "best": value == best}
                lines[split].append(tuned | {"failed": failures(plan, value, runs, failed)})
    judged = reported_split(lines)
    return {
        "rows": record["rows"],
        "best": best,
        "lines": lines,
        "judged": judged,
        "over_floor": over_baseline(task, of_best, judged),
        "kept_epochs": [run["record"]["kept_epoch"] for run in of_best] if one_run else None,
        "keeps": sorted({run["record"]["flags"]["keep"] for run in runs}),
    }


def failures(plan: dict, value: Any, runs: list[dict], failed: dict[str, str]) -> dict[str, int]:
    """Return how many seeds of a value have failed in which way, under the protocol of `runs`."""
    protocol = runs[0]["flags"]["protocol"]
    return Counter(
        failed[run["name"]]
        for run in plan["runs"]
        if run["value"] == value and run["flags"]["protocol"] == protocol and run["name"] in failed
    )


def mean_after(task: Task, runs: list[dict]) -> float:
    """Return the runs' mean of the task's metric on validation, after tuning."""
    return statistics.fmean(
        run["record"]["scores"]["after"]["validation"][task.metric] for run in runs
    )


# ---- The lines of a table


def table_line(task: Task, name: str, when: str, runs: list[dict], split: str) -> dict:
    """Return the line of runs that differ in their seed alone; without a run it has no scores.

    `when` is a kind of scores: "majority", "floor", "before" or "after".
    """
    found: dict[str, dict] = {"name": name, "kind": when, "scores": {}}
    if not runs:
        return found
    of_seeds = [scores_shown(task, run["record"], when, split) for run in runs]
    scores = found["scores"]
    for metric in of_seeds[0]:
        scores[metric] = spread([of_seed[metric] for of_seed in of_seeds])
    of_mean = {}
    if when != "majority":
        of_mean = intervals_of_mean(
            task, [predictions_of(run, Answers(when), split) for run in runs]
        )
    if "generated" in scores:
        generated = [predictions_of(run, Answers(when, generated=True), split) for run in runs]
        of_mean["generated"] = intervals_of_mean(task, generated).get("accuracy", {})
    for metric in scores:
        scores[metric] |= of_mean.get(metric, {})
    return found


def predictions_of(run: dict, answers: Answers, split: str) -> list[dict]:
    """Return the rows of a split with the predictions of a run, or of its baseline."""
    if answers.when == "floor":
        return run["baseline"][split]
    return read_predictions(run["folder"], answers, split)


def scores_shown(task: Task, record: dict, when: str, split: str) -> dict[str, float]:
    """Return the scores of a run that a table shows.

    Where text was generated too, `generated` is its accuracy, and `unanswered` the share of the
    texts that name no label.
    """
    of_split = record["scores"][when][split]
    found = {metric: of_split[metric] for metric in metrics_shown(task)}
    if generated := record["generated"].get(when):
        found["generated"] = generated[split]["accuracy"]
        found["unanswered"] = generated[split]["unanswered"] / generated[split]["total"]
    return found


def spread(values: list[float]) -> dict:
    """Return the mean of the seeds' values, and the sample's standard deviation (None of one)."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "seeds": values}


def intervals_of_mean(task: Task, answered: list[list[dict]]) -> dict[str, dict]:
    """Return the interval of the seeds' mean, {metric: {"low", "high"}}.

    The resamples are the same for all seeds. There are none where seeds have other rows.
    """
    same = same_rows(task, answered)
    found = intervals(task, *same) if same else {}
    return {metric: {"low": low, "high": high} for metric, (low, high) in found.items()}


def over_baseline(task: Task, runs: list[dict], split: str) -> dict | None:
    """Return the paired comparison of tuned runs with their baselines, by the task's metric.

    It has "difference", "low", "high", "p", and "differ", the number of rows that are not
    predicted alike. It is None where seeds have other rows.
    """
    answered = [
        predictions_of(run, Answers(when), split) for when in ("floor", "after") for run in runs
    ]
    same = same_rows(task, answered)
    if not same:
        return None
    rows, predicted = same
    sides = predicted[: len(runs)], predicted[len(runs) :]
    found = paired(task, rows, *sides)[task.metric]
    kept = {name: found[name] for name in ("difference", "low", "high", "p")}
    return kept | {"differ": differing(*sides)}


def untuned_lines(
    task: Task, name: str, kind: str, swept: str, groups: list[tuple], split: str
) -> list[dict]:
    """Return the line of what needs no tuning, or a line for each value where values differ in it.

    For example each swept model has a line before tuning of its own, and each swept number of
    training rows has a baseline of its own.
    """
    of_seed = {run["seed"]: run for _, runs in groups for run in runs}
    scores_of = lambda run: run["record"]["scores"][kind]  # noqa: E731
    if all(scores_of(run) == scores_of(of_seed[run["seed"]]) for _, runs in groups for run in runs):
        return [table_line(task, name, kind, [of_seed[seed] for seed in sorted(of_seed)], split)]
    return [
        table_line(task, f"{name}, {value_name(swept, value)}", kind, runs, split)
        | {"value": value}
        for value, runs in groups
    ]


def epoch_lines(runs: list[dict]) -> list[dict]:
    """Return a line for each epoch's validation scores, from each run's metrics.jsonl."""
    files = [unchanged(run["folder"], run["record"], METRICS) for run in runs]
    of_runs = [[of for of in read_metrics(file) if "validation" in of] for file in files]
    kept, lines = [run["record"]["kept_epoch"] for run in runs], []
    for epochs in zip(*of_runs):
        number, scores = epochs[0]["epoch"], [epoch["validation"] for epoch in epochs]
        lines.append(
            {
                "name": f"epoch {number}",
                "kind": "epoch",
                "value": number,
                "kept": kept.count(number),
                "scores": {name: spread([of[name] for of in scores]) for name in scores[0]},
            }
        )
    return lines


# ---- The baselines


def add_baselines(task: Task, runs: list[dict]) -> str:
    """Add to each run the predictions and scores of the baseline on the same rows; return its name.

    Raises InputError where the data has changed since a run predicted its rows.
    """
    known = None
    for run in runs:
        rows, splits = rows_of(run["record"]["flags"]), run["record"]["scores"]["after"]
        for split in splits:
            of_run = read_predictions(run["folder"], Answers("after"), split)
            if asked(task, rows[split]) != asked(task, of_run):
                raise InputError(
                    f"{run['record']['flags']['data']} was changed since {run['folder']}: {split} "
                    "holds other rows; the study's tables need those that its runs have answered"
                )
        if rows != known:  # the same rows have the same baseline
            known, wanted = rows, {split: rows[split] for split in splits}
            asked_rows = sum(wanted.values(), [])
            name, predicted = predict_baseline(task, rows["train"], rows["validation"], asked_rows)
            left, answered, scores = iter(predicted), {}, {}
            for split, of_split in wanted.items():
                answered[split] = [row | {"predicted": next(left)} for row in of_split]
                scores[split] = score(task, of_split, [row["predicted"] for row in answered[split]])
        run["baseline"], run["record"]["scores"]["floor"] = answered, scores
    return name


def rows_of(flags: dict) -> dict[str, list[dict]]:
    """Return the rows of each split that a run with these flags was given."""
    task = get_task(flags["task"])
    splits = load_splits(task, flags["data"], flags["protocol"], flags["seed"], flags["labels"])
    return limited_rows(splits, flags["train_limit"], flags["eval_limit"])
