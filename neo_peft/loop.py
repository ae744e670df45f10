"""The training loop, for every task and method: it trains all parameters that require a gradient.

`take_step` is one optimizer step (AdamW, Loshchilov & Hutter 2019). `steps` gives it batches and a
learning rate, and can resume from any `State`. Several processes share the examples of each step.
Without dropout, the step equals that of one process with all the examples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.amp import GradScaler

from neo_peft.encoding import Examples, batches, collate
from neo_peft.errors import DivergedError, InputError
from neo_peft.kernels.adamw import AdamW
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.settings import Settings
from neo_peft.system import processes

# Training stops after this many consecutive skipped steps. Each one halves the fp16 loss scale.
MAX_SKIPPED = 10


class Step(NamedTuple):
    """The result of one step. With fp16, a step whose gradients are not finite is skipped."""

    step: int  # the first one is 1
    epoch: int  # the first one is 1
    loss: float  # mean over the known targets, in nats
    learning_rate: float  # the rate of this step
    gradient_norm: float | None  # before clipping; None if fp16 skipped the step
    tokens: int  # number of input tokens in all processes


class EpochEnd(NamedTuple):
    """The end of an epoch."""

    epoch: int  # the first one is 1
    step: int  # number of steps taken so far, in all epochs
    loss: float  # mean over the epoch's known targets, in nats


class StepExamples(NamedTuple):
    """The examples of one step, as indices."""

    batches: list[np.ndarray]  # this process's batches: one, or more with gradient accumulation
    all: np.ndarray  # the examples of all processes


@dataclass
class State:
    """What a resumed run needs, except weights, settings, examples and the random state."""

    optimizer: AdamW  # with its moments
    scaler: GradScaler  # the fp16 loss scale
    step: int = 0  # number of steps taken so far, in all epochs
    epoch: int = 1  # the current epoch
    done: int = 0  # number of steps taken in the current epoch
    loss_sum: float = 0.0  # sum of the loss over the current epoch's known targets so far
    labelled: float = 0.0  # number of these targets, or the sum of their weights
    skipped: int = 0  # number of steps that fp16 has skipped so far
    consecutive_skips: int = 0  # number of consecutive skipped steps up to now

    def next_epoch(self) -> None:
        self.epoch, self.done, self.loss_sum, self.labelled = self.epoch + 1, 0, 0.0, 0.0


def fit(
    model: TunedModel, examples: Examples, settings: Settings, progress: Progress = no_progress
) -> int:
    """Train a model on encoded examples and return the number of steps."""
    state = make_state(model, settings)
    for event in steps(model, examples, settings, state, progress):
        if isinstance(event, EpochEnd):
            state.next_epoch()
    return state.step


def steps(
    model: TunedModel, examples: Examples, settings: Settings, state: State, progress: Progress
) -> Iterator[Step | EpochEnd]:
    """Train from a state to the end. Yield a Step after each step and an EpochEnd after each epoch.

    At each yield the state is complete: training can resume from it. After an EpochEnd the caller
    calls `state.next_epoch()`, once the epoch is scored: until then a checkpoint belongs to it.
    """
    if not len(examples):
        raise InputError("there is no example to train on")
    per_epoch = len(split_into_steps(np.arange(len(examples)), settings))
    total_steps = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    while (epoch_start := (state.epoch - 1) * per_epoch) < total_steps:
        model.train()
        order = epoch_order(len(examples), settings.seed, state.epoch)
        remaining = split_into_steps(order, settings)[state.done : total_steps - epoch_start]
        tokens = [int(examples.lengths[step.all].sum()) for step in remaining]
        bar = progress(remaining, f"epoch {state.epoch}", sum(tokens), tokens)
        for step_examples in bar:
            step = next_step(model, examples, state, step_examples, total_steps, settings)
            bar.set_postfix_str(f"loss {step.loss:.4f}", refresh=False)
            yield step
        yield EpochEnd(state.epoch, state.step, state.loss_sum / (state.labelled or 1))


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return a random order of an epoch's examples. It depends on seed and epoch only, so that a
    resumed run gets the same order."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def split_into_steps(order: np.ndarray, settings: Settings) -> list[StepExamples]:
    """Split an epoch's examples into those of each step."""
    size = settings.batch_size * settings.gradient_accumulation * processes.world
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [StepExamples(list(batches(part, settings.batch_size)), part) for part in parts]


