"""From the flags of train.py to the settings of a run: a new run, one that trains an adapter
further, or one that is resumed. No torch here.
"""

import dataclasses
from pathlib import Path
from typing import Any

from neo_peft.errors import InputError
from neo_peft.formats.peft_config import CONFIG, named_base, read_peft
from neo_peft.runs.folder import RUN, SETTINGS, recorded_settings, refuse_unfinished
from neo_peft.settings import OF_TAGS, Settings, make_settings
from neo_peft.system.files import read_json, read_sealed
from neo_peft.tasks import TASKS


def settings_from(given: dict[str, Any]) -> Settings:
    """Make settings of the flags that are given, and of the adapter that they may name."""
    return make_settings(**(from_adapter(given) if "adapter" in given else given))


def resumed(given: dict[str, Any]) -> Settings:
    """Take the settings of the run that goes on. Refuse every other flag, but how it speaks."""
    if not given["resume"].strip():
        raise InputError("--resume is empty")
    folder = Path(given["resume"])
    for name in given.keys() - {"resume", "json"}:
        raise InputError(
            f"--{name.replace('_', '-')} is settled by --resume {folder}; leave it out"
        )
    return settings_to_resume(folder, given.get("json", False))


def settings_to_resume(folder: Path, json: bool) -> Settings:
    """Read the settings of a run that goes on."""
    if not folder.is_dir():
        raise InputError(
            f"--resume {folder}: there is no such folder; it is the one that a run has begun"
        )
    if not (folder / SETTINGS).exists():
        raise InputError(f"--resume {folder} holds no {SETTINGS}: no run was begun there")
    flags = read_sealed(folder / SETTINGS) | {"resume": str(folder), "json": json}
    return recorded_settings(folder / SETTINGS, flags)


def from_adapter(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the adapter that training starts from says of itself. Refuse a flag that it has
    settled."""
    if not given["adapter"].strip():
        raise InputError("--adapter is empty")
    folder = Path(given["adapter"])
    settled, usual = adapter_flags(folder, given.get("task"))
    for item in dataclasses.fields(Settings):
        if item.name in given and (item.name in settled or item.metadata["only"]):
            value = f", to {settled[item.name]}" if item.name in settled else ""
            name = "--" + item.name.replace("_", "-")
            raise InputError(
                f"{name} is settled by --adapter {folder}{value}; leave it out, or --adapter"
            )
    if "model" not in usual | given:
        raise InputError(f"--adapter {folder} names no base that is here; name it with --model")
    return usual | given | settled | {"adapter": str(folder.resolve())}


def adapter_flags(folder: Path, task: str | None) -> tuple[dict, dict]:
    """Read what a run, or an adapter of peft's own, says to whoever trains it further: what is
    settled, which is its method and its flags, and what is only a default: the base, and of a run
    the task, its labels, how it is read."""
    if not folder.is_dir():
        raise InputError(
            f"--adapter {folder}: there is no such folder; it is a run's, or one of peft's"
        )
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        found = read_peft(folder)
        if found is None:
            raise InputError(
                f"--adapter {folder} holds neither {RUN} nor {CONFIG}: it is no finished run, no "
                "adapter"
            )
        base = named_base(folder)
        return found, {"model": base} if base else {}
    flags = read_json(folder / RUN).get("flags")
    if not isinstance(flags, dict) or not isinstance(flags.get("method"), str):
        raise InputError(f"{folder / RUN} names no method: it is no run of train.py's")
    parts = flags["method"].split("+")
    fields = {
        item.name for item in dataclasses.fields(Settings) if item.metadata["only"] in parts
    } | {"method"}
    usual = {"task", "model", "head_dropout"}
    if (known := TASKS.get(task or flags.get("task"))) and known.tags_words:
        usual |= {*OF_TAGS}
    if task in (None, flags.get("task")):
        usual |= {"labels", "label_words"}
        fields |= {"readout"}
    elif flags.get("readout") == "head":
        raise InputError(
            f"--adapter {folder} has a head for {flags.get('task')}; it is not trained further for "
            f"{task}"
        )
    return tuple(
        {name: flags[name] for name in sorted(names & flags.keys())} for names in (fields, usual)
    )
