"""peft's adapter_config.json, read as settings of ours. No torch here: flags are answered at once.

What peft's versions write differs. An option that we compute as peft does becomes a setting; one
that changes nothing once the tensors are loaded is passed over; any other is refused by name,
unless it is at its neutral value. What belongs to one type of adapter stands in its own file.
"""

import os
import re
from pathlib import Path

from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.formats import peft_lora, peft_prompt
from neo_peft.methods import METHODS, Method
from neo_peft.system.files import read_json

CONFIG = "adapter_config.json"
FORMATS = {"LORA": peft_lora, "PROMPT_TUNING": peft_prompt}  # by peft's own names

# Only for a start that is over, another program's weights, or an option that is off:
# qalora_group_size has a value even where use_qalora, which is looked at, is false. merge_weights
# said when peft merged, never what it computed.
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping"),
    *("peft_version", "revision", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "merge_weights", "eva_config"),
}


def part_folders(folder: Path, parts: tuple[Method, ...]) -> dict[Path, Method]:
    """Return where each part of a method stands: alone in the folder itself, of a combination in
    folders of their names."""
    return {folder / part.name if len(parts) > 1 else folder: part for part in parts}


def read_peft(folder: Path) -> dict | None:
    """Read the adapter in a folder, or the parts of a combination in folders of their own, as
    settings of ours; None where there is none."""
    for name, parts in METHODS.items():
        paths = [place / CONFIG for place in part_folders(folder, parts)]
        if all(path.is_file() for path in paths):
            found: dict = {}
            for path in paths:
                found |= peft_settings(read_json(path), path)
            # alone, the file says which method it is
            return found | {"method": name} if len(parts) > 1 else found
    return None


def named_base(folder: Path) -> str | None:
    """Return the base that peft's file in a folder names: a folder that is there, or a hub id; else
    None."""
    places = (place for parts in METHODS.values() for place in part_folders(folder, parts))
    path = next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)
    config = read_json(path) if path else {}
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str):
        return None
    if Path(name).parent == ASSETS.resolve():
        return Path(name).name  # bundled, as export writes it
    if os.path.isdir(name):  # Path's own raises for a name that is too long
        return name
    hub_id = f"{name}@{revision}" if revision else name
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?", hub_id)
    return hub_id if is_hub_id and len(hub_id) < 300 else None


def peft_settings(config: dict, path: Path) -> dict:
    """Read an adapter_config.json as settings of ours. Refuse by name each option that we do not
    compute."""
    kind, task_type = config.get("peft_type"), config.get("task_type")
    if kind not in list(FORMATS):  # a list, since what came may be one too, and has no hash
        raise InputError(f"{path}: peft_type is {kind!r}; known here are {' and '.join(FORMATS)}")
    if task_type not in (None, "TOKEN_CLS", "SEQ_CLS", "CAUSAL_LM"):
        raise InputError(
            f"{path}: task_type is {task_type!r}; known here are TOKEN_CLS, for tags, "
            "SEQ_CLS, for answers by a head, and CAUSAL_LM"
        )
    of_type = FORMATS[kind]
    for name, value in config.items():
        neutral = value in (None, False, {}, [], "") or (
            name == "num_transformer_submodules" and value == 1
        )
        if name not in of_type.KNOWN | _WITHOUT_EFFECT and not neutral:
            raise InputError(
                f"{path}: {name} is {value!r}: an option that is not known here changes what is "
                "computed; use peft"
            )
    _check_names(config, path)
    for name, (fits, expected) in of_type.RANGES.items():
        if (name in config or name in of_type.REQUIRED) and not fits(config.get(name)):
            raise InputError(f"{path}: {name} is {config.get(name)!r}; expected {expected}")
    method = next(
        name for name, parts in METHODS.items() if [part.peft_type for part in parts] == [kind]
    )
    readout = "head" if task_type == "SEQ_CLS" else "words"
    return {"readout": readout, "method": method} | of_type.to_settings(config)


def _check_names(config: dict, path: Path) -> None:
    """Refuse names of modules that are no names, and modules to save beyond a head."""
    for name in ("target_modules", "modules_to_save"):
        value = config.get(name) or []
        parts = [value] if isinstance(value, str) else value
        if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
            raise InputError(f"{path}: {name} is {value!r}; it is a list of names")
        for part in parts:
            try:
                re.compile(part)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(
                    f"{path}: {name} has {part!r}, no name and no regular expression: {error}"
                ) from None
        others = sorted({*parts} - {"classifier", "score"})
        if name == "modules_to_save" and others:
            raise InputError(f"{path}: {name} is {others}: beyond the head, none is known here")
