"""From the flags of train.py to the settings of a run: a new run, one that trains an adapter
further, or one that is resumed. No torch here.
"""

from pathlib import Path
from typing import Any, NamedTuple

from neo_peft.errors import InputError
from neo_peft.formats.peft_config import CONFIG, named_base, read_peft
from neo_peft.methods import owners
from neo_peft.runs.folder import RUN, SETTINGS, read_record, recorded_settings, refuse_unfinished
from neo_peft.settings import TAGGING_SETTINGS, Settings, flag_name, make_settings
from neo_peft.system.files import read_checked_json
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
        raise InputError(f"{flag_name(name)} is settled by --resume {folder}; leave it out")
    return settings_to_resume(folder, given.get("json", False))


def settings_to_resume(folder: Path, json: bool) -> Settings:
    """Read the settings of a run that goes on."""
    if not folder.is_dir():
        raise InputError(
            f"--resume {folder}: there is no such folder; it is the one that a run has begun"
        )
    if not (folder / SETTINGS).exists():
        raise InputError(f"--resume {folder} holds no {SETTINGS}: no run was begun there")
    flags = read_checked_json(folder / SETTINGS) | {"resume": str(folder), "json": json}
    return recorded_settings(folder / SETTINGS, flags)


class Settled(NamedTuple):
    """What an adapter says to whoever trains it further.

    fixed: settings that it decides: its method, and the flags of that method.
    usual: defaults that a flag may still replace: the base, and for a run of ours the task, its
        labels, and how texts are worded or words are read.
    """

    fixed: dict[str, Any]
    usual: dict[str, Any]


def from_adapter(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the adapter says that training starts from. Refuse a flag that it decides."""
    if not given["adapter"].strip():
        raise InputError("--adapter is empty")
    folder = Path(given["adapter"])
    fixed, usual = adapter_settings(folder, given.get("task"))
    for name in given:
        if name in fixed or owners(name):
            value = f", to {fixed[name]}" if name in fixed else ""
            raise InputError(
                f"{flag_name(name)} is settled by --adapter {folder}{value}; leave it out, or "
                "--adapter"
            )
    if "model" not in usual | given:
        raise InputError(f"--adapter {folder} names no base that is here; name it with --model")
    return usual | given | fixed | {"adapter": str(folder.resolve())}


def adapter_settings(folder: Path, task: str | None) -> Settled:
    """Read what a run, or an adapter of peft's own, says to whoever trains it further."""
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
        return Settled(found, {"model": base} if base else {})
    own = recorded_settings(folder / RUN, read_record(folder)["flags"])
    fixed = {"method", *(name for part in own.parts for name in part.flags)}
    usual = {"task", "model", "head_dropout"}
    if (known := TASKS.get(task or own.task)) and known.tags_words:
        usual |= TAGGING_SETTINGS
    if task in (None, own.task):
        usual |= {"labels", "label_words", "wording"}
        fixed |= {"readout"}
    elif own.readout == "head":
        raise InputError(
            f"--adapter {folder} has a head for {own.task}; it is not trained further for {task}"
        )
    flags = vars(own)
    return Settled(
        {name: flags[name] for name in sorted(fixed)}, {name: flags[name] for name in sorted(usual)}
    )
