"""The time that a run takes, from a few of its batches that are measured before it starts.

Measured are two batches of training (forward and backward), the median one and the largest, a step
of AdamW on copies, and two batches of scoring. A batch of N tokens is assumed to take `fixed +
for_token · N` seconds. Then the run's own batches and tokens are counted: those of all epochs, and
of everything that is scored.

Nothing that decides the run's results changes: the parameters are only copied, the gradients are
dropped, and the random generators get their states back.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from neo_peft.decoding import evaluate
from neo_peft.encoding import collate
from neo_peft.kernels.adamw import AdamW
from neo_peft.model import Batch, TunedModel
from neo_peft.runs import selection
from neo_peft.runs.activations import prompt_tokens
from neo_peft.runs.cost import step_batches, tokens_of
from neo_peft.runs.generation import MAX_NEW_TOKENS
from neo_peft.runs.head_alone import is_scored
from neo_peft.runs.job import GENERATED, Job
from neo_peft.system import processes

COPIED = 2_000_000  # at most this many numbers are copied, to measure AdamW
# At its start a run measures for no more than this share of its time, or for these seconds.
SHARE, LEAST_SECONDS = 0.02, 1.0
PROBED = 2  # texts of the first, rough measure
HASHED = 2**22  # bytes that are hashed, to measure how fast a checkpoint is saved
SAVED = 4  # the seconds of writing and hashing a file, over those of hashing it; measured
END = 1.5  # seconds for the learning curves and the files of a run; measured on neo-mini

Seconds = np.ndarray  # (2,): by the clock, and of the processor


@dataclass(frozen=True)
class Time:
    """How long a run takes from here on."""

    steps: int  # number of training steps
    step: Seconds  # of a training step, on average
    training: Seconds  # of all training steps
    scoring: Seconds  # of everything that is scored
    saving: Seconds  # of checkpoints
    texts: int  # number of texts that were measured
    loading: float  # seconds of the processor until now

    @property
    def total(self) -> Seconds:
        return self.training + self.scoring + self.saving + END


class Work(NamedTuple):
    """Batches and tokens that go through the model."""

    batches: float  # number of batches
    tokens: float  # number of tokens in all of them

    def times(self, factor: float) -> "Work":
        return Work(self.batches * factor, self.tokens * factor)

    def plus(self, *others: "Work") -> "Work":
        return Work(*map(sum, zip(self, *others, strict=True)))


class Line(NamedTuple):
    """Seconds of a batch of N tokens: fixed + for_token · N."""

    fixed: Seconds  # of a batch without tokens
    for_token: Seconds  # of one more token

    @classmethod
    def through(cls, measured: list[tuple[int, Seconds]]) -> "Line":
        """Return the line through two measured batches (tokens, seconds); of one, and where the
        line would go below zero, the seconds are proportional to the tokens."""
        (first, before), (last, after) = measured[0], measured[-1]
        slope = (after - before) / max(1, last - first)
        fixed = before - slope * first
        if (slope > 0).all() and (fixed >= 0).all():
            return cls(fixed, slope)
        mean = sum(seconds for _, seconds in measured) / sum(tokens for tokens, _ in measured)
        return cls(np.zeros(2), mean)

    def of(self, work: Work) -> Seconds:
        return work.batches * self.fixed + work.tokens * self.for_token


def time_of(job: Job, thorough: bool = True) -> Time:
    """Measure a few batches and return the time that the run takes.

    thorough: if False, as at a run's start, a run that is not much longer than measuring it is
        measured by two texts only.
    """
    loading = time.process_time()
    steps, training = training_work(job)
    scoring = scoring_work(job, steps)
    with unchanged(job.tuned.model):
        measured = Measured(job)
        lines = measured.roughly()
        run = lines[0].of(training) + lines[1].of(scoring)
        needed = lines[0].of(measured.training_work) + lines[1].of(measured.scoring_work)
        if thorough or needed[0] <= max(LEAST_SECONDS, SHARE * run[0]):
            lines = measured.well()
        shown = shown_tokens(job) and shown_tokens(job) * measured.generate()
        adamw = optimizer_seconds(job.tuned.model, job.settings.clip_norm)
    trained = lines[0].of(training) + steps * adamw
    scored, saved = lines[1].of(scoring) + shown, saving_seconds(job, steps)
    return Time(steps, trained / max(1, steps), trained, scored, saved, measured.texts, loading)


# ---- What a run computes


def training_work(job: Job) -> tuple[int, Work]:
    """Return the number of steps of a run, and its training: the batches of all epochs."""
    settings, examples = job.settings, job.examples["train"]
    batches, steps = step_batches(examples, settings), selection.total_steps(examples, settings)
    in_epoch = selection.steps_per_epoch(examples, settings)
    epoch = Work(len(batches), sum(all_tokens(job, batch) for batch in batches))
    return steps, epoch.times(steps / in_epoch)


def all_tokens(job: Job, batch: np.ndarray) -> int:
    """Return the number of tokens of a training batch, with those of the prompt."""
    return tokens_of(job.examples["train"], batch) + prompt_tokens(job.tuned.model)


def scoring_work(job: Job, steps: int) -> Work:
    """Return all that a run with this many steps scores."""
    settings, size = job.settings, job.settings.batch_size * processes.world
    splits = {
        name: Work(math.ceil(len(part) / size), int(part.lengths.sum()))
        for name, part in job.examples.items()
    }
    scored = Work(0, 0).plus(*(splits[name] for name in job.scored_splits))
    in_training = splits["validation"].times(scorings(job, steps))
    after = scored.plus(splits["validation"].times(-1))  # its kept scoring is used again
    work = after.plus(in_training)
    if not settings.no_before:
        work = work.plus(scored)
    if settings.generate:
        generated = GENERATED["after"] + GENERATED["before"] * (not settings.no_before)
        work = work.plus(scored.times(generated))
    if is_scored(job):
        work = work.plus(*splits.values())
    return work


def scorings(job: Job, steps: int) -> int:
    """Return how often validation is scored in this many steps of training."""
    in_epoch = selection.steps_per_epoch(job.examples["train"], job.settings)
    return math.ceil(steps / (job.settings.eval_every or in_epoch))


def shown_tokens(job: Job) -> float:
    """Return how many tokens, one after the other, are generated for the examples that a run shows.
    Before tuning a text rarely ends before the limit, afterwards it ends with its label."""
    if job.tuned.model.head is not None:
        return 0
    after = max(map(len, job.tuned.encoder.label_tokens.values()))
    return after + (0 if job.settings.no_before else MAX_NEW_TOKENS)


def saved_bytes(job: Job, steps: int) -> int:
    """Return the bytes of the files with weights that a run with this many steps writes."""
    weights = sum(p.nbytes for p in job.tuned.model.trainable().values())
    after_scorings = scorings(job, steps)
    checkpoints = after_scorings + steps // job.settings.checkpoint_every
    # A checkpoint has AdamW's averages too; one after a scoring can also have the best weights.
    return weights * (3 * checkpoints + after_scorings + 1)


# ---- Measuring


class Measured:
    """The batches of a run that are measured."""

    def __init__(self, job: Job):
        self.job, self.model, self.texts = job, job.tuned.model, 0
        train, rows = job.examples["train"], job.examples["validation"].row_lengths
        batches = step_batches(train, job.settings)
        batches.sort(key=lambda batch: tokens_of(train, batch))
        self.trained = [batches[len(batches) // 2], batches[-1]]  # the median one, the largest
        order, size = np.argsort(rows, kind="stable"), job.settings.batch_size
        middle = max(0, len(order) // 2 - size // 2)
        self.scored = [order[middle : middle + size], order[-size:]]
        tokens = sum(all_tokens(job, batch) for batch in self.trained)
        self.training_work = Work(len(self.trained), tokens)
        self.scoring_work = Work(
            len(self.scored), sum(int(rows[part].sum()) for part in self.scored)
        )

    def roughly(self) -> tuple[Line, Line]:
        """Return the lines of training and scoring, by two texts each. The first pass also loads
        the code of the libraries, and is not counted."""
        few = self.trained[0][:PROBED], self.scored[0][:PROBED]
        self.train(few[0])
        self.score(few[1])
        return Line.through([self.train(few[0])]), Line.through([self.score(few[1])])

    def well(self) -> tuple[Line, Line]:
        """Return the lines of training and scoring, by whole batches."""
        self.texts = 0
        training = Line.through([self.train(batch) for batch in self.trained])
        return training, Line.through([self.score(batch) for batch in self.scored])

    def train(self, batch: np.ndarray) -> tuple[int, Seconds]:
        """Return the tokens of a training batch, and the seconds of its forward and backward
        pass."""
        self.model.train()
        self.texts += len(batch)

        def forward_and_backward() -> None:
            collated = collate(self.job.examples["train"], batch).to(self.model.device)
            self.model.loss(collated).backward()
            for parameter in self.model.parameters():
                parameter.grad = None

        return all_tokens(self.job, batch), seconds_of(forward_and_backward, self.model.device)

    def score(self, rows: np.ndarray) -> tuple[int, Seconds]:
        """Return the tokens of a batch of validation, and the seconds of its scoring."""
        job = self.job
        self.texts += len(rows)
        examples = job.tuned.encoder([job.rows["validation"][row] for row in rows])
        size = job.settings.batch_size

        def predict() -> None:
            with processes.alone():
                evaluate(self.model, job.tuned.encoder, examples, batch_size=size)

        return int(examples.lengths.sum()), seconds_of(predict, self.model.device)

    @torch.inference_mode()
    def generate(self) -> Seconds:
        """Return the seconds of the next token of the three texts that a run shows."""
        texts, model = 3, self.model.eval()
        one, each = torch.zeros(texts, dtype=torch.long), torch.ones(texts, dtype=torch.long)
        batch = Batch(one, each, torch.arange(texts), one - 1, each).to(model.device)
        return seconds_of(lambda: model.logits(model(batch)), model.device)


def optimizer_seconds(model: TunedModel, clip_norm: float) -> Seconds:
    """Return the seconds of a step of AdamW, measured on copies of at most COPIED numbers."""
    parameters, copies, room = list(model.trainable().values()), [], COPIED
    for parameter in parameters:
        copies.append(parameter.detach().flatten()[:room].clone())
        room -= len(copies[-1])
    for copy in copies:
        copy.grad = copy.clone()
    optimizer = AdamW([(copies, 0.0)], learning_rate=0.0)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(copies, clip_norm or math.inf)
        optimizer.step()

    step()  # the first step makes the averages
    share = sum(map(len, copies)) / sum(parameter.numel() for parameter in parameters)
    return seconds_of(step, model.device) / share


def saving_seconds(job: Job, steps: int) -> Seconds:
    """Return the seconds of writing the files with weights."""
    content = bytes(HASHED)
    hashing = seconds_of(lambda: hashlib.sha256(content).digest(), torch.device("cpu"))
    return SAVED * saved_bytes(job, steps) / HASHED * hashing


def seconds_of(call: Callable[[], None], device: torch.device) -> Seconds:
    """Return the seconds of a call."""
    clocks = time.perf_counter, time.process_time
    before = np.array([clock() for clock in clocks])
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return np.array([clock() for clock in clocks]) - before


@contextmanager
def unchanged(model: TunedModel) -> Iterator[None]:
    """Give the random generators their states back, and drop all gradients."""
    kind, was_training = model.device.type, model.training
    devices = [model.device] if kind == "cuda" else []
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind):
            yield
    finally:
        model.train(was_training)
        for parameter in model.parameters():
            parameter.grad = None
