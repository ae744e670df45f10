"""The training loop, one for every task and method: an update of whatever requires a gradient, over and over.

`update` is one optimizer step (AdamW, Loshchilov & Hutter 2019); `fit` gives it the batches and the learning rate.
Several processes (processes.py) share out each update: they take the step that one with all the examples would.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.amp import GradScaler

from neo_peft import processes
from neo_peft.data import UNKNOWN, Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.settings import Settings


def make_optimizer(model: TunedModel, settings: Settings) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters; matrices decay, biases and norms do not."""
    trainable = model.trainable().values()
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """Compute the learning rate of an update (from 0): a linear rise over the warm-up, then linear to zero."""
    warmup = math.ceil(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return settings.learning_rate * (steps - step) / max(1, steps - warmup)


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the examples for an epoch: a function of seed and epoch alone, so that a run can go on anywhere."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def windows(order: np.ndarray, settings: Settings) -> list[list[np.ndarray]]:
    """Cut an epoch into updates, each of one batch or, with accumulation, of several."""
    cut = list(batches(order, settings.batch_size))
    size = settings.gradient_accumulation
    return [cut[begin : begin + size] for begin in range(0, len(cut), size)]


def labelled(window: list[Batch]) -> int:
    return sum(int((batch.targets != UNKNOWN).sum()) for batch in window)


def update(
    model: TunedModel, optimizer: torch.optim.Optimizer, scaler: GradScaler, window: list[Batch], clip_norm: float
) -> tuple[float, float]:
    """Do one update over a window of batches; return its loss, in nats per labelled token, and the gradient's norm.

    The loss of the whole window is divided by the labelled tokens of the whole window, so that four batches of
    two are one batch of eight, however the labels fall. Tokens, loss and gradients are summed over all processes.
    Raises InputError on a loss or gradient that is not finite, in all processes alike.
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
    scaler.step(optimizer)  # under fp16 a gradient that is not finite skips the step, and the scale shrinks
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
) -> int:
    """Train a model on encoded examples, and return the number of updates.

    `after_step` gets a line of the record and the number of tokens read; `after_epoch` gets the epoch (from 1),
    the number of updates so far and the mean training loss.
    """
    if not len(examples):
        raise InputError("there is no example to train on")
    per_epoch = len(windows(np.arange(len(examples)), settings))
    steps = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    optimizer = make_optimizer(model, settings)
    scaler = GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)
    scaler.scale(torch.zeros((), device=model.device))  # starts it, though a process may have no example to scale
    processes.copy_first(model.trainable().values())
    torch.manual_seed(settings.seed + processes.rank)  # of dropout
    step = 0
    for epoch in range(1, math.ceil(steps / per_epoch) + 1):
        model.train()
        losses, weights = [], []
        cut = windows(epoch_order(len(examples), settings.seed, epoch), settings)[: steps - step]
        bar = progress(cut, f"epoch {epoch}", len(cut))
        began, tokens = time.monotonic(), 0
        for chosen in bar:
            rate = rate_at(step, steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            window = [collate(examples, part) for part in chosen if len(part)]
            try:
                loss, norm = update(model, optimizer, scaler, window, settings.clip_norm)
            except InputError as error:
                raise InputError(
                    f"{error} at step {step + 1} (epoch {epoch}): try a smaller --learning-rate, or --precision fp32"
                ) from None
            step += 1
            losses.append(loss)
            weights.append(processes.total(labelled(window)))
            line = {"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate}
            line["gradient_norm"] = norm if math.isfinite(norm) else None
            read = processes.total(sum(len(batch.ids) for batch in window))
            tokens += read
            bar.set_postfix_str(f"loss {loss:.4f}, {tokens / (time.monotonic() - began):,.0f} tokens/s", refresh=False)
            after_step(line, read)
        after_epoch(epoch, step, float(np.average(losses, weights=weights)))
    return step
