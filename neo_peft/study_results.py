"""From the finished runs of a study to its results: means, spread and intervals, beside what needs no tuning.

The results are lists of lines, one list a split: the majority, a floor without a language model, the bare base, and
what was tuned, each with all of its measures. results.json holds them, and `study_page.py` shows them.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.floors import floor
from neo_peft.plots import read_metrics
from neo_peft.predictions import read_predictions
from neo_peft.runs import RUN, read_record, recorded_settings
from neo_peft.settings import task_of
from neo_peft.sources import limit_rows, load_splits
from neo_peft.summary import METRICS
from neo_peft.tasks import Task, get_task
from neo_peft.uncertainty import intervals, paired


def collect(folder: Path, plan: dict) -> dict:
    """Collect what the runs of a study have reached, for each protocol."""
    runs = []
    for run in plan["runs"]:
        path = folder / run["name"]
        if (path / RUN).exists():  # else it has diverged
            runs.append(run | {"folder": path, "record": read_record(path)})
    if not runs:
        raise InputError(f"no run of {folder} came to an end: all have diverged")
    record = runs[0]["record"]
    blocks: dict[str, list[dict]] = {}
    for run in runs:
        blocks.setdefault(run["record"]["protocol"], []).append(run)
    return {name: plan[name] for name in ("task", "method", "model", "data", "swept", "values", "seeds", "command")} | {
        "metric": task_in(runs[0]).metric,
        "protocols": {protocol: block(plan, of_protocol) for protocol, of_protocol in blocks.items()},
        "runs": [run["name"] for run in runs],
        "versions": record["versions"],
        "commit": record["commit"],
        "device": record["device"],
        "seconds": round(sum(run["record"]["seconds"] for run in runs), 1),
    }


def task_in(run: dict) -> Task:
    """Make the task of a run, with the labels that its record has."""
    return task_of(recorded_settings(run["folder"] / RUN, run["record"]["flags"]))


def block(plan: dict, runs: list[dict]) -> dict:
    """Collect the results of one protocol: the lines of each split, and which value is the best on validation."""
    task, rows = task_in(runs[0]), runs[0]["record"]["rows"]
    groups = [(value, [run for run in runs if run["value"] == value]) for value in plan["values"]]
    ended = [(value, of_value) for value, of_value in groups if of_value]
    one_run = task.tags_words and plan["swept"] == "epochs" and len(groups) == 1  # all epochs are seen in it
    first, (best, of_best) = ended[0][1], max(ended, key=lambda group: mean_after(task, group[1]))
    floor_name, lines = add_floors(task, [*first, *of_best]), {}
    for split in first[0]["record"]["scores"]["after"]:
        untuned = [("majority", "majority"), (f"floor, {floor_name}", "floor")]
        lines[split] = [line(task, name, kind, first, split) for name, kind in untuned]
        lines[split] += before_lines(task, plan["swept"], ended, split)
        if one_run and split == "validation":
            lines[split] += epoch_lines(first)
        for value, of_value in groups:
            # Settings are chosen on validation: of a sweep the best alone is tested.
            if split == "validation" or plan["swept"] == "epochs" or value == best:
                name = "tuned, the kept epoch" if one_run else value_name(plan["swept"], value)
                tuned = line(task, name, "after", of_value, split) | {"value": value, "best": value == best}
                lines[split].append(tuned | {"diverged": plan["seeds"] - len(of_value)})
    kept = [run["record"]["kept_epoch"] for run in first] if one_run else None
    over = over_floor(task, of_best, list(lines)[-1])
    return {"rows": rows, "best": best, "kept_epochs": kept, "lines": lines, "over_floor": over}


def mean_after(task: Task, runs: list[dict]) -> float:
    return statistics.fmean(run["record"]["scores"]["after"]["validation"][task.metric] for run in runs)


def value_name(swept: str, value: Any) -> str:
    """Name what was tuned with a value: `5 epochs`, `rank 8`, the model's own name."""
    if swept == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    return value if swept == "model" else f"{swept.replace('_', ' ')} {value}"


# ---- The lines of a table


def line(task: Task, name: str, when: str, runs: list[dict], split: str) -> dict:
    """Make a line of what runs that differ in their seed alone have reached on a split; `when` is a kind of scores.
    Without a run it has no scores."""
    if not runs:
        return {"name": name, "kind": when, "scores": {}}
    of_seeds = [shown_measures(task, run["record"]["scores"], when, split) for run in runs]
    scores = {measure: spread([of[measure] for of in of_seeds]) for measure in of_seeds[0]}
    if when == "floor":
        found = intervals_of_mean(task, [run["floor"][split] for run in runs])
    elif when in ("before", "after"):
        found = intervals_of_mean(task, [read_predictions(run["folder"], when, split) for run in runs])
        if "generated" in scores:
            generated = [read_predictions(run["folder"], f"{when}, generate", split) for run in runs]
            found["generated"] = intervals_of_mean(task, generated).get("accuracy", {})
    else:
        found = {}
    scores = {measure: of | found.get(measure, {}) for measure, of in scores.items()}
    return {"name": name, "kind": when, "scores": scores}


