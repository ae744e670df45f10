"""From settings to a run folder: load, score the bare base, train, score again, save.

`run` is the one way there; train.py calls it. The loop itself is in loop.py, the files in adapter.py.
"""

import dataclasses
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from neo_peft import adapter, loading, processes, tables
from neo_peft.data import Encoder, Examples
from neo_peft.decoding import Evaluation, evaluate, majority_scores, pad_tags, perplexity, score
from neo_peft.files import sha256
from neo_peft.loop import fit
from neo_peft.model import TunedModel, adapted_modules, bare_model
from neo_peft.plots import learning_curves
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import choose_folder, write_record
from neo_peft.settings import ASSUMED, PRESETS, Settings, task_of
from neo_peft.sources import Splits, limit_rows, load_splits
from neo_peft.tasks import Task, get_task

Say = Callable[[str], None]
Scores = dict[str, dict]  # of each split
METRICS, PLOT = "metrics.jsonl", "plot.png"


@dataclass(frozen=True)
class Job:
    """All that a run needs, loaded: rows and encoded examples of each split, and the model with its method."""

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
        return "test" if "test" in self.rows else "validation"


def run(settings: Settings, say: Say = print, progress: Progress = no_progress) -> dict:
    """Do a whole run and return its summary, which `--json` prints.

    What a user may have got wrong is found before the run's folder is made. Raises InputError. Of several processes
    each computes its share, and the first alone speaks and writes.
    """
    started = time.monotonic()
    if processes.rank:
        say, progress = (lambda line: None), no_progress
    folder = processes.decide(lambda: choose_folder(settings))
    job = prepare(settings, progress)
    processes.require_same("base model", job.tuned.base.fingerprint)
    processes.require_same("set of examples", [part.digest() for part in job.examples.values()])
    describe(say, job)
    base, tuned = bare_side(job), Side(job.tuned.model, job.tuned.encoder)
    show_answers(say, job, base, "Before tuning")
    scores = {"majority": {name: majority_scores(job.task, job.splits.train, job.rows[name]) for name in job.scored}}
    scores |= score_side(job, base, "before", progress)
    processes.decide(lambda: folder.mkdir(parents=True, exist_ok=True))
    loading.begin(job.tuned)  # not before: the base that was scored is bare
    steps, kept_epoch = train(job, folder, say, progress)
    processes.decide(lambda: adapter.load_adapter(folder, job.tuned.model))  # the weights of the epoch that is kept
    processes.copy_first(job.tuned.model.trainable().values())
    say("")
    show_answers(say, job, tuned, "After tuning")
    scores |= score_side(job, tuned, "after", progress)
    seconds = round(time.monotonic() - started, 1)
    record = processes.decide(lambda: write_results(job, folder, scores, steps, kept_epoch, seconds))
    conclude(say, job, record, folder)
    return summary(record, folder)


def prepare(settings: Settings, progress: Progress) -> Job:
    """Load data and base, put the method on, encode."""
    splits = load_splits(get_task(settings.task), settings.data, settings.protocol, settings.seed, settings.labels)
    settings = dataclasses.replace(settings, labels=splits.labels)
    task = task_of(settings)
    limits = {"train": settings.train_limit}
    rows = {name: limit_rows(every, limits.get(name, settings.eval_limit)) for name, every in splits.named().items()}
    tuned = loading.load_to_train(settings)
    examples = {name: tuned.encoder(rows[name]) for name in progress(rows, "encode", len(rows))}
    trainable = sum(parameter.numel() for parameter in tuned.model.trainable().values())
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    return Job(settings, task, splits, rows, examples, tuned, trainable, total)


@dataclass(frozen=True)
class Side:
    """A model before or after tuning, the encoder that it reads with, and what stands in front of its texts."""

    model: TunedModel
    encoder: Encoder
    instruction: str = ""


def bare_side(job: Job) -> Side:
    """Take the bare base: it tags by the seeded head, and answers by the language model behind an instruction."""
    bare = bare_model(job.tuned.model)
    encoder = loading.encoder_of(job.tuned.base, bare, job.settings)
    return Side(bare, encoder, job.task.instruction if bare.head is None else "")


def score_side(job: Job, side: Side, when: str, progress: Progress) -> dict[str, Scores]:
    """Score the splits; where a preset lets the language model answer, by free generation too."""
    ways = {when: "rank"}
    if job.settings.preset and job.tuned.model.head is None:
        ways[f"{when}, generate"] = "generate"
    scores = {way: {} for way in ways}
    for way, decode in ways.items():
        for name in job.scored:
            found = answer(job, side, job.rows[name], decode, progress)
            scores[way][name] = score(job.task, job.rows[name], found.predicted)
    return scores


def answer(job: Job, side: Side, rows: list[dict], decode: str, progress: Progress = no_progress) -> Evaluation:
    size = job.settings.batch_size
    return evaluate(side.model, side.encoder, side.encoder(rows), side.instruction, decode, size, progress=progress)


