"""What a run prints: its task, data, model and method before training; its scores at the end."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neo_peft.runs import selection, tables
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.job import Job, PrintLine
from neo_peft.runs.predictions import prediction_kinds
from neo_peft.runs.texts import text_notes
from neo_peft.runs.verdict import verdict_line
from neo_peft.settings import Settings
from neo_peft.system import processes
from neo_peft.tasks import Task, get_task

MOST_NAMED = 12  # labels in the line on the labels


def describe(job: Job) -> None:
    """Print the task, the data, the model, the method, and notes on them."""
    settings, task, tuned, print_line = job.settings, job.task, job.tuned, job.output.print_line
    base = tuned.base
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in job.rows.items())
    protocol = f", protocol {job.splits.protocol}" if job.splits.protocol != "single" else ""
    print_line(
        f"task    {task.name}: {len(task.labels)} labels; data {settings.data}{protocol}: {sizes}"
    )
    for line in job.splits.read:
        print_line(f"data    {line}")
    print_line(f"labels  {label_line(task, tuned.model.head is not None)}")
    threads = f"{tuned.threads} thread{'s' if tuned.threads > 1 else ''}"
    computing = f"{tuned.precision} on {tuned.model.device.type}, {threads}"
    computing += f" in each of {processes.world} processes" if processes.world > 1 else ""
    if base.quantize != "none":
        computing = f"{base.quantize} in {base.weight_bytes / 1e6:,.1f} MB, {computing}"
    print_line(f"model   {settings.model}: {job.total:,} parameters, {computing}")
    print_line(
        f"method  {settings.method}: trains {job.trainable:,} parameters, "
        f"{100 * job.trainable / job.total:.4g} %"
    )
    notes = [*job.splits.notes, *tuned.notes, *untrained_labels(task, job.rows["train"])]
    digits = ", ".join(label for label in task.labels if label.removeprefix("-").isdigit())
    if digits and not (task.label_words or task.is_tagging):
        notes.append(f"the labels {digits} are not words; give each a word with --label-words")
    notes += text_notes(tuned.encoder, job.examples.values())
    for note in notes:
        print_line(f"note    {note}")
    layers = {}
    for part in settings.parts:
        layers |= part.call("adapted_layers", job.tuned.model) or {}
    print_line("\n" + tables.adapted(layers) + "\n" if layers else "")


def label_line(task: Task, with_head: bool) -> str:
    """Return a line on the labels in their order: how each is predicted, and which is positive."""
    if with_head:
        line = f"{shortened(task.labels)}: classes of a linear head"
    else:
        pairs = zip(task.labels, task.label_words)
        named = [f'{label} as "{word}"' for label, word in pairs] or task.labels
        line = f"{shortened(named)}: predicted as these texts"
    two = len(task.labels) == 2 and not task.is_tagging
    return f"{line}; {task.labels[-1]} is the positive one" if two else line


def shortened(names: Sequence[str]) -> str:
    """Return the names with commas between them; of many names the first ones and the number."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])}, … ({len(names)} in all)"


def untrained_labels(task: Task, rows: list[dict]) -> list[str]:
    """Return a note if the training rows lack a label. For tags: if they lack an entity type."""
    used = {label for row in rows for label in task.labels_of(row)}
    missing, name = [label for label in task.labels if label not in used], "label"
    if task.is_tagging:
        types = {label[2:] for label in used}
        missing = [kind for kind in tables.entity_types(task) if kind not in types]
        name = "entity type"
    if not missing:
        return []
    return [f"no training row has the {name} {shortened(missing)}: the model cannot learn it"]


def headline(task: Task, settings: Settings, scores: dict) -> dict:
    """Return the few scores that are logged and printed after each scoring of validation."""
    tagging = ("f1", "precision", "recall", "span_f1")
    names = tagging if task.is_tagging else (task.metric, "accuracy")
    shown = {name: scores[name] for name in names}
    if (metric := selection.metric_of(task, settings)) != selection.LOSS:
        shown[metric] = selection.epoch_score(task, settings, scores, None)
    return shown


def moment(epoch: int, step: int, eval_every: int | None) -> str:
    """Return the name of the moment of a scoring: the epoch that has ended, or the step."""
    return f"step {step} (epoch {epoch})" if eval_every else f"epoch {epoch}"


def kept_moment(record: dict) -> str:
    """Return the name of the moment whose weights a finished run kept, from its run.json."""
    step = record.get("kept_step")  # older runs have none
    return moment(record["kept_epoch"], step, record["flags"].get("eval_every"))


def scoring_line(task: Task, settings: Settings, line: dict, kept: bool) -> str:
    """Return the line that is printed after a scoring, from its line in metrics.jsonl."""
    parts = []
    for name in ("train", "validation"):
        shown = f"{name} loss {line[name + '_loss']:.4f}"
        if line.get(name + "_perplexity") is not None:
            shown += f" (perplexity {line[name + '_perplexity']:.3f})"
        parts.append(shown)
    for name, value in line["validation"].items():
        parts.append(f"{tables.metric_name(task, name)} {value:.3f}")
    when = moment(line["epoch"], line["step"], settings.eval_every)
    return f"{when}: " + ", ".join(parts) + (", kept" if kept else "")


def patience_line(settings: Settings, kept: selection.Kept, total_steps: int) -> str:
    """Return the line that is printed where `--patience` ends the training."""
    best = moment(kept.epoch, kept.step, settings.eval_every)
    return (
        f"no better score in {kept.worse} scorings since {best}: the training ends after step "
        f"{kept.scored_step:,} of {total_steps:,} (--patience {settings.patience})"
    )


def print_results(print_line: PrintLine, record: dict, folder: Path) -> None:
    """Print a finished run's scores before and after tuning, the verdict and the warnings."""
    task = replace(get_task(record["task"]), labels=tuple(record["labels"]))
    columns = {
        split: {kind.title: kind.scores(record)[split] for kind in prediction_kinds(record)}
        for split in record["rows"]
        if split != "train"
    }
    print_line(tables.before_after(task, columns) + "\n")
    if "baseline" in record["scores"]:
        alone = "; head alone: on the untuned base" if "head_alone" in record["scores"] else ""
        print_line(f"baseline: {baseline_name(task)}{alone}")
    print_line(verdict_line(task, record))
    for warning in record["warnings"]:
        print_line(f"warning: {warning}")
    print_line(
        f"the weights are those after {kept_moment(record)}; {record['seconds']:.0f} seconds; the "
        f"run is in {folder}"
    )
    print_line(
        "its learning curves are in plot.png; a page with all scores and wrong predictions: "
        f"python -m neo_peft report {folder}"
    )


def summary(record: dict, folder: Path) -> dict:
    """Return the object that `--json` prints. Without a test split the scores of test are None, and
    with `--no-before` "before" is None."""

    def by_split(when: str) -> dict | None:
        found = record["scores"].get(when)
        return found and {split: found.get(split) for split in ("validation", "test")}

    scores = {when: by_split(when) for when in ("before", "after")}
    names = ("task", "method", "run", "trainable", "total", "before", "after", "seconds")
    fields = {**record, **scores, "method": record["flags"]["method"], "run": str(folder)}
    return {name: fields[name] for name in names}
