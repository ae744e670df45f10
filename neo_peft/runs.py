"""Where runs stand: runs/TASK-METHOD, then -2, -3; and which of them is the newest finished one. No torch here."""

import os
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.files import read_json
from neo_peft.settings import Settings

RUNS = Path("runs")
RUN, CONFIG = "run.json", "adapter_config.json"  # a finished run has the first, an adapter of peft's the second


def choose_folder(settings: Settings) -> Path:
    """Choose the run's folder: `--out`, which must be new or empty, or the next free runs/TASK-METHOD."""
    if settings.out:
        folder = Path(settings.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out {folder} holds something already; name a folder that is new")
        return folder
    first = folder = RUNS / f"{settings.task.replace('/', '-')}-{settings.method}"
    number = 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def newest_run(task: str | None = None) -> Path:
    """Find the newest finished run in runs/; with `task` the newest for it."""
    records = sorted(RUNS.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for record in records:
        if task is None or read_json(record).get("task") == task:
            return record.parent
    raise InputError(
        f"there is no finished run{f' for {task}' if task else ''} in runs/: name a run's folder, or make one: "
        f"python train.py --task {task or 'ner'} --method lora"
    )


def is_run(folder: Path | str) -> bool:
    """Say whether a folder holds a finished run, or an adapter of peft's own."""
    # os.path, since a long text is no path at all, and Path says so by an error.
    return any(os.path.isfile(os.path.join(folder, name)) for name in (RUN, CONFIG))
