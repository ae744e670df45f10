"""When a run scores validation, and which of its weights it keeps.

Validation is scored after each epoch, or with `--eval-every` after every N steps and after the last
step. The weights with the best score are kept (`--metric`). `--patience` ends the training after N
scorings without a better score.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from neo_peft import loop
from neo_peft.encoding import Examples
from neo_peft.errors import InputError
from neo_peft.model import TunedModel
from neo_peft.progress import Progress
from neo_peft.settings import Settings
from neo_peft.tasks import Task

LOSS = "loss"

# ---- The score


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


# ---- The kept weights


@dataclass
class Kept:
    """The weights that a run keeps: those of the best scoring so far, or of the last one."""

    epoch: int = 0  # in which they were scored, from 1; 0 before the first scoring
    step: int = 0  # after which they were scored
    score: float = -1.0  # on validation
    scored_step: int = 0  # the step of the last scoring
    worse: int = 0  # number of scorings since the kept one
    weights: dict[str, Tensor] | None = None  # copies of the trainable weights, until saved
    predicted: list | None = None  # its predictions for validation; None once the run was resumed
    file: Path | None = None  # best.safetensors of the newest checkpoint, once saved

    def add(self, scoring: "Scoring", score: float, keep: str) -> bool:
        """Count a scoring. Return whether its weights are the kept ones now."""
        self.scored_step = scoring.step
        if self.epoch and keep == "best" and not score > self.score:
            self.worse += 1
            return False
        self.epoch, self.step, self.score, self.worse = scoring.epoch, scoring.step, score, 0
        return True

    def is_final(self, settings: Settings) -> bool:
        """Return whether the training ends here because of `--patience`."""
        return settings.patience is not None and self.worse >= settings.patience


# ---- The times of scoring


class Scoring(NamedTuple):
    """The moment at which validation is scored."""

    epoch: int  # the current epoch, from 1
    step: int  # number of steps taken so far, in all epochs
    loss: float  # mean training loss of the epoch so far, in nats


def steps(
    model: TunedModel,
    examples: Examples,
    settings: Settings,
    state: loop.State,
    kept: Kept,
    progress: Progress,
) -> Iterator[loop.Step | Scoring]:
    """Train as `loop.steps` does. Yield a Step after each step, and a Scoring when it is time to
    score validation.

    The caller must add the score to `kept` before it takes the next item. At each yield the state
    is complete: training can resume from it and `kept`, also in the middle of a scoring.
    """
    last = total_steps(examples, settings)
    if is_due(settings, state, kept, last):  # the run was stopped while it scored
        yield scoring(state)
    if kept.is_final(settings):
        return
    for event in loop.steps(model, examples, settings, state, progress):
        epoch_ended = isinstance(event, loop.EpochEnd)
        if not epoch_ended:
            yield event
        if is_due(settings, state, kept, last, epoch_ended):
            yield scoring(state)
            if kept.is_final(settings):
                return
            model.train()  # with dropout again, also in the middle of an epoch
        if epoch_ended:
            state.next_epoch()


def is_due(
    settings: Settings, state: loop.State, kept: Kept, last: int, epoch_ended: bool = False
) -> bool:
    """Return whether it is time to score validation, which has not been scored after this step.
    `last` is the number of the last step."""
    due, every = epoch_ended, settings.eval_every
    if every:
        due = state.step % every == 0 or state.step == last
    return due and kept.scored_step < state.step


def scoring(state: loop.State) -> Scoring:
    return Scoring(state.epoch, state.step, state.loss_sum / (state.labelled or 1))


def steps_per_epoch(examples: Examples, settings: Settings) -> int:
    """Return the number of steps of an epoch; the last one can have fewer examples."""
    return max(1, len(loop.split_into_steps(np.arange(len(examples)), settings)))


def total_steps(examples: Examples, settings: Settings) -> int:
    """Return the number of steps of a run that `--patience` does not end."""
    planned = settings.epochs * steps_per_epoch(examples, settings)
    return min(planned, settings.max_steps or planned)
