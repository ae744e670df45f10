"""What a run's score consists of: the steps that lead to it, and the score without each part.

Each difference has a paired interval (runs/bootstrap.py).
"""

from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import evaluate
from neo_peft.look.subject import Subject
from neo_peft.progress import Progress
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.bootstrap import MIN_DIFFERING, count_differing, intervals, paired
from neo_peft.runs.predictions import PredictionKind, read_predictions

RESAMPLES = 2000  # for each part that is switched off


def predict(subject: Subject) -> list:
    """Return the model's predictions as it is now."""
    size = subject.tuned.settings.batch_size
    evaluation = evaluate(subject.model, subject.tuned.encoder, subject.examples, batch_size=size)
    return evaluation.predicted


def difference(subject: Subject, a: list, b: list, resamples: int = 10_000) -> dict:
    """Return the paired comparison of two predictions by the task's metric. By default it has the
    interval of the run's verdict (runs/verdict.py)."""
    found = paired(subject.task, subject.rows, [a], [b], resamples)[subject.task.metric]
    return found | {"rows_that_differ": count_differing([a], [b])}


def parts_of_score(subject: Subject, own: list) -> list[dict]:
    """Return the steps from the baseline to the run: each with its score, and what it adds to the
    step before."""
    kinds = [when for when in ("baseline", "head_alone") if when in subject.record["scores"]]
    if "head_alone" not in kinds and "before" in subject.record["scores"]:
        kinds.append("before")
    names = {"head_alone": "a head on the frozen base", "before": "the untuned model"}
    names["baseline"] = baseline_name(subject.task)
    predicted = {names[when]: recorded(subject, when) for when in kinds}
    predicted[tuned_name(subject, "head_alone" in kinds)] = own
    steps, before = [], None
    for name, predictions in predicted.items():
        step = difference(subject, before if before is not None else predictions, predictions)
        interval = intervals(subject.task, subject.rows, [predictions])[subject.task.metric]
        steps.append({"name": name, "score": step["b"], "interval": interval})
        steps[-1]["added"] = None if before is None else added(step)
        before = predictions
    return steps


def tuned_name(subject: Subject, head_is_scored: bool) -> str:
    """Return the name of the run's own step: with the head, where that was not scored alone."""
    tuned = "all weights trained" if subject.tuned.settings.trains_base else "with the adapter"
    is_untrained = subject.model.head is not None and not head_is_scored
    return f"{tuned} and the head" if is_untrained else tuned


def added(step: dict) -> dict:
    """Return a paired difference, without the two scores."""
    names = ("difference", "low", "high", "p", "rows_that_differ")
    return {name: step[name] for name in names} | {"certain": is_certain(step)}


def is_certain(step: dict) -> bool:
    """Return whether the interval excludes zero, and enough rows differ."""
    excludes_zero = step["low"] > 0 or step["high"] < 0
    return excludes_zero and step["rows_that_differ"] >= MIN_DIFFERING


def recorded(subject: Subject, when: str) -> list:
    """Return the run's own predictions of a kind, for the rows that are scored."""
    rows = read_predictions(subject.folder, PredictionKind(when), subject.split)
    return [row["predicted"] for row in limit_rows(rows, len(subject.rows))]


def scores_without_parts(subject: Subject, own: list, progress: Progress) -> list[dict]:
    """Return the score with each part switched off, and its difference from the run's own."""
    found = []
    for part in progress(subject.parts, "switch off", len(subject.parts)):
        with part.switched_off():
            predicted = predict(subject)
        step = difference(subject, own, predicted, resamples=RESAMPLES)
        found.append({"group": part.group, "name": part.name, "score": step["b"]} | added(step))
    return found
