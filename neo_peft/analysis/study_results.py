"""From the finished runs of a study to its results: means, deviations and 95 % intervals.

Results are lines of a table, a list for each split: the majority class, a baseline without a
language model, the untuned base model, and what was tuned. Each line has all metrics. results.json
holds the lines, and `study_page.py` shows them.
"""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from neo_peft.analysis.plan import value_name
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.runs.baselines import predict_baseline
from neo_peft.runs.bootstrap import count_differing, data_fields, intervals, paired, same_rows
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.folder import METRICS, finished, unchanged
from neo_peft.runs.job import limited_rows
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.runs.tables import metrics_shown
from neo_peft.tasks import Task, get_task


@dataclass
class FinishedRun:
    """A run of a study that came to an end.

    value, seed: of the plan.
    folder, record, task: where it is, its run.json, and its task.
    baseline: for each split the rows with the predictions of the run's baseline, whose scores stand
        in the record as "baseline".
    """

    value: object
    seed: int
    folder: Path
    record: dict
    task: Task
    baseline: dict[str, list[dict]] | None = None

    @property
    def scores(self) -> dict[str, dict]:
        return self.record["scores"]

    def predictions(self, answers: PredictionKind, split: str) -> list[dict]:
        """Return the rows of a split with the run's predictions, or its baseline's."""
        if answers.when == "baseline":
            return self.baseline[split]
        return read_predictions(self.folder, answers, split)


def collect(folder: Path, plan: dict, failed: dict[str, str]) -> dict:
    """Return the results of a study, protocol by protocol.

    `failed` has the names of the runs without a result, and why: "diverged" or "refused".
    """
    runs, of_protocols = [], {}
    for run in plan["runs"]:
        if run["name"] not in failed:
            path = folder / run["name"]
            ended = FinishedRun(run["value"], run["seed"], path, *finished(path))
            runs.append(ended)
            of_protocols.setdefault(ended.record["protocol"], []).append(ended)
    if not runs:
        raise InputError(
            f"no run of {folder} came to an end: {', '.join(sorted({*failed.values()}))}"
        )
    copied = ("task", "method", "model", "data", "swept", "values", "seeds", "command")
    return {name: plan[name] for name in copied} | {
        "metric": runs[0].task.metric,
        "protocols": {
            protocol: protocol_results(plan, of_protocol, failed)
            for protocol, of_protocol in of_protocols.items()
        },
        "runs": [run.folder.name for run in runs],
        **{name: runs[0].record[name] for name in ("versions", "commit", "device")},
        "seconds": round(sum(run.record["seconds"] for run in runs), 1),
    }


def protocol_results(plan: dict, runs: list[FinishedRun], failed: dict[str, str]) -> dict:
    """Return the results of one protocol: the lines of each split, and which value is the best on
    validation."""
    first, swept = runs[0], plan["swept"]
    groups = {value: [run for run in runs if run.value == value] for value in plan["values"]}
    # A tagging run is scored after each epoch, so that one run shows them all.
    one_run = first.task.tags_words and swept == "epochs" and len(groups) == 1
    best = best_value(groups)
    names = {
        "majority": "majority",
        "baseline": f"baseline, {add_baselines(runs)}",
        "before": "before",
    }
    lines = {}
    for split in first.scores["after"]:
        of_split = lines[split] = []
        for kind, name in names.items():
            of_split += untuned_lines(name, kind, swept, groups, split)
        if one_run and split == "validation":
            of_split += epoch_lines(groups[best])
        for value, of_value in groups.items():
            # Validation chooses: test is shown for the best value of a sweep alone.
            if split == "validation" or swept == "epochs" or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(swept, value)
                line = table_line(name, "after", of_value, split)
                counts = failures(plan, value, first, failed)
                line |= {"value": value, "best": value == best, "failed": counts}
                of_split.append(line)
    judged = reported_split(lines)
    return {
        "rows": first.record["rows"],
        "best": best,
        "lines": lines,
        "judged": judged,
        "over_baseline": over_baseline(groups[best], judged),
        "kept_epochs": [run.record["kept_epoch"] for run in groups[best]] if one_run else None,
        "keeps": sorted({run.record["flags"]["keep"] for run in runs}),
    }


def best_value(groups: dict[object, list[FinishedRun]]) -> object:
    """Return the value that is best on validation, of those that succeed with the most seeds."""

    def worth(value: object) -> tuple[int, float]:
        runs = groups[value]
        scores = [run.scores["after"]["validation"][run.task.metric] for run in runs]
        return len(runs), statistics.fmean(scores)

    return max(filter(groups.get, groups), key=worth)


def failures(
    plan: dict, value: object, first: FinishedRun, failed: dict[str, str]
) -> dict[str, int]:
    """Return how many seeds of a value have failed in which way, under the protocol of a run."""
    protocol = first.record["flags"]["protocol"]
    return Counter(
        failed[run["name"]]
        for run in plan["runs"]
        if run["value"] == value and run["flags"]["protocol"] == protocol and run["name"] in failed
    )


# ---- The lines of a table


def table_line(name: str, when: str, runs: list[FinishedRun], split: str) -> dict:
    """Return the line of runs that differ in their seed alone; without a run it has no scores.

    `when` is a kind of scores: "majority", "baseline", "before" or "after".
    """
    if not runs:
        return {"name": name, "kind": when, "scores": {}}
    scores = spreads([scores_shown(run, when, split) for run in runs])
    found = {} if when == "majority" else intervals_of_mean(runs, PredictionKind(when), split)
    if "generated" in scores:
        of_generated = intervals_of_mean(runs, PredictionKind(when, generated=True), split)
        found["generated"] = of_generated.get("accuracy", {})
    for metric in scores.keys() & found.keys():
        scores[metric] |= found[metric]
    return {"name": name, "kind": when, "scores": scores}


