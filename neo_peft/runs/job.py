"""Load what a run needs, and score its two models: the untuned base and the tuned model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import Splits, limit_rows
from neo_peft.decoding import Evaluation, evaluate, score
from neo_peft.encoding import Encoder, Examples
from neo_peft.methods import untuned_model
from neo_peft.model import TunedModel
from neo_peft.progress import Progress
from neo_peft.runs import loading, tables
from neo_peft.runs.class_weights import label_weights, note, weigh
from neo_peft.runs.folder import CHECKPOINTS
from neo_peft.runs.generation import evaluate_generated
from neo_peft.runs.predictions import PredictionKind, reported_split, write_predictions
from neo_peft.runs.refused_rows import encode_split
from neo_peft.runs.selection import refuse_metric
from neo_peft.runs.shared import (
    SHARED,
    Shared,
    base_conditions,
    computing_conditions,
    head_digest,
    label_conditions,
)
from neo_peft.settings import Settings, task_of
from neo_peft.system import processes
from neo_peft.tasks import Task, get_task

if TYPE_CHECKING:
    from neo_peft.runs.run_bar import RunBar

PrintLine = Callable[[str], None]
# The cost of a token where text is generated, compared with one that is scored; measured on
# neo-mini. A tuned model ends its text after the label.
GENERATED = {"before": 2.0, "after": 1.3}


class Output(NamedTuple):
    """Where a run writes its files, and how it shows its progress."""

    folder: Path  # the run's folder
    print_line: PrintLine  # prints one line
    progress: Progress  # shows a progress bar
    start_time: float  # time.monotonic() at the start, minus the seconds before a resume
    run_bar: "RunBar | None" = None  # the bar over the whole run, while one is open

    def counting(self, cost: float = 1) -> Progress:
        """Return a progress bar that counts in the bar of the run, with `cost` for each token."""
        return self.run_bar.counting(self.progress, cost) if self.run_bar else self.progress

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
    shared: Shared  # keeps predictions without tuning, and the base in a study

    @property
    def scored_splits(self) -> list[str]:
        return [name for name in self.rows if name != "train"]


def prepare(
    settings: Settings,
    output: Output,
    resumed_threads: int | None = None,
    shared: Shared | None = None,
) -> Job:
    """Load the data and the base model, add the method, encode the rows.

    shared: what the runs of a study share; by default the run's own.

    A resumed run keeps its recorded thread count, and does not load `--adapter` again: its
    checkpoint has the weights.
    """
    splits = load_splits(
        get_task(settings.task),
        settings.data,
        settings.protocol,
        settings.seed,
        settings.labels,
        settings.columns,
        output.progress,
    )
    settings = replace(settings, labels=splits.labels)
    task = task_of(settings)
    refuse_metric(task, settings)
    rows = limited_rows(splits, settings.train_limit, settings.eval_limit)
    to_load = settings
    if resumed_threads:
        to_load = replace(settings, threads=resumed_threads, adapter=None)
    shared = shared or Shared(output.folder / CHECKPOINTS / SHARED)
    tuned = loading.load_to_train(to_load, shared.base_for(to_load))
    names = output.progress(rows, "encode", len(rows))
    examples = {
        name: encode_split(tuned.encoder, rows[name], name, splits.named()[name]) for name in names
    }
    if settings.class_weights:
        weights = label_weights(task, rows["train"], settings.class_weights)
        examples["train"] = weigh(tuned.model, tuned.encoder, examples["train"], weights)
        tuned.notes.append(note(weights))
    trainable = sum(parameter.numel() for parameter in tuned.model.trainable().values())
    return Job(
        settings, output, task, splits, rows, examples, tuned, trainable, tuned.total, shared
    )


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
    is_untuned: bool = False  # whether it is the untuned base


def untuned_base(job: Job) -> ScoredModel:
    """Return the untuned base, as it is scored before tuning.

    It tags words with the untrained head, whose weights depend on the seed. For a classification
    task it has no head, and the task's instruction is in front of every text.
    """
    model = untuned_model(job.tuned.model)
    has_head = model.head is not None
    encoder = replace(job.tuned.encoder, with_head=has_head)
    return ScoredModel(model, encoder, "" if has_head else job.task.instruction, is_untuned=True)


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


def score_model(
    job: Job, scored: ScoredModel, when: str, scores: Scores, known: dict[str, list] | None = None
) -> None:
    """Print three predictions, then score each split but train, and write its predictions.

    when: "before" or "after" tuning.
    scores: gets the new scores.
    known: the predictions of the model that have been computed already, by split.
    """
    show_predictions(job, scored, f"{when.capitalize()} tuning")
    for generated in (False, True) if job.settings.generate else (False,):
        for split in job.scored_splits:
            if not generated and split in (known or {}):
                evaluation = Evaluation(known[split])
            else:
                examples = encode(job, scored, split)
                progress = job.output.counting(GENERATED[when] if generated else 1)
                evaluation = predict_examples(job, scored, examples, generated, progress)
            keep_predictions(job, PredictionKind(when, generated), split, evaluation, scores)


def encode(job: Job, scored: ScoredModel, split: str) -> Examples:
    """Return the rows of a split, encoded for a model: those of the run if its encoder is equal."""
    is_equal = scored.encoder == job.tuned.encoder
    return job.examples[split] if is_equal else scored.encoder(job.rows[split])


def predict_examples(
    job: Job, scored: ScoredModel, examples: Examples, generated: bool, progress: Progress
) -> Evaluation:
    """Predict examples: by free generation, else by the head or by label probabilities.

    The predictions of the untuned base are computed once (see `Shared`).
    """

    def predict() -> Evaluation:
        return (evaluate_generated if generated else evaluate)(
            scored.model,
            scored.encoder,
            examples,
            scored.instruction,
            job.settings.batch_size,
            progress=progress,
        )

    def predict_as_json() -> list:
        evaluation = predict()
        return [evaluation.predicted, evaluation.generated]

    if not scored.is_untuned:
        return predict()
    depends_on = {
        "kind": "generated" if generated else "before",
        **base_conditions(job.tuned),
        **computing_conditions(job.tuned),
        "base_dtype": str(scored.model.transformer.wte.weight.dtype),
        "head weights": head_digest(scored.model),
        **label_conditions(scored.encoder),
        "instruction": scored.instruction,
        "examples": examples.digest(),
        "words": None if examples.word_counts is None else examples.word_counts.tolist(),
        "batch_size": job.settings.batch_size,
    }
    predicted, texts = job.shared.once(depends_on, predict_as_json)
    return Evaluation(predicted, generated=texts)


def show_predictions(job: Job, scored: ScoredModel, heading: str) -> None:
    """Print three examples of test with their predictions; a model without a head generates
    text."""
    split, generated = reported_split(job.rows), scored.model.head is None
    rows = examples_to_show(job.task, job.rows[split])
    examples, progress = scored.encoder(rows), job.output.progress
    evaluation = predict_examples(job, scored, examples, generated, progress)
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
