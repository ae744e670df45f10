"""Load what a run needs, and score its two models: the untuned base and the tuned model."""

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
from neo_peft.runs.refused_rows import encode_split
from neo_peft.settings import Settings, task_of
from neo_peft.tasks import Task, get_task

PrintLine = Callable[[str], None]


class Output(NamedTuple):
    """Where a run writes its files, and how it shows its progress."""

    folder: Path  # the run's folder
    print_line: PrintLine  # prints one line
    progress: Progress  # shows a progress bar
    start_time: float  # time.monotonic() at the start, minus the seconds before a resume

    def seconds(self) -> float:
        return round(time.monotonic() - self.start_time, 1)


@dataclass(frozen=True)
class Job:
    """The loaded data and model of a run."""

    settings: Settings  # of the run, with the labels of its data
    output: Output  # where its files and lines go
    task: Task  # with its labels
    splits: Splits  # all rows
    rows: dict[str, list[dict]]  # the rows of each split, limited by the settings
    examples: dict[str, Examples]  # the same rows, encoded
    tuned: loading.LoadedModel  # the model with its method, its encoder and its base
    trainable: int  # number of trainable parameters
    total: int  # number of all parameters

    @property
    def scored_splits(self) -> list[str]:
        return [name for name in self.rows if name != "train"]


def prepare(settings: Settings, output: Output, resumed_threads: int | None = None) -> Job:
    """Load the data and the base model, add the method, encode the rows.

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
    examples = {
        name: encode_split(tuned.encoder, rows[name], name, splits.named()[name]) for name in names
    }
    trainable = sum(parameter.numel() for parameter in tuned.model.trainable().values())
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    return Job(settings, output, task, splits, rows, examples, tuned, trainable, total)


def limited_rows(
    splits: Splits, train_limit: int | None, eval_limit: int | str | None
) -> dict[str, list[dict]]:
    """Return the rows of each split: at most `train_limit` of train, `eval_limit` of each other."""
    return {
        name: limit_rows(rows, train_limit if name == "train" else eval_limit)
        for name, rows in splits.named().items()
    }


class ScoredModel(NamedTuple):
    """A model as it is scored: the untuned base, or the tuned model."""

    model: TunedModel  # untuned or tuned
    encoder: Encoder  # the encoder for its head
    instruction: str = ""  # in front of every text


def untuned_base(job: Job) -> ScoredModel:
    """Return the untuned base, as it is scored before tuning.

    It tags words with the untrained head, whose weights depend on the seed. For a classification
    task it has no head, and the task's instruction is in front of every text.
    """
    model = untuned_model(job.tuned.model)
    has_head = model.head is not None
    encoder = replace(job.tuned.encoder, with_head=has_head)
    return ScoredModel(model, encoder, "" if has_head else job.task.instruction)


# The scores of a run, as in run.json: {kind: {when: {split: scores}}}.
# kind: "scores" of predictions by a head or by label probabilities; "generated" of free generation.
# when: as in `PredictionKind`.
Scores = dict[str, dict[str, dict[str, dict]]]


def keep_predictions(
    job: Job, kind: PredictionKind, split: str, evaluation: Evaluation, scores: Scores
) -> None:
    """Add the scores of a split's predictions to `scores`, and write the predictions to a file."""
    rows = job.rows[split]
    kind_scores = scores["generated" if kind.generated else "scores"]
    kind_scores.setdefault(kind.when, {})[split] = score(job.task, rows, evaluation.predicted)
    write = partial(write_predictions, job.output.folder, kind, split, rows, evaluation)
    processes.on_first_process(write)


def score_model(job: Job, scored: ScoredModel, when: str, scores: Scores) -> None:
    """Print three predictions, then score each split but train, and write its predictions.

    when: "before" or "after" tuning.
    scores: gets the new scores.
    """
    show_predictions(job, scored, f"{when.capitalize()} tuning")
    for generated in (False, True) if job.settings.generate else (False,):
        for split in job.scored_splits:
            evaluation = predict_rows(job, scored, job.rows[split], generated, job.output.progress)
            keep_predictions(job, PredictionKind(when, generated), split, evaluation, scores)


def predict_rows(
    job: Job,
    scored: ScoredModel,
    rows: list[dict],
    generated: bool,
    progress: Progress = no_progress,
) -> Evaluation:
    """Predict rows: by free generation, else by the head or by label probabilities."""
    predict = evaluate_generated if generated else evaluate
    return predict(
        scored.model,
        scored.encoder,
        scored.encoder(rows),
        scored.instruction,
        job.settings.batch_size,
        progress=progress,
    )


def show_predictions(job: Job, scored: ScoredModel, heading: str) -> None:
    """Print three examples of test with their predictions; a model without a head generates
    text."""
    split = reported_split(job.rows)
    rows = examples_to_show(job.task, job.rows[split])
    evaluation = predict_rows(job, scored, rows, generated=scored.model.head is None)
    lines = tables.example_lines(job.task, rows, evaluation.predicted, evaluation.generated)
    job.output.print_line(f"{heading}, three examples of {split}:\n")
    job.output.print_line("\n".join(lines).rstrip() + "\n")


def examples_to_show(task: Task, rows: list[dict]) -> list[dict]:
    """Return three rows, chosen by their gold labels alone.

    For classification: the first row of each label, then other rows. For tagging: sentences of at
    most 25 words with at least three different tags, where there are any.
    """
    if task.is_tagging:
        short = [row for row in rows if len(row["tokens"]) <= 25 and len(set(row["tags"])) > 2]
        return limit_rows(short or rows, 3)
    labels = [row[task.fields[-1]] for row in rows]
    first_of_label = [labels.index(label) for label in task.labels if label in labels]
    others = [index for index in range(len(rows)) if index not in first_of_label]
    return [rows[index] for index in (first_of_label + others)[:3]]