def show_answers(say: Say, job: Job, side: Side, when: str) -> None:
    """Show three examples of test as the model answers them, in its own words where it has no head."""
    rows = examples_to_show(job.task, job.rows[job.shown])
    found = answer(job, side, rows, "rank" if side.model.head else "generate")
    predicted = pad_tags(rows, found.predicted) if job.task.tags_words else found.predicted
    say(f"{when}, three examples of {job.shown}:\n")
    say("\n".join(tables.answers(job.task, rows, predicted, found.said)).rstrip() + "\n")


def examples_to_show(task: Task, rows: list[dict]) -> list[dict]:
    """Choose three rows by their labels alone: of each label in turn, or with a few entities each."""
    if task.tags_words:
        short = [row for row in rows if len(row["tokens"]) <= 25 and len(set(row["tags"])) > 2]
        return limit_rows(short or rows, 3)
    label = task.fields[-1]
    first = {row[label]: index for index, row in reversed(list(enumerate(rows)))}  # row of each label
    order = [first[name] for name in task.labels if name in first]
    return [rows[index] for index in [*order, *(set(range(len(rows))) - set(order))][:3]]


def train(job: Job, folder: Path, say: Say, progress: Progress) -> tuple[int, int]:
    """Train, and leave the weights of the kept epoch in the folder; return the updates done and that epoch."""
    model, best = job.tuned.model, {"epoch": 0, "score": -1.0}
    with Log(folder) as log:

        def after_epoch(epoch: int, step: int, train_loss: float) -> None:
            found = evaluate(
                model, job.tuned.encoder, job.examples["validation"], batch_size=job.settings.batch_size,
                with_loss=True, progress=progress,
            )  # fmt: skip
            scores = score(job.task, job.rows["validation"], found.predicted)
            line = {"step": step, "epoch": epoch, "train_loss": train_loss, "validation_loss": found.loss}
            if model.head is None:
                line |= {"train_perplexity": perplexity(train_loss), "validation_perplexity": perplexity(found.loss)}
            line["validation"] = headline(job.task, scores)
            if job.settings.keep == "last" or scores[job.task.metric] > best["score"]:
                save = partial(adapter.save_adapter, folder, model, job.settings, job.tuned.base.tokenizer)
                processes.decide(save)
                best.update(epoch=epoch, score=scores[job.task.metric])
            log.epoch(line)
            say(epoch_line(line, kept=best["epoch"] == epoch))

        steps = fit(model, job.examples["train"], job.settings, log.step, after_epoch, progress)
    return steps, best["epoch"]


class Log:
    """metrics.jsonl, which holds no clock so that equal runs give equal files, and timings.jsonl, which does.

    Of several processes the first alone writes them.
    """

    def __init__(self, folder: Path):
        metrics, timings = (os.devnull if processes.rank else folder / name for name in (METRICS, "timings.jsonl"))
        self.metrics = open(metrics, "w", encoding="utf-8")  # noqa: SIM115
        self.timings = open(timings, "w", encoding="utf-8")  # noqa: SIM115
        self.started = time.monotonic()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self.metrics.close()
        self.timings.close()

    def epoch(self, line: dict) -> None:
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()

    def step(self, line: dict, tokens: int) -> None:
        self.metrics.write(json.dumps(line) + "\n")
        seconds = round(time.monotonic() - self.started, 3)
        self.timings.write(json.dumps({"step": line["step"], "seconds": seconds, "tokens": tokens}) + "\n")


# ----------------------------------------------------------------------------------------- what is said and recorded


def describe(say: Say, job: Job) -> None:
    """Say what is about to be trained, on what."""
    settings, sizes = job.settings, ", ".join(f"{len(rows):,} {name}" for name, rows in job.rows.items())
    protocol = f", protocol {job.splits.protocol}" if job.splits.protocol != "single" else ""
    say(f"task    {job.task.name}: {len(job.task.labels)} labels; data {settings.data}{protocol}: {sizes}")
    computing = f"{job.tuned.precision} on {job.tuned.model.device.type}, {job.tuned.threads} threads"
    computing += f" in each of {processes.world} processes" if processes.world > 1 else ""
    say(f"model   {settings.model}: {job.total:,} parameters, {computing}")
    share = 100 * job.trainable / job.total
    say(f"method  {settings.method}: trains {job.trainable:,} parameters, {share:.4g} %")
    wordless = [label for label in job.task.labels if label.isdigit() and not (job.task.words or job.task.tags_words)]
    words = [f"the labels {', '.join(wordless)} are no words; --label-words gives each its own"] if wordless else []
    cut = sum(part.cut for part in job.examples.values())
    lengths = [f"{cut} texts were cut to {job.tuned.encoder.max_length} tokens"] if cut else []
    for note in (*job.splits.notes, *job.tuned.notes, *words, *lengths):
        say(f"note    {note}")
    modules = adapted_modules(job.tuned.model)
    say("\n" + tables.adapted(modules) + "\n" if modules else "")


