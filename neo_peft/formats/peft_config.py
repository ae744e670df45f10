"""Read peft's adapter_config.json as our settings; without torch, so that flags are checked fast.

Different versions of peft write different options. A supported option becomes a setting. An option
without effect on a trained adapter is ignored. Any other option raises InputError, unless its value
is neutral, such as None or False. The options of LoRA are in peft_lora.py, those of a soft prompt
in peft_prompt.py, of a prefix in peft_prefix.py, the kind of head in peft_head.py.
"""

import os
import re
from pathlib import Path

from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.formats import peft_lora, peft_prefix, peft_prompt
from neo_peft.formats.peft_head import LINEAR_HEADS, AdapterHead, read_head
from neo_peft.methods import METHODS, Method
from neo_peft.system.files import read_json

CONFIG = "adapter_config.json"
# by peft_type
FORMATS = {"LORA": peft_lora, "PROMPT_TUNING": peft_prompt, "PREFIX_TUNING": peft_prefix}

# Options for the initialization, for other programs, or for a feature that is off.
# qalora_group_size has a value even if use_qalora is false, and use_qalora is checked.
# merge_weights only chose when peft merges; it never changed the output.
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping"),
    *("peft_version", "revision", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "merge_weights", "eva_config"),
}


def part_folders(folder: Path, parts: tuple[Method, ...]) -> dict[Path, Method]:
    """Return the folder of each part of a method: `folder` itself for a single method, and
    `folder`/`part.name` for each part of a combination."""
    return {folder / part.name if len(parts) > 1 else folder: part for part in parts}


def read_peft(folder: Path) -> dict | None:
    """Return our settings for the adapter in a folder, or for the parts of a combination in its
    subfolders; None if there is no adapter."""
    for name, parts in METHODS.items():
        paths = [part_folder / CONFIG for part_folder in part_folders(folder, parts)]
        if all(path.is_file() for path in paths):
            settings: dict = {}
            for path in paths:
                settings |= peft_settings(read_json(path), path)
            # a single adapter's file already gave its method
            return settings | {"method": name} if len(parts) > 1 else settings
    return None


def first_config(folder: Path) -> Path | None:
    """Return the adapter_config.json in a folder, or of the first part of a combination in its
    subfolders; None if there is no adapter."""
    folders = (path for parts in METHODS.values() for path in part_folders(folder, parts))
    return next((path / CONFIG for path in folders if os.path.isfile(path / CONFIG)), None)


def adapter_head(folder: Path) -> AdapterHead | None:
    """Return what the adapter in a folder tells of its head; None if there is no adapter."""
    path = first_config(folder)
    return read_head(read_json(path), path) if path else None


def named_base(folder: Path) -> str | None:
    """Return the base model that the adapter_config.json in a folder names: an existing folder or a
    hub id; None if it names neither."""
    path = first_config(folder)
    config = read_json(path) if path else {}
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str):
        return None
    if Path(name).parent == ASSETS.resolve():
        return Path(name).name  # the bundled model, as export writes it
    if os.path.isdir(name):  # Path.is_dir() raises for a name that is too long
        return name
    hub_id = f"{name}@{revision}" if revision else name
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?", hub_id)
    return hub_id if is_hub_id and len(hub_id) < 300 else None


def peft_settings(config: dict, path: Path) -> dict:
    """Return our settings for an adapter_config.json. Raises InputError, which names the option,
    for an option that is not supported."""
    peft_type = config.get("peft_type")
    if peft_type not in list(FORMATS):  # a list, since the value can be unhashable
        raise InputError(f"{path}: peft_type is {peft_type!r}; expected {' or '.join(FORMATS)}")
    peft_format = FORMATS[peft_type]
    for name, value in config.items():
        neutral = value in (None, False, {}, [], "") or (
            name == "num_transformer_submodules" and value == 1
        )
        if name not in peft_format.KNOWN | _WITHOUT_EFFECT and not neutral:
            raise InputError(
                f"{path}: {name} is {value!r}: this option is not supported, and can change the "
                "output; use peft"
            )
    _check_names(config, path)
    head = read_head(config, path)
    for name, (is_valid, expected) in peft_format.RANGES.items():
        if (name in config or name in peft_format.REQUIRED) and not is_valid(config.get(name)):
            raise InputError(f"{path}: {name} is {config.get(name)!r}; expected {expected}")
    method = next(
        name for name, parts in METHODS.items() if [part.peft_type for part in parts] == [peft_type]
    )
    readout = "head" if "score" in (head.named, head.stored) else "words"
    return {"readout": readout, "method": method} | peft_format.to_settings(config)


def _check_names(config: dict, path: Path) -> None:
    """Raise InputError for module names that are not text or not valid, and for modules to save
    that are not a head."""
    for option in ("target_modules", "modules_to_save"):
        value = config.get(option) or []
        names = [value] if isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InputError(f"{path}: {option} is {value!r}; expected a list of names")
        for name in names:
            try:
                re.compile(name)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(
                    f"{path}: {option} has {name!r}, which is not a name or a regular expression: "
                    f"{error}"
                ) from None
        others, heads = sorted({*names} - LINEAR_HEADS), sorted({*names} & LINEAR_HEADS)
        if option == "modules_to_save" and others:
            raise InputError(f"{path}: {option} is {others}; only a head is supported")
        if option == "target_modules" and heads:
            raise InputError(f"{path}: {option} has the head {heads[0]}; use peft for such LoRA")
