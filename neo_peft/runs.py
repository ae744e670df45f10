"""Where runs stand: runs/TASK-METHOD, then -2, -3; the newest finished one; what one says of itself. No torch here."""

import dataclasses
import json
import os
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.files import read_json, refuse_used, sha256_of, write_json
from neo_peft.peft_config import CONFIG, named_base, read_peft
from neo_peft.settings import Settings
from neo_peft.tasks import TASKS

RUNS = Path("runs")
RUN = "run.json"  # a finished run has it; an adapter of peft's has CONFIG


def choose_folder(settings: Settings) -> Path:
    """Choose the run's folder: `--out`, which must be new or empty, or the next free runs/TASK-METHOD."""
    if settings.out:
        folder = Path(settings.out)
        refuse_used(folder, "--out ")
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
    return any(os.path.isfile(os.path.join(folder, name)) for name in (RUN, CONFIG, os.path.join("lora", CONFIG)))


def adapter_flags(folder: Path, task: str | None) -> tuple[dict, dict]:
    """Read what a run, or an adapter of peft's own, says to whoever trains it further: what is settled, which is its
    method and its flags, and what is only a default: the base, and of a run the task, its labels, how it is read."""
    if not folder.is_dir():
        raise InputError(f"--adapter {folder}: there is no such folder; it is a run's, or one of peft's")
    if not (folder / RUN).exists():
        found = read_peft(folder)
        if found is None:
            raise InputError(f"--adapter {folder} holds neither {RUN} nor {CONFIG}: it is no finished run, no adapter")
        base = named_base(folder)
        return found, {"model": base} if base else {}
    flags = read_json(folder / RUN).get("flags")
    if not isinstance(flags, dict) or not isinstance(flags.get("method"), str):
        raise InputError(f"{folder / RUN} names no method: it is no run of train.py's")
    parts = flags["method"].split("+")
    fields = {item.name for item in dataclasses.fields(Settings) if item.metadata["only"] in parts} | {"method"}
    usual = {"task", "model", "head_dropout"}
    if (known := TASKS.get(task or flags.get("task"))) and known.tags_words:
        usual |= {"read"}
    if task in (None, flags.get("task")):
        usual |= {"labels", "label_words"}
    return tuple({name: flags[name] for name in sorted(names & flags.keys())} for names in (fields, usual))


def read_record(folder: Path) -> dict:
    """Read run.json; refuse one whose own checksum is not right."""
    record = read_json(folder / RUN)
    content = {name: value for name, value in record.items() if name != "sha256"}
    if record.get("sha256") != sha256_of(content):
        raise InputError(f"{folder / RUN} was changed since it was written, or cut short: its sha256 is another")
    return content


def write_record(folder: Path, record: dict) -> None:
    """Write run.json, with the sha256 of its own fields as the last one."""
    record = json.loads(json.dumps(record))  # what is hashed is what will be read: tuples are lists
    write_json(folder / RUN, record | {"sha256": sha256_of(record)})
