"""From the finished runs of a study to its results: means, spread and intervals, beside what needs
no tuning.

The results are lists of lines, one list a split: the majority, a floor without a language model,
the bare base, and what was tuned, each with all of its measures. results.json holds them, and
`study_page.py` shows them.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from neo_peft.analysis.plan import value_name
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.runs.baselines import predict_baseline
from neo_peft.runs.bootstrap import differing, intervals, paired
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.folder import METRICS, read_record, task_of_run, unchanged
from neo_peft.runs.predictions import Answers, read_predictions
from neo_peft.tasks import Task, get_task


def collect(folder: Path, plan: dict, failed: dict[str, str]) -> dict:
    """Collect what the runs of a study have reached, for each protocol; `failed` says of those that
    came to no end what became of them: "diverged" or "refused"."""
    runs = [
        run | {"folder": folder / run["name"]} for run in plan["runs"] if run["name"] not in failed
    ]
    if not runs:
        raise InputError(
            f"no run of {folder} came to an end: {', '.join(sorted({*failed.values()}))}"
        )
    blocks: dict[str, list[dict]] = {}
    for run in runs:
        run["record"] = read_record(run["folder"])
        blocks.setdefault(run["record"]["protocol"], []).append(run)
    record = runs[0]["record"]
    return {
        name: plan[name]
        for name in ("task", "method", "model", "data", "swept", "values", "seeds", "command")
    } | {
        "metric": task_of_run(runs[0]["folder"], record).metric,
        "protocols": {
            protocol: block(plan, of_protocol, failed) for protocol, of_protocol in blocks.items()
        },
        "runs": [run["name"] for run in runs],
        "versions": record["versions"],
        "commit": record["commit"],
        "device": record["device"],
        "seconds": round(sum(run["record"]["seconds"] for run in runs), 1),
    }


def block(plan: dict, runs: list[dict], failed: dict[str, str]) -> dict:
    """Collect the results of one protocol: the lines of each split, and which value is the best on
    validation."""
    task, swept, rows = (
        task_of_run(runs[0]["folder"], runs[0]["record"]),
        plan["swept"],
        runs[0]["record"]["rows"],
    )
    groups = [(value, [run for run in runs if run["value"] == value]) for value in plan["values"]]
    ended = [(value, of_value) for value, of_value in groups if of_value]
    # all epochs are seen in it
    one_run = task.tags_words and swept == "epochs" and len(groups) == 1
    # Of values that fail with one seed or another none is better than one that holds with all.
    best, of_best = max(ended, key=lambda group: (len(group[1]), mean_after(task, group[1])))
    untuned = {
        "majority": "majority",
        "floor": f"floor, {add_baselines(task, runs)}",
        "before": "before",
    }
    lines: dict[str, list[dict]] = {}
    for split in runs[0]["record"]["scores"]["after"]:
        lines[split] = sum(
            (
                untuned_lines(task, name, kind, swept, ended, split)
                for kind, name in untuned.items()
            ),
            [],
        )
        if one_run and split == "validation":
            lines[split] += epoch_lines(of_best)
        for value, of_value in groups:
            # Validation chooses: of a sweep test is shown for the best alone.
            if split == "validation" or swept == "epochs" or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(swept, value)
                tuned = line(task, name, "after", of_value, split) | {
                    "value": value,
                    "best": value == best,
                }
                lines[split].append(tuned | {"failed": failures(plan, value, runs, failed)})
    judged = "test" if "test" in lines else "validation"
    return {
        "rows": rows,
        "best": best,
        "lines": lines,
        "judged": judged,
        "over_floor": over_baseline(task, of_best, judged),
        "kept_epochs": [run["record"]["kept_epoch"] for run in of_best] if one_run else None,
        "keeps": sorted({run["record"]["flags"]["keep"] for run in runs}),
    }


def failures(plan: dict, value: Any, runs: list[dict], failed: dict[str, str]) -> dict[str, int]:
    """Count the seeds of a value that came to no end, by what became of them, under the protocol of
    `runs`."""
    protocol = runs[0]["flags"]["protocol"]
    planned = [
        run
        for run in plan["runs"]
        if run["value"] == value and run["flags"]["protocol"] == protocol
    ]
    return Counter(failed[run["name"]] for run in planned if run["name"] in failed)


def mean_after(task: Task, runs: list[dict]) -> float:
    return statistics.fmean(
        run["record"]["scores"]["after"]["validation"][task.metric] for run in runs
    )


# ---- The lines of a table


def line(task: Task, name: str, when: str, runs: list[dict], split: str) -> dict:
    """Make a line of what runs that differ in their seed alone have reached on a split; `when` is a
    kind of scores. Without a run it has no scores."""
    if not runs:
        return {"name": name, "kind": when, "scores": {}}
    of_seeds = [shown_measures(task, run["record"], when, split) for run in runs]
    scores, found = (
        {measure: spread([of[measure] for of in of_seeds]) for measure in of_seeds[0]},
        {},
    )
    if when != "majority":
        found = intervals_of_mean(task, [answers_of(run, Answers(when), split) for run in runs])
    if "generated" in scores:
        generated = [answers_of(run, Answers(when, generated=True), split) for run in runs]
        found["generated"] = intervals_of_mean(task, generated).get("accuracy", {})
    return {
        "name": name,
        "kind": when,
        "scores": {name: of | found.get(name, {}) for name, of in scores.items()},
    }


def answers_of(run: dict, answers: Answers, split: str) -> list[dict]:
    """Take the rows of a split with what a run, or the floor beside it, answered."""
    if answers.when == "floor":
        return run["floor"][split]
    return read_predictions(run["folder"], answers, split)


def shown_measures(task: Task, record: dict, when: str, split: str) -> dict[str, float]:
    """Take what a table shows of a run: by rank, and where it was generated too, how often that was
    right, and how often it was no answer at all."""
    of = record["scores"][when][split]
    shown = (
        ("f1", "precision", "recall", "span_f1")
        if task.tags_words
        else (task.metric, "accuracy", "macro_f1")
    )
    found = {measure: of[measure] for measure in shown}
    if generated := record["generated"].get(when):
        found["generated"] = generated[split]["accuracy"]
        found["unanswered"] = generated[split]["unanswered"] / generated[split]["total"]
    return found


def spread(values: list[float]) -> dict:
    """Describe the seeds' values: their mean, and the standard deviation of a sample, which one
    value has not."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "seeds": values}