def shown_measures(task: Task, scores: dict, when: str, split: str) -> dict[str, float]:
    """Take what a table shows of a run: by rank, and where it was generated too, how often that was right, and how
    often it was no answer at all."""
    of = scores[when][split]
    shown = ("f1", "precision", "recall", "span_f1") if task.tags_words else (task.metric, "accuracy", "macro_f1")
    found = {measure: of[measure] for measure in shown}
    if said := scores.get(f"{when}, generate"):
        found["generated"] = said[split]["accuracy"]
        found["unanswered"] = said[split]["unanswered"] / said[split]["total"]
    return found


def spread(values: list[float]) -> dict:
    """Describe the seeds' values: their mean, and the standard deviation of a sample, which one value has not."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "seeds": values}


def intervals_of_mean(task: Task, answers: list[list[dict]]) -> dict[str, dict]:
    """Compute the interval of the seeds' mean, over draws of examples that are the same for all of them: {measure:
    {"low", "high"}}; none where the seeds were scored on different examples, as of a split that the seed draws."""
    texts = [[[row[field] for field in task.fields] for row in rows] for rows in answers]
    if any(of_seed != texts[0] for of_seed in texts):
        return {}
    predicted = [[row["predicted"] for row in rows] for rows in answers]
    found = intervals(task, answers[0], *predicted)
    return {measure: {"low": low, "high": high} for measure, (low, high) in found.items()}


def before_lines(task: Task, swept: str, groups: list[tuple], split: str) -> list[dict]:
    """Make the line of the bare base: one, or one for each value where what is swept changes it, as a model does."""
    scores = [json.dumps([run["record"]["scores"]["before"] for run in runs]) for _, runs in groups]
    if len(set(scores)) == 1:
        return [line(task, "before", "before", groups[0][1], split)]
    return [line(task, f"before, {value_name(swept, value)}", "before", runs, split) for value, runs in groups]


def epoch_lines(runs: list[dict]) -> list[dict]:
    """Make a line of each epoch's validation scores, which metrics.jsonl holds."""
    of_runs = [[of for of in read_metrics(run["folder"] / METRICS) if "validation" in of] for run in runs]
    kept, lines = [run["record"]["kept_epoch"] for run in runs], []
    for epochs in zip(*of_runs):
        number = epochs[0]["epoch"]
        scores = {name: spread([of["validation"][name] for of in epochs]) for name in epochs[0]["validation"]}
        lines.append({
            "name": f"epoch {number}", "kind": "epoch", "value": number, "kept": kept.count(number), "scores": scores,
        })  # fmt: skip
    return lines


def add_floors(task: Task, runs: list[dict]) -> str:
    """Put the answers and the scores of the floor without a language model beside those of each run, on the same rows;
    name it."""
    known = None
    for run in runs:
        rows = rows_of(run["record"]["flags"])
        if rows != known:  # else it has the same floor
            known, asked = rows, {split: rows[split] for split in run["record"]["scores"]["after"]}
            name, predicted = floor(task, rows["train"], rows["validation"], sum(asked.values(), []))
            left = iter(predicted)
            answers = {split: [row | {"predicted": next(left)} for row in of] for split, of in asked.items()}
            found = {split: score(task, of, [row["predicted"] for row in of]) for split, of in answers.items()}
        run["floor"], run["record"]["scores"]["floor"] = answers, found
    return name


def over_floor(task: Task, runs: list[dict], split: str) -> dict | None:
    """Compare tuned runs with the floor, by the task's own measure: {"split", "difference", "low", "high", "p"}; None
    where the seeds were scored on different examples."""
    floors = [run["floor"][split] for run in runs]
    if any(of_seed != floors[0] for of_seed in floors):
        return None
    tuned = [read_predictions(run["folder"], "after", split) for run in runs]
    of_floor, *of_runs = ([row["predicted"] for row in rows] for rows in (floors[0], *tuned))
    found = paired(task, floors[0], [of_floor], of_runs)[task.metric]
    return {"split": split} | {name: found[name] for name in ("difference", "low", "high", "p")}


def rows_of(flags: dict) -> dict[str, list[dict]]:
    """Load the rows that a run with these flags was given."""
    task = get_task(flags["task"])
    splits = load_splits(task, flags["data"], flags["protocol"], flags["seed"], flags["labels"])
    limits = {"train": flags["train_limit"]}
    return {name: limit_rows(rows, limits.get(name, flags["eval_limit"])) for name, rows in splits.named().items()}
