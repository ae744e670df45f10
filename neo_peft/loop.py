"""The training loop, one for every task and method: an update of whatever requires a gradient, over
and over.

`update` is one optimizer step (AdamW, Loshchilov & Hutter 2019); `fit` gives it the batches and the
learning rate, and can go on from any `State`. Several processes (processes.py) share out each
update: they take the step that one with all the examples would.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.amp import GradScaler

from neo_peft import processes
from neo_peft.encoding import UNKNOWN, Examples, batches, collate
from neo_peft.errors import DivergedError, InputError
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.settings import Settings

MOST_SKIPPED = (
    10  # updates on end that fp16 may skip; the scale is then a thousandth of what it was
)


def make_optimizer(model: TunedModel, settings: Settings) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters; matrices decay, biases and norms do not."""
    trainable = model.trainable().values()
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate
    )


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """Compute the learning rate of an update (from 0): a linear rise over the warm-up, then linear
    to zero."""
    warmup = math.ceil(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return settings.learning_rate * (steps - step) / max(1, steps - warmup)


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the examples for an epoch: a function of seed and epoch alone, so that a run can go
    on anywhere."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def windows(order: np.ndarray, settings: Settings) -> list[list[np.ndarray]]:
    """Cut an epoch into updates, each of one batch or, with accumulation, of several."""
    cut = list(batches(order, settings.batch_size))
    size = settings.gradient_accumulation
    return [cut[begin : begin + size] for begin in range(0, len(cut), size)]


def labelled(window: list[Batch]) -> int:
    return sum(int((batch.targets != UNKNOWN).sum()) for batch in window)


@dataclass
class State:
    """Where training stands: with the weights, the settings and the examples it decides all that
    follows.

    `step` updates are done, `done` of them in `epoch` (from 1), whose loss is `loss_sum` over
    `labelled` tokens. fp16 has skipped `skipped` updates, `skipped_last` of them without one
    between.
    """

    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    step: int = 0
    epoch: int = 1
    done: int = 0
    loss_sum: float = 0.0
    labelled: int = 0
    skipped: int = 0
    skipped_last: int = 0


def make_state(model: TunedModel, settings: Settings) -> State:
    """Make the state before the first update."""
    scaler = GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)
    # starts it, though a process may have no example to scale
    scaler.scale(torch.zeros((), device=model.device))
    processes.copy_first(model.trainable().values())
    torch.manual_seed(settings.seed + processes.process_index)  # of dropout
    return State(make_optimizer(model, settings), scaler)


def update(
    model: TunedModel,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    window: list[Batch],
    clip_norm: float,
) -> tuple[float, float]:
    """Do one update over a window of batches; return its loss, in nats per labelled token, and the
    gradient's norm.

    The loss of the whole window is divided by the labelled tokens of the whole window, so that four
    batches of two are one batch of eight, however the labels fall. Tokens, loss and gradients are
    summed over all processes. Under fp16 a gradient that is not finite leaves the weights as they
    are, and the scale shrinks. Raises InputError, in all processes alike, on a loss that is not
    finite, and without a scaler on such a gradient; the weights stay.
    """
    tokens = processes.total(labelled(window))
    total = 0.0
    for batch in window:
        loss = model.loss(batch.to(model.device)) / max(1, tokens)
        scaler.scale(loss).backward()
        total += float(loss.detach())
    total = processes.total(total)
    if not math.isfinite(total):
        raise InputError(f"the loss is {total}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))
    if not math.isfinite(norm) and not scaler.is_enabled():
        raise InputError(f"the norm of the gradient is {norm}")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def fit(
    model: TunedModel,
    examples: Examples,
    settings: Settings,
    after_step: Callable[[dict, int], None] = lambda line, tokens: None,
    after_epoch: Callable[[int, int, float], None] = lambda epoch, step, loss: None,
    progress: Progress = no_progress,
    state: State | None = None,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Train a model on encoded examples, from the start or from a state on, and return the number
    of updates.

    `after_step` gets a line of the record and the number of tokens read; `after_epoch` gets the
    epoch (from 1), the number of updates so far and the mean training loss. `between` is called
    where training could go on from the state as it is: after each update, and after `after_epoch`.
    """
    if not len(examples):
        raise InputError("there is no example to train on")
    state = state or make_state(model, settings)
    per_epoch = len(windows(np.arange(len(examples)), settings))
    steps = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    while (state.epoch - 1) * per_epoch < steps:
        model.train()
        order = epoch_order(len(examples), settings.seed, state.epoch)
        cut = windows(order, settings)[: steps - (state.epoch - 1) * per_epoch][state.done :]
        bar = progress(cut, f"epoch {state.epoch}", len(cut))
        began, read = time.monotonic(), 0
        for chosen in bar:
            window = [collate(examples, part) for part in chosen if len(part)]
            line = next_update(model, state, window, steps, settings)
            tokens = processes.total(sum(len(batch.ids) for batch in window))
            read += tokens
            speed = read / (time.monotonic() - began)
            bar.set_postfix_str(f"loss {line['loss']:.4f}, {speed:,.0f} tokens/s", refresh=False)
            after_step(line, tokens)
            between()
        after_epoch(state.epoch, state.step, state.loss_sum / max(1, state.labelled))
        state.epoch, state.done, state.loss_sum, state.labelled = state.epoch + 1, 0, 0.0, 0
        between()
    return state.step


def next_update(
    model: TunedModel, state: State, window: list[Batch], steps: int, settings: Settings
) -> dict:
    """Do the update that comes next, of `steps` in all, and return its line of the record."""
    rate = rate_at(state.step, steps, settings)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    try:
        loss, norm = update(model, state.optimizer, state.scaler, window, settings.clip_norm)
        state.skipped_last = 0 if math.isfinite(norm) else state.skipped_last + 1
        if state.skipped_last == MOST_SKIPPED:
            raise InputError(
                f"the gradient was not finite in {MOST_SKIPPED} updates on end, the last of them"
            )
    except InputError as error:
        wider = "" if model.compute_dtype == torch.float32 else ", or --precision fp32"
        where = f"at step {state.step + 1} (epoch {state.epoch})"
        raise DivergedError(f"{error} {where}: try a smaller --learning-rate{wider}") from None
    tokens = processes.total(labelled(window))
    state.step, state.done = state.step + 1, state.done + 1
    state.loss_sum, state.labelled = state.loss_sum + loss * tokens, state.labelled + tokens
    state.skipped += state.skipped_last > 0
    line = {"step": state.step, "epoch": state.epoch, "loss": loss, "learning_rate": rate}
    return line | {"gradient_norm": norm if math.isfinite(norm) else None}
