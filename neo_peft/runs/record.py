"""What a run records of itself, in run.json: its recipe, and what it came to."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from neo_peft import processes
from neo_peft.defaults import PRESETS, Recipe
from neo_peft.loop import State
from neo_peft.runs.checkpoints import FOLDER
from neo_peft.runs.curves import learning_curves
from neo_peft.runs.folder import METRICS, flags_of, write_record
from neo_peft.runs.job import Job, Scores
from neo_peft.runs.summary import warnings
from neo_peft.settings import Settings
from neo_peft.system.files import sha256
from neo_peft.system.hardware import peak_bytes

PLOT = "plot.png"


def write_results(job: Job, scores: Scores, state: State, kept_epoch: int) -> dict:
    """Write the plot and run.json, and return what the latter holds."""
    folder = job.output.folder
    learning_curves(folder / METRICS, folder / PLOT, job.task)
    record = make_record(job, scores, state, kept_epoch)
    write_record(folder, record)
    return record


def make_record(job: Job, scores: Scores, state: State, kept_epoch: int) -> dict:
    """Return the run's recipe and what it came to: all that run.json holds but its checksum."""
    settings, base, folder = job.settings, job.tuned.base, job.output.folder
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and folder / FOLDER not in path.parents
    ]
    return {
        "task": job.task.name,
        "labels": list(job.task.labels),
        "flags": flags_of(settings),
        "model": settings.model,
        "data": settings.data,
        "protocol": job.splits.protocol,
        "base": {"fingerprint": base.fingerprint, "parameters": base.parameters},
        "files": {str(path.relative_to(folder)): sha256(path) for path in files},
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
        "steps": state.step,
        "skipped_steps": state.skipped,
        "kept_epoch": kept_epoch,
        "scores": scores.labels,
        "generated": scores.generated,
        "warnings": warnings(job, scores.labels, state),
        "assumed": assumed(settings),
        "seconds": job.output.seconds(),
        "memory": {"peak_bytes": peak_bytes(job.tuned.model.device)},
    }


def assumed(settings: Settings) -> list[str]:
    """Return the settings that the preset assumes, and that were left as it has them."""
    recipe = PRESETS.get(settings.preset, {}).get(settings.task, Recipe())
    values = recipe.values()
    return [name for name in recipe.assumed if getattr(settings, name) == values.get(name)]


def versions() -> dict:
    names = ("torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """Name the commit of this source tree; None where it is no checkout of its own, or there is no
    git."""
    root = Path(__file__).resolve().parents[2]
    try:
        command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, head = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return head if Path(top) == root else None
