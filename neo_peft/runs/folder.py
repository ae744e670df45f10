"""The folders of runs: make a new one, find the newest finished run, check the files of a run.

The folder of a run is runs/TASK-METHOD, then runs/TASK-METHOD-2, -3, … No torch here.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from neo_peft.errors import InputError
from neo_peft.formats.peft_config import CONFIG, part_folders
from neo_peft.methods import METHODS
from neo_peft.settings import Settings, make_settings, task_of
from neo_peft.system.files import (
    clean,
    make_folders,
    read_checked_json,
    read_json,
    refuse_used,
    sha256,
    sync,
    write_checked_json,
)
from neo_peft.tasks import Task

RUNS = Path("runs")
RUN = "run.json"  # only finished runs have it
SETTINGS = "settings.json"  # the first file of a run: the values of all flags
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"  # see log.py
CHECKPOINTS = "checkpoints"  # a folder; see checkpoints.py


def short_name(name: str) -> str:
    """Return the name of a model or of data: the last part of an absolute path, else all of it."""
    return Path(name).name if Path(name).is_absolute() else name


class NewFolder(NamedTuple):
    """A folder for a run."""

    path: Path  # the new folder
    made: list[Path]  # of `path` and its parents, in this order, those that did not exist before


def make_folder(settings: Settings) -> NewFolder:
    """Make the run's folder: `--out`, which must be new or empty, or the next free
    runs/TASK-METHOD."""
    if settings.out:
        folder = Path(settings.out)
        refuse_run(folder)
        if folder.is_dir():
            clean(folder, SETTINGS)  # a process killed while it wrote them leaves a temporary file
        refuse_used(folder, "--out ")
        return NewFolder(folder, make_folders(folder))
    return next_free(RUNS / f"{settings.task.replace('/', '-')}-{settings.method}")


def next_free(first: Path) -> NewFolder:
    """Make the folder `first`; if it exists, the first free one of `first`-2, -3, …"""
    parents, folder, number = make_folders(first.parent), first, 1
    while True:
        try:
            folder.mkdir()
            sync(first.parent)
            return NewFolder(folder, [folder, *parents])
        except FileExistsError:  # perhaps made by another process in this moment
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


def refuse_run(folder: Path) -> None:
    """Raise InputError if the folder of a new run already has a run."""
    if (folder / SETTINGS).exists() or (folder / RUN).exists():
        raise InputError(
            f"--out {folder} already has a run; resume it with --resume {folder}, or name another "
            "folder"
        )


def flags_of(settings: Settings) -> dict:
    """Return the settings that decide a run's result: all but its folder and what it prints."""
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("out", "json", "resume")
    }


def recorded_settings(path: Path, flags: Any) -> Settings:
    """Return the settings made from `flags`, as read from the file `path`."""
    try:
        # Before there was such a flag, all long texts were cut at their ends.
        return make_settings(**{"truncate": "end"} | flags)
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds no settings of a run: {error}") from None


def refuse_unfinished(folder: Path) -> None:
    """Raise InputError if a run has no result yet."""
    if (folder / SETTINGS).exists() and not (folder / RUN).exists():
        raise InputError(
            f"{folder} is a run that is not finished; resume it: python -m neo_peft train --resume "
            f"{folder}"
        )


def newest_run(task: str | None = None) -> Path:
    """Return the folder of the newest finished run in runs/, or of the newest one for `task`."""
    records = sorted(RUNS.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for record in records:
        if task is None or read_json(record).get("task") == task:
            return record.parent
    raise InputError(
        f"there is no finished run{f' for {task}' if task else ''} in runs/: name the folder of a "
        f"run, or train one: python -m neo_peft train --task {task or 'ner'} --method lora"
    )


def is_run(folder: Path | str) -> bool:
    """Return whether a folder contains a run or a peft adapter. Any text may be passed."""
    configs = {
        str(part / CONFIG) for parts in METHODS.values() for part in part_folders(Path(), parts)
    }
    # os.path, because Path raises an error for a very long text.
    return any(os.path.isfile(os.path.join(folder, name)) for name in (RUN, SETTINGS, *configs))


def one_folder_down(folder: Path) -> str:
    """Return the end of an error line for a folder that holds no run: the folders in it that hold
    one, or an adapter, such as `default` or `checkpoint-500`. "" if there are none."""
    names = [entry.name for entry in os.scandir(folder) if is_run(entry.path)]
    names.sort(key=lambda name: (len(name), name), reverse=True)  # checkpoint-1000 comes first
    listed = ", ".join(str(folder / name) for name in names[:3])
    return f"; one folder down there is {listed}: name that folder" if names else ""


def read_record(folder: Path) -> dict:
    """Return the content of run.json. Raise InputError where its checksum or a field is wrong."""
    record = read_checked_json(folder / RUN)
    kinds = {"flags": dict, "labels": list, "base": dict, "files": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        raise InputError(
            f"{folder / RUN} is not the record of a run: {wrong[0]} is missing or wrong"
        )
    for name in record["files"]:
        if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name:
            raise InputError(f"{folder / RUN} lists {name}, which is not a file in its folder")
    return record


def read_finished_run(folder: Path) -> tuple[dict, Task]:
    """Return a finished run's record, and its task with the recorded labels and label words."""
    record = read_record(folder)
    return record, task_of(recorded_settings(folder / RUN, record["flags"]))


def check_unchanged(folder: Path, record: dict, name: str) -> Path:
    """Return the path of a run's file `name`. Raise InputError where it is missing, or where its
    sha256 is not the recorded one.

    record: the content of run.json, or of a checkpoint's state.json.
    """
    path = folder / name
    if name not in record["files"] or not path.is_file():
        raise InputError(f"{path} is missing, or the run's record does not list it")
    if sha256(path) != record["files"][name]:
        raise InputError(f"{path} was changed since the run: its sha256 differs")
    return path


def write_record(folder: Path, record: dict) -> None:
    """Write run.json. Its last field is the sha256 of all the others."""
    write_checked_json(folder / RUN, record)
