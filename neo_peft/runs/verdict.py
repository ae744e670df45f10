"""What the method adds: the tuned model is compared with the best of what it has to beat.

That is the majority class, the task's baseline, the linear head alone or the untuned base: the one
with the best metric on the reported split. The comparison is a paired bootstrap over the rows
(bootstrap.py). Its result is in run.json as "verdict", with these fields:

split, metric, rows    the reported split, the task's metric, the number of rows
compared_with          "majority", "baseline", "head_alone" or "before"
score, other_score     the metric of the tuned model, and of the other one
low, high, p           95 % interval of the difference (tuned minus other), and its p-value
differing              number of rows that are predicted differently
only_label             the label of all rows, if they have the same one; else null
head_missing           whether a linear head alone should be compared, but was not scored
before_missing         whether the untuned base was not scored (--no-before)
"""

from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.methods import METHODS
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.bootstrap import MIN_DIFFERING, count_differing, paired
from neo_peft.runs.head_alone import has_head_beside_method
from neo_peft.runs.job import Job, Scores
from neo_peft.runs.predictions import PredictionKind, read_rows, reported_split
from neo_peft.runs.tables import number, shown_name
from neo_peft.tasks import Task

BEFORE_MISSING = "The untuned model was not scored (--no-before): how it compares is not known."


def judge(job: Job, scores: Scores) -> dict:
    """Compare the tuned model with the best other result. Returns the fields of the verdict."""
    task, split = job.task, reported_split(job.rows)
    metric, by_when = task.metric, scores["scores"]
    others = [when for when in by_when if when != "after"]
    other = max(others, key=lambda when: by_when[when][split][metric])
    rows = job.rows[split]
    sides = [predictions(job, when, split, by_when) for when in (other, "after")]
    comparison = paired(task, rows, *([side] for side in sides))[metric]
    gold = {label for row in rows for label in task.labels_of(row)}
    return {
        "split": split,
        "metric": metric,
        "rows": len(rows),
        "compared_with": other,
        "score": comparison["b"],
        "other_score": comparison["a"],
        **{name: comparison[name] for name in ("low", "high", "p")},
        "differing": count_differing(*([side] for side in sides)),
        "only_label": min(gold) if len(gold) == 1 else None,
        "head_missing": has_head_beside_method(job) and "head_alone" not in by_when,
        "before_missing": "before" not in by_when,
    }


def predictions(job: Job, when: str, split: str, scores: dict) -> list:
    """Return the predictions that the run has written. Raise InputError where they were changed."""
    path = job.output.folder / PredictionKind(when).path(split)
    rows = read_rows(path, job.task)
    predicted = [row["predicted"] for row in rows]
    if score(job.task, rows, predicted) != scores[when][split]:
        raise InputError(f"{path} was changed since the run wrote it: it has other scores")
    return predicted


def other_name(task: Task, when: str) -> str:
    """Return the name of what the tuned model is compared with, for a sentence."""
    names = {"majority": "the majority class", "before": "the untuned model"}
    return (names | {"head_alone": "a linear head alone", "baseline": baseline_name(task)})[when]


def verdict_line(task: Task, record: dict) -> str:
    """Return the verdict in a run's record as one line; "" for a run of an older version."""
    verdict = record.get("verdict")
    if verdict is None:
        return ""
    split, rows, differing = (verdict[name] for name in ("split", "rows", "differing"))
    low, high = verdict["low"], verdict["high"]
    difference = verdict["score"] - verdict["other_score"]
    other = f"{other_name(task, verdict['compared_with'])} ({number(verdict['other_score'])})"
    metric = f"{shown_name(task, verdict['metric'])} on {split}"
    ending = ""
    if verdict["head_missing"]:
        advice = "; --head-baseline scores it"
        if record["flags"].get("adapter"):
            advice = ": with --adapter it would have fewer epochs"
        ending = f" A linear head alone was not scored{advice}."
    if verdict.get("before_missing"):
        ending += f" {BEFORE_MISSING}"
    if label := verdict["only_label"]:
        return f"Nothing can be concluded: all rows of {split} have the same label, {label}."
    if split == "validation" and record["flags"]["keep"] == "best":
        ending += " Validation has also chosen the epoch."
    title = " with ".join(part.title for part in METHODS[record["flags"]["method"]])
    if differing < MIN_DIFFERING:
        return (
            f"Whether {title} adds anything to {other} cannot be told: {differing} of the {rows:,} "
            f"rows of {split} are predicted differently.{ending}"
        )
    title = title[0].upper() + title[1:]
    interval = "95 % interval of a paired bootstrap"
    if low > 0:
        added = f"{title} adds {difference:.3f} ({low:.3f} to {high:.3f}) to {other}"
        return f"{added}: {metric}, {interval}.{ending}"
    if high < 0:
        lost = f"{title} is {-difference:.3f} ({-high:.3f} to {-low:.3f}) worse than {other}"
        return f"{lost}: {metric}, {interval}.{ending}"
    nothing = f"{title} adds nothing certain to {other}: {metric} differs by {difference:+.3f}"
    return f"{nothing} ({low:+.3f} to {high:+.3f}), {interval}.{ending}"
