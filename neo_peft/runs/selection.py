"""Which score on validation chooses the best epoch: `--metric`."""

from neo_peft.errors import InputError
from neo_peft.settings import Settings
from neo_peft.tasks import Task

LOSS = "loss"


def metrics_of(task: Task) -> list[str]:
    """Return the metrics that can choose the best epoch of a task."""
    if task.is_tagging:
        return ["f1", "span_f1", "macro_f1", "accuracy", LOSS]
    two_label_scores = ["f1", "matthews"] if len(task.labels) == 2 else []
    return ["accuracy", "macro_f1", *two_label_scores, LOSS]


def refuse_metric(task: Task, settings: Settings) -> None:
    """Raise InputError if the task does not have the chosen metric."""
    if (metric := settings.metric) and metric not in metrics_of(task):
        two = "" if task.is_tagging else f" with {len(task.labels)} labels"
        raise InputError(
            f"--metric {metric}: {task.name}{two} has no such score; choose one of "
            f"{', '.join(metrics_of(task))}"
        )


def metric_of(task: Task, settings: Settings) -> str:
    """Return the metric that chooses the best epoch: by default the task's own."""
    return settings.metric or task.metric


def epoch_score(task: Task, settings: Settings, scores: dict, loss: float | None) -> float:
    """Return the score of an epoch by which the best one is chosen: the highest. `scores` are those
    of validation, and `loss` its loss in nats, which is negated, since a lower one is better."""
    metric = metric_of(task, settings)
    if metric == LOSS:
        return -loss
    return scores["macro"]["f1"] if task.is_tagging and metric == "macro_f1" else scores[metric]
