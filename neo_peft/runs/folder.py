"""Where runs stand: runs/TASK-METHOD, then -2, -3; the newest finished one; what one says of
itself. No torch here."""

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
RUN = "run.json"  # a finished run has it; an adapter of peft's has CONFIG
SETTINGS = "settings.json"  # the first thing that a run writes: all flags, resolved
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


def short_name(name: str) -> str:
    """Return the name of a model or of data. An absolute path is shortened to its last part."""
    return Path(name).name if Path(name).is_absolute() else name


class NewFolder(NamedTuple):
    """A folder, and all that were made for it, the innermost first."""

    path: Path
    made: list[Path]


def make_folder(settings: Settings) -> NewFolder:
    """Make the run's folder: `--out`, which must be new or empty, or the next free
    runs/TASK-METHOD."""
    if settings.out:
        folder = Path(settings.out)
        refuse_run(folder)
        if folder.is_dir():
            clean(folder, SETTINGS)  # of a run that was killed as it wrote them
        refuse_used(folder, "--out ")
        return NewFolder(folder, make_folders(folder))
    return next_free(RUNS / f"{settings.task.replace('/', '-')}-{settings.method}")


def next_free(first: Path) -> NewFolder:
    """Make a folder under a name, or under NAME-2, -3 where that is taken."""
    around, folder, number = make_folders(first.parent), first, 1
    while True:
        try:
            folder.mkdir()
            sync(first.parent)
            return NewFolder(folder, [folder, *around])
        except FileExistsError:  # another may make it at the same time
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


def refuse_run(folder: Path) -> None:
    """Refuse a folder for a new run that holds one."""
    if (folder / SETTINGS).exists() or (folder / RUN).exists():
        raise InputError(
            f"--out {folder} holds a run; --resume {folder} goes on with it, another folder begins "
            "anew"
        )


def flags_of(settings: Settings) -> dict:
    """Take the settings that make the run what it is: all but where it stands and how it speaks."""
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("out", "json", "resume")
    }


def recorded_settings(path: Path, flags: Any) -> Settings:
    """Make settings of the flags that a file of a run's holds."""
    try:
        return make_settings(**flags)
    except (InputError, TypeError, ValueError, AttributeError) as error:  # whatever its checksum is
        raise InputError(f"{path} holds no settings of a run: {error}") from None


def refuse_unfinished(folder: Path) -> None:
    """Refuse to use a run that has no result yet."""
    if (folder / SETTINGS).exists() and not (folder / RUN).exists():
        raise InputError(
            f"{folder} is a run that was not finished; go on with it: python -m neo_peft train "
            f"--resume {folder}"
        )


def newest_run(task: str | None = None) -> Path:
    """Find the newest finished run in runs/; with `task` the newest for it."""
    records = sorted(RUNS.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for record in records:
        if task is None or read_json(record).get("task") == task:
            return record.parent
    raise InputError(
        f"there is no finished run{f' for {task}' if task else ''} in runs/: name a run's folder, "
        "or make one: "
        f"python -m neo_peft train --task {task or 'ner'} --method lora"
    )


def is_run(folder: Path | str) -> bool:
    """Return whether a folder holds a run, or an adapter of peft's own."""
    inside = {
        str(place / CONFIG) for parts in METHODS.values() for place in part_folders(Path(), parts)
    }
    # os.path, since a long text is no path at all, and Path says so by an error.
    return any(os.path.isfile(os.path.join(folder, name)) for name in (RUN, SETTINGS, *inside))


def read_record(folder: Path) -> dict:
    """Read run.json; refuse one whose own checksum is not right."""
    record = read_checked_json(folder / RUN)
    kinds = {"flags": dict, "labels": list, "base": dict, "files": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        raise InputError(f"{folder / RUN} is no run's: it lacks its {wrong[0]}")
    for name in record["files"]:
        if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name:
            raise InputError(f"{folder / RUN} names {name}, which is not a file of its own folder")
    return record


def finished(folder: Path) -> tuple[dict, Task]:
    """Return a finished run's record and its task, with the labels and the labels' words that the
    record has."""
    record = read_record(folder)
    return record, task_of(recorded_settings(folder / RUN, record["flags"]))


def unchanged(folder: Path, record: dict, name: str) -> Path:
    """Return the path of a file that a finished run left. Raise InputError where it is missing or
    was changed."""
    path = folder / name
    if name not in record["files"] or not path.is_file():
        raise InputError(f"{path} is missing: a run leaves it, and its record names it")
    if sha256(path) != record["files"][name]:
        raise InputError(f"{path} was changed since the run: its sha256 is another")
    return path


def write_record(folder: Path, record: dict) -> None:
    """Write run.json, with the sha256 of its own fields as the last one."""
    write_checked_json(folder / RUN, record)
