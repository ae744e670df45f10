"""Write run.json: the settings, versions, files, scores and warnings of a finished run."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from neo_peft.defaults import PRESETS, Recipe
from neo_peft.loop import State
from neo_peft.runs.curves import learning_curves, read_metrics, risen_loss, train_losses
from neo_peft.runs.folder import CHECKPOINTS, METRICS, flags_of, write_record
from neo_peft.runs.job import Job, Scores
from neo_peft.runs.selection import Kept, total_steps
from neo_peft.runs.verdict import judge
from neo_peft.settings import Settings
from neo_peft.system import processes
from neo_peft.system.files import sha256
from neo_peft.system.hardware import peak_memory

PLOT = "plot.png"
PACKAGES = ("torch", "transformers", "numpy", "safetensors")  # their versions are recorded


def write_results(job: Job, scores: Scores, state: State, kept: Kept) -> dict:
    """Write plot.png and run.json, and return the content of run.json."""
    settings, base, folder = job.settings, job.tuned.base, job.output.folder
    learning_curves(folder / METRICS, folder / PLOT, job.task)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and folder / CHECKPOINTS not in path.parents
    ]
    record = {
        "task": job.task.name,
        "labels": list(job.task.labels),
        "flags": flags_of(settings),
        "model": settings.model,
        "data": settings.data,
        "protocol": job.splits.protocol,
        "base": base.record(),
        "files": {str(path.relative_to(folder)): sha256(path) for path in files},
        "seed": settings.seed,
        "threads": job.tuned.threads,
        "processes": processes.world,
        "device": job.tuned.model.device.type,
        "precision": job.tuned.precision,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "trainable": job.trainable,
        "total": job.total,
        "rows": {name: len(rows) for name, rows in job.rows.items()},
        "cut": {name: examples.cut for name, examples in job.examples.items()},
        "max_length": job.tuned.encoder.max_length,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "kept_epoch": kept.epoch,
        "kept_step": kept.step,
        "ended_by_patience": state.step < total_steps(job.examples["train"], settings),
        **scores,
        "verdict": judge(job, scores),
        "warnings": warnings(job, scores["scores"], state),
        "assumed": assumed(settings),
        "seconds": job.output.seconds(),
        "memory": peak_memory(job.tuned.model.device),
    }
    write_record(folder, record)
    return record


def warnings(job: Job, scores: dict, state: State) -> list[str]:
    """Return one line for each sign that a run went wrong."""
    lines, after, task = [], scores["after"]["validation"], job.task
    gold = {label for row in job.rows["validation"] for label in task.labels_of(row)}
    if len(gold) == 1:
        lines.append(f"validation has only one label, {min(gold)}: its scores mean nothing")
    # The last column of the confusion matrix counts rows without a predicted label.
    predicted = [] if task.is_tagging else [sum(column) > 0 for column in zip(*after["confusion"])]
    if sum(predicted) == 1:
        label = [*task.labels, "no label"][predicted.index(True)]
        lines.append(f"the prediction is the same for every row of validation: {label}")
    for part in job.settings.parts:
        lines += part.call("warnings", job.tuned.model) or []
    if warning := risen_loss(train_losses(read_metrics(job.output.folder / METRICS))):
        lines.append(warning)
    if state.skipped:
        lines.append(
            f"fp16 skipped {state.skipped} of {state.step} steps: their gradients were not finite"
        )
    return lines


def assumed(settings: Settings) -> list[str]:
    """Return the settings whose values the preset assumes and no flag changed (see `Recipe`)."""
    recipe = PRESETS.get(settings.preset, {}).get(settings.task, Recipe())
    values = recipe.values()
    return [name for name in recipe.assumed if getattr(settings, name) == values.get(name)]


def commit() -> str | None:
    """Return the git commit of this source tree; None without git, or where the tree is not the
    root of a repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", root, "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, head = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return head if Path(top) == root else None
