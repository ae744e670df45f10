"""All that a run needs, loaded, and the two models that are scored: the untuned base, and the
tuned model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from neo_peft import processes
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import Splits, limit_rows
from neo_peft.decoding import Evaluation, evaluate, score
from neo_peft.encoding import Encoder, Examples
from neo_peft.methods import untuned_model
from neo_peft.model import TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import loading, tables
from neo_peft.runs.generation import evaluate_generated
from neo_peft.runs.predictions import PredictionKind, reported_split, write_predictions
from neo_peft.settings import Settings, task_of
from neo_peft.tasks import Task, get_task

PrintLine = Callable[[str], None]


class Output(NamedTuple):
    """Where a run leaves its files, and how it shows what it does."""

    folder: Path
    print_line: PrintLine  # prints a line
    progress: Progress  # draws a bar
    begun: float  # by `time.monotonic`, earlier parts of a resumed run included

    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 1)


@dataclass(frozen=True)
class Job:
    """All that a run needs, loaded."""

    settings: Settings
    output: Output
    task: Task
    splits: Splits
    rows: dict[str, list[dict]]  # of each split, limited
    examples: dict[str, Examples]  # the same, encoded
    tuned: loading.Tuned  # the model with its method
    trainable: int  # numbers that train
    total: int

    @property
    def scored(self) -> list[str]:
        return [name for name in self.rows if name != "train"]


def prepare(settings: Settings, output: Output, resumed_threads: int | None = None) -> Job:
    """Load data and base, put the method on, encode.

    A resumed run keeps its recorded thread count, and does not load `--adapter` again: its
    checkpoint has the weights.
    """
    splits = load_splits(
        get_task(settings.task), settings.data, settings.protocol, settings.seed, settings.labels
    )
    settings = replace(settings, labels=splits.labels)
    task = task_of(settings)
    rows = limited_rows(splits, settings.train_limit, settings.eval_limit)
    to_load = settings
    if resumed_threads:
        to_load = replace(settings, threads=resumed_threads, adapter=None)
    tuned = loading.load_to_train(to_load)
    names = output.progress(rows, "encode", len(rows))
    examples = {name: tuned.encoder(rows[name]) for name in names}
    trainable = sum(one.numel() for one in tuned.model.trainable().values())
    total = sum(one.numel() for one in tuned.model.parameters())
    return Job(settings, output, task, splits, rows, examples, tuned, trainable, total)


def limited_rows(
    splits: Splits, train_limit: int | None, eval_limit: int | None
) -> dict[str, list[dict]]:
    """Return the rows of each split, at most `train_limit` of train and `eval_limit` of others."""
    return {
        name: limit_rows(rows, train_limit if name == "train" else eval_limit)
        for name, rows in splits.named().items()
    }


class Variant(NamedTuple):
    """A model before or after tuning."""

    model: TunedModel
    encoder: Encoder
    instruction: str = ""  # in front of every text


def untuned_variant(job: Job) -> Variant:
    """Return the untuned base: it tags by the seeded head, and answers by the language model behind an
    instruction."""
    bare = untuned_model(job.tuned.model)
    by_head = bare.head is not None
    encoder = replace(job.tuned.encoder, with_head=by_head)
    return Variant(bare, encoder, "" if by_head else job.task.instruction)


# The scores of a run, as run.json holds them: "scores" of the labels that were chosen, by a head or
# by their probabilities, and "generated" of what the language model said freely, where the settings
# ask for it; by side ("majority", "before", "after") and split.
Scores = dict[str, dict[str, dict[str, dict]]]


def score_variant(job: Job, side: Variant, when: str, scores: Scores) -> None:
    """Show three answers, score all splits but train, and leave the answers in the run's folder.
    `when` is "before" or "after"."""
    show_answers(job, side, f"{when.capitalize()} tuning")
    for generated in (False, True) if job.settings.generate else (False,):
        of_split = scores["generated" if generated else "scores"][when] = {}
        for split in job.scored:
            rows = job.rows[split]
            found = answer(job, side, rows, generated, job.output.progress)
            of_split[split] = score(job.task, rows, found.predicted)
            answers = PredictionKind(when, generated)
            write = partial(write_predictions, job.output.folder, answers, split, rows, found)
            processes.on_first_process(write)


def answer(
    job: Job, side: Variant, rows: list[dict], generated: bool, progress: Progress = no_progress
) -> Evaluation:
    """Answer rows as a side does: by the labels' probabilities or a head, or by free generation."""
    way = evaluate_generated if generated else evaluate
    return way(
        side.model,
        side.encoder,
        side.encoder(rows),
        side.instruction,
        job.settings.batch_size,
        progress=progress,
    )


def show_answers(job: Job, side: Variant, when: str) -> None:
    """Show three examples of test as the model answers them, in its own words where it has no
    head."""
    split = reported_split(job.rows)
    rows = examples_to_show(job.task, job.rows[split])
    found = answer(job, side, rows, generated=side.model.head is None)
    lines = tables.answers(job.task, rows, found.predicted, found.generated)
    job.output.print_line(f"{when}, three examples of {split}:\n")
    job.output.print_line("\n".join(lines).rstrip() + "\n")


def examples_to_show(task: Task, rows: list[dict]) -> list[dict]:
    """Choose three rows by their labels alone: of each label in turn, or with a few entities
    each."""
    if task.tags_words:
        short = [row for row in rows if len(row["tokens"]) <= 25 and len(set(row["tags"])) > 2]
        return limit_rows(short or rows, 3)
    labels = [row[task.fields[-1]] for row in rows]
    order = [labels.index(label) for label in task.labels if label in labels]
    others = [index for index in range(len(rows)) if index not in order]
    return [rows[index] for index in (order + others)[:3]]