def headline(task: Task, scores: dict) -> dict:
    """Take the few scores that are followed over the epochs."""
    names = ("f1", "precision", "recall") if task.tags_words else (task.metric, "accuracy")
    return {name: scores[name] for name in dict.fromkeys(names)}


def epoch_line(line: dict, kept: bool) -> str:
    parts = []
    for name in ("train", "validation"):
        shown = f"{name} loss {line[name + '_loss']:.4f}"
        if name + "_perplexity" in line:
            shown += f" (perplexity {line[name + '_perplexity']:.3f})"
        parts.append(shown)
    parts += [f"{name} {value:.3f}" for name, value in line["validation"].items()]
    return f"epoch {line['epoch']}: " + ", ".join(parts) + (", kept" if kept else "")


def write_results(job: Job, folder: Path, scores: dict, steps: int, kept_epoch: int, seconds: float) -> dict:
    """Write the plot and run.json, and return what the latter holds."""
    learning_curves(folder / METRICS, folder / PLOT)
    record = make_record(job, folder, scores, steps, kept_epoch, seconds)
    write_record(folder, record)
    return record


def make_record(job: Job, folder: Path, scores: dict, steps: int, kept_epoch: int, seconds: float) -> dict:
    """Write down the run's recipe and what it came to; everything that run.json holds but its own checksum."""
    settings, base = job.settings, job.tuned.base
    flags = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("out", "json")}
    return {
        "task": job.task.name,
        "labels": list(job.task.labels),
        "flags": flags,
        "model": settings.model,
        "data": settings.data,
        "protocol": job.splits.protocol,
        "base": {"fingerprint": base.fingerprint, "parameters": base.parameters},
        "files": {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
        "seed": settings.seed,
        "threads": job.tuned.threads,
        "processes": processes.world,
        "device": job.tuned.model.device.type,
        "precision": job.tuned.precision,
        "versions": versions(),
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "trainable": job.trainable,
        "total": job.total,
        "rows": {name: len(rows) for name, rows in job.rows.items()},
        "cut": {name: examples.cut for name, examples in job.examples.items()},
        "max_length": job.tuned.encoder.max_length,
        "steps": steps,
        "kept_epoch": kept_epoch,
        "scores": scores,
        "assumed": assumed(settings),
        "seconds": seconds,
    }


def conclude(say: Say, job: Job, record: dict, folder: Path) -> None:
    """Say what the run has reached, plainly where that is nothing."""
    scores = record["scores"]
    columns = {name: {kind: scores[kind][name] for kind in scores} for name in job.scored}
    say(tables.before_after(job.task, columns) + "\n")
    say(verdict(job, scores))
    kept, seconds = record["kept_epoch"], record["seconds"]
    say(f"epoch {kept} is kept; {seconds:.0f} seconds; the run is in {folder}, plot.png shows it")


def verdict(job: Job, scores: dict) -> str:
    """Say in one line whether validation shows that anything was learnt, and what chance alone would do.

    The spread of an accuracy over so many rows is known, and stands for that of an answer task's other scores too.
    """
    metric, rows = job.task.metric, len(job.rows["validation"])
    after, majority = (scores[kind]["validation"] for kind in ("after", "majority"))
    stands = f"on validation {metric} is {after[metric]:.3f}, that of the majority class {majority[metric]:.3f}"
    if after[metric] <= majority[metric]:
        return f"Nothing was learnt: {stands}."
    if job.task.tags_words:
        return f"It learnt: {stands}."
    known = majority["accuracy"]
    chance = 1.96 * math.sqrt(known * (1 - known) / rows)
    if after["accuracy"] - known < chance:
        also = "" if metric == "accuracy" else f"; accuracy is {after['accuracy']:.3f} against {known:.3f}"
        return f"Little was learnt, if anything: {stands}{also}, and {rows} rows alone leave ±{chance:.3f} to chance."
    return f"It learnt: {stands}."


def summary(record: dict, folder: Path) -> dict:
    """Make the object that `--json` prints; without a test split its scores are null."""
    kinds = {
        kind: {name: record["scores"][kind].get(name) for name in ("validation", "test")}
        for kind in ("before", "after")
    }
    names = ("task", "method", "run", "trainable", "total", "before", "after", "seconds")
    whole = {**record, **kinds, "method": record["flags"]["method"], "run": str(folder)}
    return {name: whole[name] for name in names}


def assumed(settings: Settings) -> list[str]:
    """Name the settings that the preset assumes, and that were left as it has them."""
    if settings.preset is None:
        return []
    preset = PRESETS[settings.preset][settings.task]
    return [name for name in ASSUMED[settings.preset][settings.task] if getattr(settings, name) == preset.get(name)]


def versions() -> dict:
    from importlib.metadata import version

    names = ("torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """Name the commit of this source tree; None where it is no checkout of its own, or there is no git."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, head = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return head if Path(top) == root else None
