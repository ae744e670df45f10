"""What a run prints: what is about to be trained, on what, and what it came to."""

import math
from pathlib import Path

from neo_peft import processes
from neo_peft.runs import tables
from neo_peft.runs.job import Job, PrintLine
from neo_peft.runs.predictions import prediction_kinds
from neo_peft.tasks import Task, get_task


def describe(job: Job) -> None:
    """Print what is about to be trained, on what."""
    settings, task, tuned, print_line = job.settings, job.task, job.tuned, job.output.print_line
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in job.rows.items())
    protocol = f", protocol {job.splits.protocol}" if job.splits.protocol != "single" else ""
    print_line(
        f"task    {task.name}: {len(task.labels)} labels; data {settings.data}{protocol}: {sizes}"
    )
    computing = f"{tuned.precision} on {tuned.model.device.type}, {tuned.threads} threads"
    computing += f" in each of {processes.world} processes" if processes.world > 1 else ""
    print_line(f"model   {settings.model}: {job.total:,} parameters, {computing}")
    print_line(
        f"method  {settings.method}: trains {job.trainable:,} parameters, "
        f"{100 * job.trainable / job.total:.4g} %"
    )
    notes = [*job.splits.notes, *tuned.notes]
    digits = ", ".join(filter(str.isdigit, task.labels))
    if digits and not (task.label_words or task.tags_words):
        notes.append(f"the labels {digits} are no words; --label-words gives each its own")
    if cut := sum(part.cut for part in job.examples.values()):
        notes.append(f"{cut} texts were cut to {tuned.encoder.max_length} tokens")
    for note in notes:
        print_line(f"note    {note}")
    layers = {}
    for part in settings.parts:
        layers |= part.call("adapted_layers", job.tuned.model) or {}
    print_line("\n" + tables.adapted(layers) + "\n" if layers else "")


def headline(task: Task, scores: dict) -> dict:
    """Return the few scores that are followed over the epochs."""
    of_tags = ("f1", "precision", "recall", "span_f1")
    names = of_tags if task.tags_words else (task.metric, "accuracy")
    return {name: scores[name] for name in names}


def epoch_line(line: dict, kept: bool) -> str:
    parts = []
    for name in ("train", "validation"):
        shown = f"{name} loss {line[name + '_loss']:.4f}"
        if name + "_perplexity" in line:
            shown += f" (perplexity {line[name + '_perplexity']:.3f})"
        parts.append(shown)
    parts += [f"{name} {value:.3f}" for name, value in line["validation"].items()]
    return f"epoch {line['epoch']}: " + ", ".join(parts) + (", kept" if kept else "")


def print_results(print_line: PrintLine, record: dict, folder: Path) -> None:
    """Print what the run has reached, plainly where that is nothing."""
    scores, task = record["scores"], get_task(record["task"])
    columns = {
        split: {
            answers.title: answers.scores(record)[split] for answers in prediction_kinds(record)
        }
        for split in record["rows"]
        if split != "train"
    }
    print_line(tables.before_after(task, columns) + "\n")
    print_line(verdict(task, scores, record["rows"]["validation"]))
    for warning in record["warnings"]:
        print_line(f"warning: {warning}")
    print_line(
        f"epoch {record['kept_epoch']} is kept; {record['seconds']:.0f} seconds; the run is in "
        f"{folder}"
    )
    print_line(
        "plot.png there shows it, and, with its errors to browse: python -m neo_peft report "
        f"{folder}"
    )


def verdict(task: Task, scores: dict, rows: int) -> str:
    """Return one line: whether validation shows that anything was learnt, and what chance alone
    would do.

    The spread of an accuracy over so many rows is known, and stands for that of an answer task's
    other scores too.
    """
    metric = task.metric
    after, majority = (scores[kind]["validation"] for kind in ("after", "majority"))
    stands = (
        f"on validation {metric} is {after[metric]:.3f}, that of the majority class "
        f"{majority[metric]:.3f}"
    )
    if after[metric] <= majority[metric]:
        return f"Nothing was learnt: {stands}."
    if not task.tags_words:
        known = majority["accuracy"]
        chance = 1.96 * math.sqrt(known * (1 - known) / rows)
        if after["accuracy"] - known < chance:
            if metric != "accuracy":
                stands += f"; accuracy is {after['accuracy']:.3f} against {known:.3f}"
            return (
                f"Little was learnt, if anything: {stands}, and {rows} rows alone leave "
                f"±{chance:.3f} to chance."
            )
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
