"""Check that an adapter belongs to the model that it is loaded into: its head, base and labels.

The checks raise InputError where the adapter does not belong there. They add notes to the loaded
model for what could not be checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.defaults import BUNDLED_MODEL
from neo_peft.errors import InputError
from neo_peft.formats.base import Base
from neo_peft.formats.base_folder import BUNDLED, FORMER_BUNDLED
from neo_peft.formats.peft_config import CONFIG, adapter_head, read_peft
from neo_peft.formats.peft_head import HEADS, LINEAR_HEADS, PREDICTS
from neo_peft.runs.folder import RUN, check_unchanged, read_record

if TYPE_CHECKING:
    from neo_peft.runs.loading import LoadedModel


def check_head(folder: Path, tuned: LoadedModel, further: bool = False) -> None:
    """Raise InputError for an adapter that was trained with another head than the model's.

    further: it is trained further. Then it can have been another one, if the file has no head.
    """
    head, wanted = adapter_head(folder), str(tuned.model.head_kind)
    if head is None:
        return
    found, task = head.named or head.stored, tuned.settings.task
    if head.listed and not head.stored and wanted not in LINEAR_HEADS:
        tuned.notes.append(
            f"{folder}: modules_to_save of {CONFIG} has {', '.join(head.listed)}, but there is no "
            "head in the file: it is not needed here"
        )
    if found is None and wanted not in LINEAR_HEADS:
        tuned.notes.append(
            f"{folder}: {CONFIG} has no task_type, and there is no head in the file: the language "
            "model predicts label words with it"
        )
    elif found not in (None, wanted) and (head.stored or not further):
        advice = "" if head.stored else ", or train it further with --adapter"
        raise InputError(
            f"{folder} is an adapter for {HEADS[found][0]}, which predicts {PREDICTS[found]}; "
            f"{task} predicts {PREDICTS[wanted]} here: name another --task{advice}"
        )
    elif found in LINEAR_HEADS and found != wanted:
        tuned.notes.append(
            f"{folder} was trained to predict {PREDICTS[found]}; here it is trained further to "
            f"predict {PREDICTS[wanted]}"
        )


def check_origin(folder: Path, tuned: LoadedModel) -> None:
    """Raise InputError where a folder does not fit the settings or the base, or a file was changed.

    The peft config must agree with the settings, and run.json's record of the base with the base.
    """
    settings = tuned.settings
    for name, value in (read_peft(folder) or {}).items():
        # The same layers can be written as several values of target_modules; the names of the
        # tensors are checked instead. The initialisation has no effect on trained weights.
        # `check_head` has compared the readout.
        if (
            name not in ("target_modules", "lora_init", "readout")
            and getattr(settings, name) != value
        ):
            raise InputError(
                f"{folder}, {CONFIG}: {name} is {value}, but {getattr(settings, name)} in the "
                "settings"
            )
    if (folder / RUN).exists():
        record = read_record(folder)
        check_base(folder, record["base"], tuned)
        for name in record["files"]:
            if name.endswith(".safetensors"):
                check_unchanged(folder, record, name)
    else:
        tuned.notes.append(
            f"{folder} has no fingerprint of its base: whether this is {settings.model} was not "
            "checked"
        )


def check_base(folder: Path, recorded: dict, tuned: LoadedModel) -> None:
    """Raise InputError where the base is not the recorded one, or computes something else.

    An older run.json has no record of the values that no tensor's shape shows; this is noted.
    """
    model, base, old = tuned.settings.model, tuned.base, str(recorded.get("fingerprint"))
    if old != base.fingerprint:
        if old in FORMER_BUNDLED and base.folder.resolve() == BUNDLED[BUNDLED_MODEL].resolve():
            raise InputError(
                f"{folder} was trained on the {BUNDLED_MODEL} of an earlier version of neo_peft; "
                "the bundled model changed since then: train again"
            )
        message = (
            f"another base than {model}: the fingerprint of its base is {old[:12]}…, that of "
            f"{model} is {base.fingerprint[:12]}…"
        )
        if is_in_other_precision(recorded, base):
            stored = recorded.get("stored_dtype")
            message = (
                f"the same base in another precision than {model}: its weights were stored as "
                f"{stored}, and are {base.stored_dtype} there, which gives other results; name the "
                f"{stored} one with --model (with --precision bf16 or fp16 to compute in half "
                "precision), or train again"
            )
        raise InputError(f"{folder} was trained on {message}")
    computed = base.computed()
    for name, value in computed.items():
        if name in recorded and recorded[name] != value:
            what = f"{name} was {recorded[name]}, and is {value}"
            what = "its tokenizer splits texts differently" if name == "tokenizer" else what
            raise InputError(
                f"{folder} was trained on the weights of {model}, but {what}: put the base's files "
                "back as they were, or name the right base with --model"
            )
    if missing := sorted(computed.keys() - recorded.keys()):
        tuned.notes.append(
            f"{folder} is of an older version, and does not record these values of its base: "
            f"{', '.join(missing)}; only the weights were compared"
        )


def is_in_other_precision(recorded: dict, base: Base) -> bool:
    """Return whether a recorded base has the same weights after rounding to bf16, or to fp16."""
    rounded = recorded.get("rounded")
    return isinstance(rounded, list) and any(digest in rounded for digest in base.rounded)


def check_labels(folder: Path, tuned: LoadedModel) -> None:
    """Raise InputError unless a run's labels are the task's, in the same order: row k of the head's
    weights belongs to label k."""
    if (folder / RUN).exists() and read_record(folder)["labels"] != list(tuned.encoder.task.labels):
        raise InputError(
            f"{folder / RUN} lists other labels than the task {tuned.settings.task} has"
        )


def empty_weights(folder: Path | str, tuned: LoadedModel) -> list[str]:
    """Return a note for each part of a loaded adapter that is still zero: it learned nothing."""
    model, found = tuned.model, []
    for part in tuned.settings.parts:
        found += part.call("warnings", model) or []
    for name, parameter in model.trainable().items():  # a head's weights, a prompt's embeddings
        if not name.startswith("transformer.") and parameter.dim() > 1 and not parameter.any():
            found.append(f"{name} is all zero. It learned nothing")
    return [f"{folder}: {line}" for line in found]
