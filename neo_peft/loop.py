"""The training loop, one for every task and method: steps on whatever requires a gradient.

`take_step` is one optimizer step (AdamW, Loshchilov & Hutter 2019). `steps` gives it batches and
a learning rate, and can continue from any `State`. Several processes (processes.py) share out
each step: they take the one that a single process with all the examples would take.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.amp import GradScaler

from neo_peft import processes
from neo_peft.encoding import Examples, batches, collate
from neo_peft.errors import DivergedError, InputError
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.settings import Settings

# Steps in a row that fp16 may skip; the scale is then a thousandth of what it was.
MOST_SKIPPED = 10


class Step(NamedTuple):
    """A step that was taken."""

    step: int  # from 1
    epoch: int  # from 1
    loss: float  # in nats per labelled token
    learning_rate: float
    gradient_norm: float | None  # None where fp16 skipped the step
    tokens: int  # that it read, of all processes


class EpochEnd(NamedTuple):
    """An epoch that is over."""

    epoch: int  # from 1
    step: int  # steps taken so far
    loss: float  # the epoch's mean, in nats per labelled token


class Window(NamedTuple):
    """The examples of one step."""

    mine: list[np.ndarray]  # this process's batches
    all: np.ndarray  # those of all processes together


@dataclass
class State:
    """Where training stands; with weights, settings and examples it decides what follows."""

    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    step: int = 0  # steps taken so far
    epoch: int = 1  # the current one
    done: int = 0  # its steps that are taken
    loss_sum: float = 0.0  # the loss summed over its labelled tokens so far
    labelled: int = 0  # how many those are
    skipped: int = 0  # steps that fp16 has skipped
    skipped_last: int = 0  # how many of them came last, in a row

    def next_epoch(self) -> None:
        self.epoch, self.done, self.loss_sum, self.labelled = self.epoch + 1, 0, 0.0, 0


def fit(
    model: TunedModel, examples: Examples, settings: Settings, progress: Progress = no_progress
) -> int:
    """Train a model on encoded examples, and return the number of steps."""
    state = make_state(model, settings)
    for event in steps(model, examples, settings, state, progress):
        if isinstance(event, EpochEnd):
            state.next_epoch()
    return state.step


def steps(
    model: TunedModel, examples: Examples, settings: Settings, state: State, progress: Progress
) -> Iterator[Step | EpochEnd]:
    """Train from a state on. Yield each step that was taken, and each epoch that is over.

    Whenever it yields, training can continue from the state as it then is. Who gets an EpochEnd
    calls `state.next_epoch()` when all is done that belongs to the epoch, such as its scores.
    """
    if not len(examples):
        raise InputError("there is no example to train on")
    per_epoch = len(windows(np.arange(len(examples)), settings))
    last = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    while (first := (state.epoch - 1) * per_epoch) < last:
        model.train()
        order = epoch_order(len(examples), settings.seed, state.epoch)
        left = windows(order, settings)[state.done : last - first]
        bar = progress(left, f"epoch {state.epoch}", len(left))
        began, tokens = time.monotonic(), 0
        for window in bar:
            step = next_step(model, examples, state, window, last, settings)
            tokens += step.tokens
            speed = tokens / (time.monotonic() - began)
            bar.set_postfix_str(f"loss {step.loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
            yield step
        yield EpochEnd(state.epoch, state.step, state.loss_sum / max(1, state.labelled))


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the examples by seed and epoch alone, so that a run can continue anywhere."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def windows(order: np.ndarray, settings: Settings) -> list[Window]:
    """Cut an epoch into steps, each of one batch of each process or, with accumulation, several."""
    size = settings.batch_size * settings.gradient_accumulation * processes.world
    parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
    return [Window(list(batches(part, settings.batch_size)), part) for part in parts]


def next_step(
    model: TunedModel,
    examples: Examples,
    state: State,
    window: Window,
    last: int,
    settings: Settings,
) -> Step:
    """Take the step that comes next, of `last` in all."""
    rate = learning_rate_at(state.step, last, settings)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    own = [collate(examples, chosen) for chosen in window.mine if len(chosen)]
    # Every process knows the examples of all: their numbers need not be summed over processes.
    labelled = int(examples.labelled[window.all].sum())
    try:
        loss, norm = take_step(
            model, state.optimizer, state.scaler, own, labelled, settings.clip_norm
        )
        state.skipped_last = 0 if math.isfinite(norm) else state.skipped_last + 1
        if state.skipped_last == MOST_SKIPPED:
            many = f"in {MOST_SKIPPED} updates on end, the last of them"
            raise InputError(f"the gradient was not finite {many}")
    except InputError as error:
        wider = "" if model.compute_dtype == torch.float32 else ", or --precision fp32"
        where = f"at step {state.step + 1} (epoch {state.epoch})"
        raise DivergedError(f"{error} {where}: try a smaller --learning-rate{wider}") from None
    state.step, state.done = state.step + 1, state.done + 1
    state.loss_sum, state.labelled = state.loss_sum + loss * labelled, state.labelled + labelled
    state.skipped += state.skipped_last > 0
    tokens = int(examples.lengths[window.all].sum())
    finite = norm if math.isfinite(norm) else None
    return Step(state.step, state.epoch, loss, rate, finite, tokens)


class StepResult(NamedTuple):
    loss: float  # in nats per labelled token
    norm: float  # of the gradient


def take_step(
    model: TunedModel,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    own: list[Batch],
    labelled: int,
    clip_norm: float,
) -> StepResult:
    """Take one step over this process's `own` batches. All processes together have `labelled`
    labelled tokens.

    The loss of all batches is divided by all labelled tokens, so that four batches of two are one
    batch of eight, however the labels fall. Loss and gradients are summed over all processes. Under
    fp16 a gradient that is not finite leaves the weights as they are, and the scale shrinks. Raises
    InputError in all processes on a loss that is not finite, and without a scaler on such a
    gradient; the weights stay.
    """
    loss_sum = 0.0
    for batch in own:
        loss = model.loss(batch.to(model.device)) / max(1, labelled)
        scaler.scale(loss).backward()
        loss_sum += float(loss.detach())
    loss_sum = processes.total(loss_sum)
    if not math.isfinite(loss_sum):
        raise InputError(f"the loss is {loss_sum}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))
    if not math.isfinite(norm) and not scaler.is_enabled():
        raise InputError(f"the norm of the gradient is {norm}")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum, norm)


def learning_rate_at(step: int, last: int, settings: Settings) -> float:
    """Return the learning rate of a step (from 0), of `last` in all: a linear rise over the
    warm-up, then linear to zero."""
    warmup = math.ceil(last * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return settings.learning_rate * (last - step) / max(1, last - warmup)


def make_state(model: TunedModel, settings: Settings) -> State:
    """Return the state before the first step."""
    scaler = GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)
    # Starts it, though a process may have no example to scale.
    scaler.scale(torch.zeros((), device=model.device))
    processes.broadcast(model.trainable().values())
    torch.manual_seed(settings.seed + processes.process_index)  # of dropout
    return State(make_optimizer(model, settings), scaler)


def make_optimizer(model: TunedModel, settings: Settings) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters; matrices decay, biases and norms do not."""
    trainable = model.trainable().values()
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)