def scores_shown(run: FinishedRun, when: str, split: str) -> dict[str, float]:
    """Return the scores of a run that a table shows.

    Where text was generated too, `generated` is its accuracy, and `unanswered` the share of the
    texts that name no label.
    """
    of_split = run.scores[when][split]
    found = {metric: of_split[metric] for metric in metrics_shown(run.task)}
    if generated := run.record["generated"].get(when):
        found["generated"] = generated[split]["accuracy"]
        found["unanswered"] = generated[split]["unanswered"] / generated[split]["total"]
    return found


def spreads(of_seeds: list[dict[str, float]]) -> dict[str, dict]:
    """Return for each metric the mean of the seeds' values, the sample's standard deviation (None
    of one seed), and the values."""
    found = {}
    for metric in of_seeds[0]:
        values = [of_seed[metric] for of_seed in of_seeds]
        sd = statistics.stdev(values) if len(values) > 1 else None
        found[metric] = {"mean": statistics.fmean(values), "sd": sd, "seeds": values}
    return found


def intervals_of_mean(
    runs: list[FinishedRun], answers: PredictionKind, split: str
) -> dict[str, dict]:
    """Return the interval of the seeds' mean, {metric: {"low", "high"}}.

    The resamples are the same for all seeds. There are none where seeds have other rows.
    """
    task = runs[0].task
    same = same_rows(task, [run.predictions(answers, split) for run in runs])
    found = intervals(task, *same) if same else {}
    return {metric: {"low": low, "high": high} for metric, (low, high) in found.items()}


def over_baseline(runs: list[FinishedRun], split: str) -> dict | None:
    """Return the paired comparison of tuned runs with their baselines, by the task's metric.

    It has "difference", "low", "high", "p", and "differ", the number of rows that are not
    predicted alike. It is None where seeds have other rows.
    """
    task, count = runs[0].task, len(runs)
    kinds = PredictionKind("baseline"), PredictionKind("after")
    same = same_rows(task, [run.predictions(kind, split) for kind in kinds for run in runs])
    if not same:
        return None
    rows, predicted = same
    sides = predicted[:count], predicted[count:]
    found = paired(task, rows, *sides)[task.metric]
    kept = {name: found[name] for name in ("difference", "low", "high", "p")}
    return kept | {"differ": count_differing(*sides)}


def untuned_lines(
    name: str, kind: str, swept: str, groups: dict[object, list[FinishedRun]], split: str
) -> list[dict]:
    """Return the line of what needs no tuning, or a line for each value where values differ in it.

    For example each swept model has a line before tuning of its own, and each swept number of
    training rows has a baseline of its own.
    """
    runs = [run for of_value in groups.values() for run in of_value]
    of_seed = {run.seed: run for run in runs}
    if all(run.scores[kind] == of_seed[run.seed].scores[kind] for run in runs):
        return [table_line(name, kind, [of_seed[seed] for seed in sorted(of_seed)], split)]
    return [
        table_line(f"{name}, {value_name(swept, value)}", kind, of_value, split) | {"value": value}
        for value, of_value in groups.items()
        if of_value
    ]


def epoch_lines(runs: list[FinishedRun]) -> list[dict]:
    """Return a line for each epoch's validation scores, from each run's metrics.jsonl."""
    of_runs = []
    for run in runs:
        metrics = read_metrics(unchanged(run.folder, run.record, METRICS))
        of_runs.append([line for line in metrics if "validation" in line])
    kept, lines = [run.record["kept_epoch"] for run in runs], []
    for epochs in zip(*of_runs):
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


# ---- The baselines


def add_baselines(runs: list[FinishedRun]) -> str:
    """Add to each run the predictions and scores of the baseline on the same rows; return its name.

    Raises InputError where the data has changed since a run predicted its rows.
    """
    known, task = None, runs[0].task
    for run in runs:
        flags, splits = run.record["flags"], run.scores["after"]
        rows = rows_of(flags)
        for split in splits:
            if data_fields(task, rows[split]) != data_fields(
                task, run.predictions(PredictionKind("after"), split)
            ):
                raise InputError(
                    f"{flags['data']} was changed since {run.folder}: {split} holds other rows; "
                    "the study's tables need those that its runs have answered"
                )
        if rows != known:  # the same rows have the same baseline
            known, wanted = rows, [row for split in splits for row in rows[split]]
            name, predicted = predict_baseline(task, rows["train"], rows["validation"], wanted)
            left, answered, scores = iter(predicted), {}, {}
            for split in splits:
                answered[split] = [row | {"predicted": next(left)} for row in rows[split]]
                answers = [row["predicted"] for row in answered[split]]
                scores[split] = score(task, rows[split], answers)
        run.baseline, run.scores["baseline"] = answered, scores
    return name


def rows_of(flags: dict) -> dict[str, list[dict]]:
    """Return the rows of each split that a run with these flags was given."""
    task = get_task(flags["task"])
    splits = load_splits(task, flags["data"], flags["protocol"], flags["seed"], flags["labels"])
    return limited_rows(splits, flags["train_limit"], flags["eval_limit"])