def same_rows(task: Task, answers: list[list[dict]]) -> tuple[list[dict], list[list]] | None:
    """Part the rows that all were asked from what each answered; None where the rows differ, as of
    a split that the seed draws."""
    if any(asked(task, of_one) != asked(task, answers[0]) for of_one in answers):
        return None
    return answers[0], [[row["predicted"] for row in of_one] for of_one in answers]


def asked(task: Task, rows: list[dict]) -> list[list]:
    return [[row[field] for field in task.fields] for row in rows]


def intervals_of_mean(task: Task, answers: list[list[dict]]) -> dict[str, dict]:
    """Compute the interval of the seeds' mean, over draws of examples that are the same for all of
    them: {measure: {"low", "high"}}; none where the seeds were scored on different examples."""
    same = same_rows(task, answers)
    found = intervals(task, *same) if same else {}
    return {measure: {"low": low, "high": high} for measure, (low, high) in found.items()}


def over_baseline(task: Task, runs: list[dict], split: str) -> dict | None:
    """Compare the seeds of what was tuned with the floor under each, by the task's own measure:
    {"difference", "low", "high", "p", "differ"}, the last the rows on which they differ; None where
    the seeds were scored on other ones."""
    same = same_rows(
        task, [answers_of(run, Answers(when), split) for when in ("floor", "after") for run in runs]
    )
    if not same:
        return None
    rows, answers = same
    sides = answers[: len(runs)], answers[len(runs) :]
    found = paired(task, rows, *sides)[task.metric]
    return {name: found[name] for name in ("difference", "low", "high", "p")} | {
        "differ": differing(*sides)
    }


def untuned_lines(
    task: Task, name: str, kind: str, swept: str, groups: list[tuple], split: str
) -> list[dict]:
    """Make the line of what needs no tuning: one, or one for each value where what is swept changes
    it, as a model does the bare base, and the number of training rows the floor."""
    of_seed = {run["seed"]: run for _, runs in groups for run in runs}
    scores_of = lambda run: run["record"]["scores"][kind]  # noqa: E731
    if all(scores_of(run) == scores_of(of_seed[run["seed"]]) for _, runs in groups for run in runs):
        return [line(task, name, kind, [of_seed[seed] for seed in sorted(of_seed)], split)]
    return [
        line(task, f"{name}, {value_name(swept, value)}", kind, runs, split) | {"value": value}
        for value, runs in groups
    ]


def epoch_lines(runs: list[dict]) -> list[dict]:
    """Make a line of each epoch's validation scores, which metrics.jsonl holds."""
    files = [unchanged(run["folder"], run["record"], METRICS) for run in runs]
    of_runs = [[of for of in read_metrics(file) if "validation" in of] for file in files]
    kept, lines = [run["record"]["kept_epoch"] for run in runs], []
    for epochs in zip(*of_runs):
        number = epochs[0]["epoch"]
        scores = {
            name: spread([of["validation"][name] for of in epochs])
            for name in epochs[0]["validation"]
        }
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


def add_baselines(task: Task, runs: list[dict]) -> str:
    """Put the answers and the scores of the floor without a language model beside those of each
    run, on the same rows; name it. Raises InputError where the data's rows are no more those that a
    run has answered."""
    known = None
    for run in runs:
        rows = rows_of(run["record"]["flags"])
        for split in run["record"]["scores"]["after"]:
            if asked(task, rows[split]) != asked(
                task, read_predictions(run["folder"], Answers("after"), split)
            ):
                raise InputError(
                    f"{run['record']['flags']['data']} was changed since {run['folder']}: {split} "
                    "holds other rows; "
                    "the study's tables need those that its runs have answered"
                )
        if rows != known:  # else it has the same floor
            known, wanted = rows, {split: rows[split] for split in run["record"]["scores"]["after"]}
            name, predicted = predict_baseline(
                task, rows["train"], rows["validation"], sum(wanted.values(), [])
            )
            left = iter(predicted)
            answers = {
                split: [row | {"predicted": next(left)} for row in of]
                for split, of in wanted.items()
            }
            found = {
                split: score(task, of, [row["predicted"] for row in of])
                for split, of in answers.items()
            }
        run["floor"], run["record"]["scores"]["floor"] = answers, found
    return name


def rows_of(flags: dict) -> dict[str, list[dict]]:
    """Load the rows that a run with these flags was given."""
    task = get_task(flags["task"])
    splits = load_splits(task, flags["data"], flags["protocol"], flags["seed"], flags["labels"])
    limits = {"train": flags["train_limit"]}
    return {
        name: limit_rows(rows, limits.get(name, flags["eval_limit"]))
        for name, rows in splits.named().items()
    }
