"""The lines of a study's tables: the scores of runs that differ only in the seed, with means,
deviations and 95 % intervals."""

import statistics

from neo_peft.runs.bootstrap import intervals, same_rows
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.folder import METRICS, check_unchanged
from neo_peft.runs.predictions import PredictionKind
from neo_peft.runs.tables import metrics_shown
from neo_peft.studies.finished import FinishedRun
from neo_peft.studies.variants import RECIPE, value_name


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
    if swept == RECIPE:
        return untuned_lines_of_recipes(name, kind, groups, split)
    return [
        table_line(f"{name}, {value_name(swept, value)}", kind, value_runs, split)
        | {"value": value}
        for value, value_runs in groups.items()
        if value_runs
    ]


def untuned_lines_of_recipes(
    name: str, kind: str, groups: dict[object, list[FinishedRun]], split: str
) -> list[dict]:
    """Return one line for all recipes that have the same scores without tuning. The name of a line
    for some of them has these recipes."""
    same: list[list] = []  # recipes with the same scores for each seed
    for recipe, runs in groups.items():
        scores = {run.seed: run.scores[kind] for run in runs}
        for found, recipes in same:
            if all(found.get(seed, score) == score for seed, score in scores.items()):
                recipes.append(recipe)
                found |= scores
                break
        else:
            same += [[scores, [recipe]]] if runs else []
    lines = []
    for _, recipes in sorted(same, key=lambda pair: -len(pair[1])):
        by_seed = {run.seed: run for recipe in recipes for run in groups[recipe]}
        shown = f"{name}, {', '.join(recipes)}" if lines else name
        runs = [by_seed[seed] for seed in sorted(by_seed)]
        lines.append(table_line(shown, kind, runs, split))
    return lines


def scores_of_epoch(line: dict) -> dict[str, float]:
    """Return the scores on validation and the loss in a line of metrics.jsonl."""
    more = {"accuracy": line.get("validation_accuracy"), "loss": line["validation_loss"]}
    return line["validation"] | {name: value for name, value in more.items() if value is not None}


def epoch_lines(runs: list[FinishedRun]) -> list[dict]:
    """Return a line with the validation scores of each epoch, from metrics.jsonl of each run."""
    epochs_of_runs = []
    for run in runs:
        metrics = read_metrics(check_unchanged(run.folder, run.record, METRICS))
        epochs_of_runs.append([line for line in metrics if "validation" in line])
    kept, lines = [run.record["kept_epoch"] for run in runs], []
    for epochs in zip(*epochs_of_runs):
        number, scores = epochs[0]["epoch"], spreads([scores_of_epoch(epoch) for epoch in epochs])
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
