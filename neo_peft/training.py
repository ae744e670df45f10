"""From settings to a run folder: load, score, train, score again, save. One loop for every task and method.

`run` is the whole way; `fit` is the loop and `update` its step, one optimizer update of what requires a gradient.
"""

import dataclasses
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.amp import GradScaler

from neo_peft import adapter, tables
from neo_peft.base import Base, load_base
from neo_peft.data import UNKNOWN, Examples, batches, collate
from neo_peft.decoding import evaluate, majority_scores, perplexity, score
from neo_peft.errors import InputError
from neo_peft.files import sha256
from neo_peft.hardware import DTYPES, find_device, find_precision, thread_count
from neo_peft.model import Batch, TunedModel, adapted_modules, bare_model, build_model, held_dtype
from neo_peft.progress import Progress, no_progress
from neo_peft.settings import ASSUMED, Settings
from neo_peft.sources import Splits, limit_rows, load_splits
from neo_peft.tasks import Task, get_task

Say = Callable[[str], None]


# ------------------------------------------------------------------------------------------------------ the loop


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


def update(
    model: TunedModel, optimizer: torch.optim.Optimizer, scaler: GradScaler, window: list[Batch], clip_norm: float
) -> tuple[float, float]:
    """Do one update over a window of batches; return its loss, in nats per labelled token, and the gradient's norm.

    The loss of the whole window is divided by the labelled tokens of the whole window, so that four batches of
    two are one batch of eight, however the labels fall. Raises InputError on a loss or gradient that is not finite.
    """
    tokens = sum(int((batch.targets != UNKNOWN).sum()) for batch in window)
    total = 0.0
    for batch in window:
        loss = model.loss(batch.to(model.device), model.prefix()) / max(1, tokens)
        scaler.scale(loss).backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise InputError(f"the loss is {total}")
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
    per_epoch = len(windows(np.arange(len(examples)), settings))
    steps = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    optimizer = make_optimizer(model, settings)
    scaler = GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)
    torch.manual_seed(settings.seed)  # of dropout
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
            window = [collate(examples, part) for part in chosen]
            try:
                loss, norm = update(model, optimizer, scaler, window, settings.clip_norm)
            except InputError as error:
                raise InputError(
                    f"{error} at step {step + 1} (epoch {epoch}): try a smaller --learning-rate, or --precision fp32"
                ) from None
            step += 1
            losses.append(loss)
            weights.append(sum(int((batch.targets != UNKNOWN).sum()) for batch in window))
            line = {"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate}
            line["gradient_norm"] = norm if math.isfinite(norm) else None
            read = sum(len(batch.ids) for batch in window)
            tokens += read
            bar.set_postfix_str(f"loss {loss:.4f}, {tokens / (time.monotonic() - began):,.0f} tokens/s", refresh=False)
            after_step(line, read)
        after_epoch(epoch, step, float(np.average(losses, weights=weights)))
    return step


# ------------------------------------------------------------------------------------------------------- the run


def run(settings: Settings, say: Say = print, progress: Progress = no_progress) -> dict:
    """Do a whole run: load, score the bare base, train, score, save. Return its summary (DESIGN of `--json`).

    Everything that a user may have got wrong is found before the run's folder is made.
    """
    started = time.monotonic()
    task = get_task(settings.task)
    folder = choose_folder(settings)
    device = find_device(settings.device)
    precision = find_precision(settings.precision, device)
    dtype = DTYPES[precision]
    splits = limit_splits(load_splits(task, settings.data, settings.protocol), settings)
    base = load_base(settings.model, held_dtype(settings.method, dtype), device)
    threads = thread_count(settings.threads, base.parameters)
    torch.set_num_threads(threads)
    model = build_model(base.trunk, base.tokenizer, task, settings, dtype)
    counts = {
        "trainable": sum(parameter.numel() for parameter in model.trainable().values()),
        "total": sum(parameter.numel() for parameter in model.parameters()),
    }
    encoder = adapter.encoder_of(base, model, settings)
    examples = {name: encoder(rows) for name, rows in split_rows(splits).items()}
    describe(say, settings, task, splits, base, model, counts, examples, f"{precision} on {device}, {threads} threads")

    scored = [name for name in ("validation", "test") if name in examples]
    rows = split_rows(splits)
    majority = {name: majority_scores(task, splits.train, rows[name]) for name in scored}
    before = score_base(model, base, settings, {name: rows[name] for name in scored}, progress)
    answer = lambda name, **wanted: evaluate(  # noqa: E731
        model, encoder, examples[name], batch_size=settings.batch_size, progress=progress, **wanted
    )
    folder.mkdir(parents=True)
    log = Log(folder)
    best = {"epoch": 0, "score": -1.0}

    def after_epoch(epoch: int, step: int, train_loss: float) -> None:
        line = {"step": step, "epoch": epoch, "train_loss": train_loss}
        evaluation = answer("validation", with_loss=True)
        scores = score(task, splits.validation, evaluation.predicted)
        line |= {"validation_loss": evaluation.loss, "validation": headline(task, scores)}
        if model.head is None:
            line["perplexity"] = perplexity(evaluation.loss)
        if settings.keep == "last" or scores[task.metric] > best["score"]:
            adapter.save_adapter(folder, model, settings, base.tokenizer)
            best.update(epoch=epoch, score=scores[task.metric])
        log.line(line)
        say(epoch_line(task, line, kept=best["epoch"] == epoch))

    steps = fit(model, examples["train"], settings, log.step, after_epoch, progress)
    adapter.load_adapter(folder, model)  # the weights of the epoch that is kept
    after = {name: score(task, rows[name], answer(name).predicted) for name in scored}
    log.close()
    record = {
        "task": task.name,
        "labels": list(task.labels),
        "flags": flags_of(settings),
        "model": settings.model,
        "data": settings.data,
        "protocol": splits.protocol,
        "base": {"fingerprint": base.fingerprint, "parameters": base.parameters},
        "files": {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
        "seed": settings.seed,
        "threads": threads,
        "device": device,
        "precision": precision,
        "versions": versions(),
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **counts,
        "rows": {name: len(part) for name, part in rows.items()},
        "cut": {name: part.cut for name, part in examples.items()},
        "max_length": encoder.max_length,
        "steps": steps,
        "kept_epoch": best["epoch"],
        "scores": {"majority": majority, "before": before, "after": after},
        "assumed": list(ASSUMED[settings.preset][task.name]) if settings.preset else [],
        "seconds": round(time.monotonic() - started, 1),
    }
    adapter.write_record(folder, record)
    conclude(say, task, record, folder, model, scored)
    return summary(task, record, folder)


def choose_folder(settings: Settings) -> Path:
    """Choose the run's folder: `--out`, which must not hold a run yet, or the next free runs/TASK-METHOD."""
    if settings.out:
        folder = Path(settings.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out {folder} holds something already; name a folder that is new")
        if folder.exists():
            folder.rmdir()
        return folder
    name = f"{settings.task}-{settings.method}"
    return next(
        path
        for number in range(1, 1_000_000)
        if not (path := Path("runs", name + (f"-{number}" if number > 1 else ""))).exists()
    )


def limit_splits(splits: Splits, settings: Settings) -> Splits:
    test = limit_rows(splits.test, settings.eval_limit) if splits.test is not None else None
    return dataclasses.replace(
        splits,
        train=limit_rows(splits.train, settings.train_limit),
        validation=limit_rows(splits.validation, settings.eval_limit),
        test=test,
    )


def split_rows(splits: Splits) -> dict[str, list[dict]]:
    rows = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: part for name, part in rows.items() if part is not None}


def score_base(
    model: TunedModel, base: Base, settings: Settings, rows: dict[str, list[dict]], progress: Progress
) -> dict[str, dict]:
    """Score the bare base: tags by the seeded head, answers by the language model behind the task's instruction."""
    task, bare = get_task(settings.task), bare_model(model)
    encoder = adapter.encoder_of(base, bare, settings)
    instruction = task.instruction if bare.head is None else ""
    scores = {}
    for name, part in rows.items():
        evaluation = evaluate(
            bare, encoder, encoder(part), instruction, batch_size=settings.batch_size, progress=progress
        )
        scores[name] = score(task, part, evaluation.predicted)
    return scores


class Log:
    """metrics.jsonl, which holds no clock so that equal runs give equal files, and timings.jsonl, which does."""

    def __init__(self, folder: Path):
        self.metrics = open(folder / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self.timings = open(folder / "timings.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self.started = time.monotonic()

    def line(self, values: dict) -> None:
        self.metrics.write(json.dumps(values) + "\n")
        self.metrics.flush()

    def step(self, values: dict, tokens: int) -> None:
        self.metrics.write(json.dumps(values) + "\n")
        seconds = round(time.monotonic() - self.started, 3)
        self.timings.write(json.dumps({"step": values["step"], "seconds": seconds, "tokens": tokens}) + "\n")

    def close(self) -> None:
        self.metrics.close()
        self.timings.close()


# ----------------------------------------------------------------------------------------- what is said and recorded


def describe(say: Say, settings: Settings, task: Task, splits: Splits, base: Base, model: TunedModel, counts: dict,
             examples: dict[str, Examples], computing: str) -> None:  # fmt: skip
    """Say what is about to be trained, on what."""
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in examples.items())
    protocol = f", protocol {splits.protocol}" if splits.protocol != "single" else ""
    say(f"task    {task.name}: {len(task.labels)} labels; data {settings.data}{protocol}: {sizes}")
    say(f"model   {settings.model}: {counts['total']:,} parameters, {computing}")
    share = 100 * counts["trainable"] / counts["total"]
    say(f"method  {settings.method}: trains {counts['trainable']:,} parameters, {share:.4g} %")
    cut = sum(part.cut for part in examples.values())
    for note in (*splits.notes, *base.notes, *([f"{cut} texts were cut to their first tokens"] if cut else [])):
        say(f"note    {note}")
    if modules := adapted_modules(model):
        say("\n" + tables.adapted(modules) + "\n")


def headline(task: Task, scores: dict) -> dict:
    """Take the few scores that are followed over the epochs."""
    names = ("f1", "precision", "recall") if task.tags_words else ("accuracy",)
    return {name: scores[name] for name in names}


def epoch_line(task: Task, line: dict, kept: bool) -> str:
    parts = [
        f"epoch {line['epoch']}: train loss {line['train_loss']:.4f}, validation loss {line['validation_loss']:.4f}"
    ]
    if "perplexity" in line:
        parts.append(f"perplexity {line['perplexity']:.3f}")
    parts += [f"{name} {value:.3f}" for name, value in line["validation"].items()]
    return ", ".join(parts) + (" (kept)" if kept else "")


def conclude(say: Say, task: Task, record: dict, folder: Path, model: TunedModel, scored: list[str]) -> None:
    """Say what the run has reached, plainly where that is nothing."""
    say("")
    kinds = ("majority", "before", "after")
    say(tables.before_after(task, {name: {kind: record["scores"][kind][name] for kind in kinds} for name in scored}))
    after, majority = (record["scores"][kind]["validation"][task.metric] for kind in ("after", "majority"))
    if after <= majority:
        say(
            f"\nOn validation this is not above the majority class ({after:.3f} against {majority:.3f}): nothing was learnt."
        )
    say(f"\nkept epoch {record['kept_epoch']}; {record['seconds']:.0f} seconds; the run is in {folder}")


def summary(task: Task, record: dict, folder: Path) -> dict:
    """Make the object that `--json` prints."""
    scores = {
        kind: {name: record["scores"][kind].get(name) for name in ("validation", "test")}
        for kind in ("before", "after")
    }
    return {
        "task": task.name,
        "method": record["flags"]["method"],
        "run": str(folder),
        "trainable": record["trainable"],
        "total": record["total"],
        **scores,
        "seconds": record["seconds"],
    }


def flags_of(settings: Settings) -> dict:
    """Write the settings down so that `make_settings` makes the same again."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("out", "json")}


def versions() -> dict:
    from importlib.metadata import version

    names = ("torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """Name the commit of the source tree, or None where there is none, or no git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
