"""Make the settings of a run from the flags of train.py: a new run, one that trains an adapter
further, or one that is resumed. No torch here."""

from pathlib import Path
from typing import Any, NamedTuple

from neo_peft.errors import InputError
from neo_peft.formats.peft_config import CONFIG, named_base, read_peft
from neo_peft.runs.folder import (
    RUN,
    SETTINGS,
    one_folder_down,
    read_record,
    recorded_settings,
    refuse_unfinished,
)
from neo_peft.settings import TAGGING_SETTINGS, Settings, flag_name, make_settings, owners
from neo_peft.system.files import read_checked_json
from neo_peft.tasks import TASKS


def settings_from(given: dict[str, Any]) -> Settings:
    """Return the settings made from the given flags, and from the adapter of --adapter if given."""
    return make_settings(**(with_adapter_flags(given) if "adapter" in given else given))


def resumed_settings(given: dict[str, Any]) -> Settings:
    """Return the settings of the run to resume. Raise InputError for any other flag but --json."""
    if not given["resume"].strip():
        raise InputError("--resume is empty")
    folder = Path(given["resume"])
    for name in given.keys() - {"resume", "json"}:
        raise InputError(
            f"{flag_name(name)} cannot be used with --resume {folder}, which keeps all settings of "
            "the run; leave it out"
        )
    return settings_to_resume(folder, given.get("json", False))


def settings_to_resume(folder: Path, json: bool) -> Settings:
    """Return the settings of the run in a folder, with `resume` and `json` set."""
    if not folder.is_dir():
        raise InputError(
            f"--resume {folder}: there is no such folder; give the folder of the stopped run"
        )
    if not (folder / SETTINGS).exists():
        raise InputError(f"--resume {folder} holds no {SETTINGS}: no run was started there")
    flags = read_checked_json(folder / SETTINGS) | {"resume": str(folder), "json": json}
    return recorded_settings(folder / SETTINGS, flags)


class AdapterFlags(NamedTuple):
    """The settings of an adapter, for a run that trains it further."""

    fixed: dict[str, Any]  # cannot be changed: its method, and the flags of that method
    # Can be replaced by a flag: the base. For an adapter of a run also the task, its labels and
    # label words, the wording of texts, and the flags of tagging.
    defaults: dict[str, Any]


def with_adapter_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags with the adapter's settings added. Raise InputError for a flag that the
    adapter fixes."""
    if not given["adapter"].strip():
        raise InputError("--adapter is empty")
    folder = Path(given["adapter"])
    fixed, defaults = adapter_flags(folder, given.get("task"))
    for name in given:
        if name in fixed or owners(name):
            value = f" ({fixed[name]})" if name in fixed else ""
            raise InputError(
                f"{flag_name(name)} is fixed by --adapter {folder}{value}; leave out one of them"
            )
    if "model" not in defaults | given:
        raise InputError(
            f"--adapter {folder}: its base is not recorded or not found; name it with --model"
        )
    return defaults | given | fixed | {"adapter": str(folder.resolve())}


def adapter_flags(folder: Path, task: str | None) -> AdapterFlags:
    """Return the settings of a run or a peft adapter that is trained further.

    task: the value of --task, if given.
    """
    if not folder.is_dir():
        raise InputError(
            f"--adapter {folder}: there is no such folder; give that of a run or a peft adapter"
        )
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        config = read_peft(folder)
        if config is None:
            raise InputError(
                f"--adapter {folder} holds neither {RUN} nor {CONFIG}: it is no finished run and "
                f"no adapter{one_folder_down(folder)}"
            )
        if task in TASKS and TASKS[task].is_tagging:
            config.pop("readout")  # a tagging task has no such setting; the head is checked later
        base = named_base(folder)
        return AdapterFlags(config, {"model": base} if base else {})
    settings = recorded_settings(folder / RUN, read_record(folder)["flags"])
    fixed = {"method", *(name for part in settings.parts for name in part.flags)}
    defaults = {"task", "model", "quantize", "head_dropout"}
    new_task = TASKS.get(task or settings.task)
    if new_task and new_task.is_tagging:
        defaults |= TAGGING_SETTINGS
    if task in (None, settings.task):
        defaults |= {"labels", "label_words", "wording"}
        fixed |= {"readout"}
    elif settings.readout == "head":
        raise InputError(
            f"--adapter {folder} has a head for {settings.task}, which cannot be used for {task}"
        )
    flags = vars(settings)
    return AdapterFlags(
        fixed={name: flags[name] for name in sorted(fixed)},
        defaults={name: flags[name] for name in sorted(defaults)},
    )
