"""All that a run needs, loaded, and the two sides of it that are scored: the bare base, and the
tuned model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neo_peft import processes
from neo_peft.corpora.sources import Splits, limit_rows, load_splits
from neo_peft.decoding import Evaluation, evaluate, pad_tags, score
from neo_peft.encoding import Encoder, Examples
from neo_peft.model import TunedModel, bare_model
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import loading, tables
from neo_peft.runs.predictions import reported_split, write_predictions
from neo_peft.settings import Settings, task_of
from neo_peft.tasks import Task, get_task

Say = Callable[[str], None]
Scores = dict[str, dict]  # of each split


@dataclass(frozen=True)
class Job:
    """All that a run needs, loaded: rows and encoded examples of each split, and the model with its
    method."""

    settings: Settings
    task: Task
    splits: Splits
    rows: dict[str, list[dict]]
    examples: dict[str, Examples]
    tuned: loading.Tuned
    trainable: int
    total: int

    @property
    def scored(self) -> list[str]:
        return [name for name in self.rows if name != "train"]

    @property
    def shown(self) -> str:
        return reported_split(self.rows)


def prepare(settings: Settings, progress: Progress, instead: dict[str, Any] | None = None) -> Job:
    """Load data and base, put the method on, encode. The model is loaded with the settings of
    `instead`, if any."""
    splits = load_splits(
        get_task(settings.task), settings.data, settings.protocol, settings.seed, settings.labels
    )
    settings = dataclasses.replace(settings, labels=splits.labels)
    task = task_of(settings)
    rows = limited_rows(splits, settings.train_limit, settings.eval_limit)
    tuned = loading.load_to_train(dataclasses.replace(settings, **instead or {}))
    examples = {name: tuned.encoder(rows[name]) for name in progress(rows, "encode", len(rows))}
    trainable = sum(parameter.numel() for parameter in tuned.model.trainable().values())
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    return Job(settings, task, splits, rows, examples, tuned, trainable, total)


def limited_rows(
    splits: Splits, train_limit: int | None, eval_limit: int | None
) -> dict[str, list[dict]]:
    """Return the rows of each split, at most `train_limit` of train and `eval_limit` of others."""
    return {
        name: limit_rows(rows, train_limit if name == "train" else eval_limit)
        for name, rows in splits.named().items()
    }


@dataclass(frozen=True)
class Side:
    """A model before or after tuning, the encoder that it reads with, and what stands in front of
    its texts."""

    model: TunedModel
    encoder: Encoder
    instruction: str = ""


def bare_side(job: Job) -> Side:
    """Take the bare base: it tags by the seeded head, and answers by the language model behind an
    instruction."""
    bare = bare_model(job.tuned.model)
    encoder = loading.encoder_of(job.tuned.base, bare, job.settings)
    return Side(bare, encoder, job.task.instruction if bare.head is None else "")


def score_side(
    job: Job, side: Side, when: str, folder: Path, progress: Progress
) -> dict[str, Scores]:
    """Score the splits, where the settings say so by free generation too, and leave the answers in
    the run's folder."""
    ways = {when: "rank"} | ({f"{when}, generate": "generate"} if job.settings.generate else {})
    scores = {way: {} for way in ways}
    for way, decode in ways.items():
        for name in job.scored:
            rows, found = job.rows[name], answer(job, side, job.rows[name], decode, progress)
            scores[way][name] = score(job.task, rows, found.predicted)
            predicted = pad_tags(rows, found.predicted) if job.task.tags_words else found.predicted
            write = partial(write_predictions, folder, way, name, rows, predicted, found.said)
            processes.decide(write)
    return scores


def answer(
    job: Job, side: Side, rows: list[dict], decode: str, progress: Progress = no_progress
) -> Evaluation:
    size = job.settings.batch_size
    return evaluate(
        side.model,
        side.encoder,
        side.encoder(rows),
        side.instruction,
        decode,
        size,
        progress=progress,
    )


def show_answers(say: Say, job: Job, side: Side, when: str) -> None:
    """Show three examples of test as the model answers them, in its own words where it has no
    head."""
    rows = examples_to_show(job.task, job.rows[job.shown])
    found = answer(job, side, rows, "rank" if side.model.head else "generate")
    predicted = pad_tags(rows, found.predicted) if job.task.tags_words else found.predicted
    say(f"{when}, three examples of {job.shown}:\n")
    say("\n".join(tables.answers(job.task, rows, predicted, found.said)).rstrip() + "\n")


def examples_to_show(task: Task, rows: list[dict]) -> list[dict]:
    """Choose three rows by their labels alone: of each label in turn, or with a few entities
    each."""
    if task.tags_words:
        short = [row for row in rows if len(row["tokens"]) <= 25 and len(set(row["tags"])) > 2]
        return limit_rows(short or rows, 3)
    label = task.fields[-1]
    # row of each label
    first = {row[label]: index for index, row in reversed(list(enumerate(rows)))}
    order = [first[name] for name in task.labels if name in first]
    return [rows[index] for index in [*order, *(set(range(len(rows))) - set(order))][:3]]