def next_step(
    model: TunedModel,
    examples: Examples,
    state: State,
    step_examples: StepExamples,
    total_steps: int,
    settings: Settings,
) -> Step:
    """Take the next step and update the state."""
    rate = learning_rate_at(state.step, total_steps, settings)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    collated = [collate(examples, chosen) for chosen in step_examples.batches if len(chosen)]
    # Every process has all examples, so it can count targets and tokens without communication.
    labelled = float(examples.labelled[step_examples.all].sum())
    try:
        loss, norm = take_step(
            model, state.optimizer, state.scaler, collated, labelled, settings.clip_norm
        )
        state.consecutive_skips = 0 if math.isfinite(norm) else state.consecutive_skips + 1
        if state.consecutive_skips == MAX_SKIPPED:
            raise DivergedError(f"{MAX_SKIPPED} gradients in a row were not finite, the last one")
    except DivergedError as error:
        fp32 = "" if model.compute_dtype == torch.float32 else ", or --precision fp32"
        where = f"at step {state.step + 1} (epoch {state.epoch})"
        raise DivergedError(f"{error} {where}: try a smaller --learning-rate{fp32}") from None
    state.step, state.done = state.step + 1, state.done + 1
    state.loss_sum, state.labelled = state.loss_sum + loss * labelled, state.labelled + labelled
    state.skipped += state.consecutive_skips > 0
    tokens = int(examples.lengths[step_examples.all].sum())
    return Step(state.step, state.epoch, loss, rate, norm if math.isfinite(norm) else None, tokens)


class StepResult(NamedTuple):
    """The result of `take_step`, over the batches of all processes."""

    loss: float  # mean over the known targets, in nats
    norm: float  # the gradient's norm before clipping


def take_step(
    model: TunedModel,
    optimizer: AdamW,
    scaler: GradScaler,
    collated: list[Batch],
    labelled: float,
    clip_norm: float,
) -> StepResult:
    """Take one optimizer step with the summed gradients of all processes' batches.

    `labelled` is the number of known targets in all batches of all processes, or the sum of their
    weights. The loss is divided by it, so that four batches of two examples give the same step as
    one of eight. If the gradient is not finite, the weights stay: fp16 reduces the loss scale,
    other precisions raise DivergedError. A loss that is not finite always raises it.
    """
    loss_sum = 0.0
    for batch in collated:
        loss = model.loss(batch.to(model.device)) / (labelled or 1)
        scaler.scale(loss).backward()
        loss_sum += float(loss.detach())
    loss_sum = processes.total(loss_sum)
    if not math.isfinite(loss_sum):
        raise DivergedError(f"the loss is {loss_sum}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))
    if not math.isfinite(norm) and not scaler.is_enabled():
        raise DivergedError(f"the norm of the gradient is {norm}")
    scaler.step(optimizer)
    scaler.update()
    for parameter in parameters:
        parameter.grad = None
    return StepResult(loss_sum, norm)


def learning_rate_at(step: int, total_steps: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 0. In a warm-up it rises linearly, from 0
    at step 0. Then it falls linearly; it would be 0 one step after the last one."""
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return settings.learning_rate * (total_steps - step) / max(1, total_steps - warmup)


def make_state(model: TunedModel, settings: Settings) -> State:
    """Return the state before the first step. Share the weights, and set the seed of dropout."""
    scaler = GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)
    # The first `scale` call initialises the scaler; a process without examples has no other call.
    scaler.scale(torch.zeros((), device=model.device))
    processes.broadcast(model.trainable().values())
    torch.manual_seed(settings.seed + processes.process_index)  # for dropout
    return State(make_optimizer(model, settings), scaler)


def make_optimizer(model: TunedModel, settings: Settings) -> AdamW:
    """Return AdamW for the trainable parameters, with weight decay for matrices only."""
    trainable = model.trainable().values()
    matrices = [p for p in trainable if p.dim() > 1]
    others = [p for p in trainable if p.dim() <= 1]
    groups = ((matrices, settings.weight_decay), (others, 0.0))
    return AdamW(groups, settings.learning_rate)
