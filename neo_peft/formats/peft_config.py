"""peft's adapter_config.json, read as settings of ours. No torch here: flags are answered at once.

What peft's versions write differs. An option that we compute as peft does becomes a setting; one
that changes nothing once the tensors are loaded is passed over; any other is refused by name,
unless it is at its neutral value.
"""

import os
import re
from pathlib import Path

from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.system.files import read_json

CONFIG = "adapter_config.json"

_KNOWN = {
    "LORA": {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
    },
    "PROMPT_TUNING": {
        "num_virtual_tokens",
        "token_dim",
        "num_layers",
        "num_attention_heads",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
        "modules_to_save",
    },
}
# Only for a start that is over, another program's weights, or an option that is off:
# qalora_group_size has a value even where use_qalora, which is looked at, is false. merge_weights
# said when peft merged, never what it computed.
_WITHOUT_EFFECT = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "revision",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
    "merge_weights",
    "eva_config",
}
# What is read as a setting, and in which range; settings.py has the same ranges, but would not name
# the file.
_is_whole = lambda value: type(value) is int and 1 <= value <= 16_384  # noqa: E731
_is_real = lambda value: type(value) in (int, float)  # noqa: E731
_RANGES = {
    "num_virtual_tokens": (_is_whole, "a whole number from 1 to 16384"),
    "r": (_is_whole, "a whole number from 1 to 16384"),
    "lora_alpha": (lambda value: _is_real(value) and 0 < value < 1e30, "a number above 0"),
    "lora_dropout": (
        lambda value: value is None or _is_real(value) and 0 <= value < 1,
        "a number from 0 to below 1",
    ),
    "bias": (
        lambda value: value in (None, "none", "all", "lora_only"),
        "one of none, all, lora_only",
    ),
}
_TASK_TYPES = (None, "TOKEN_CLS", "SEQ_CLS", "CAUSAL_LM")
# those that leave the base's weights where they are
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_TARGETS = ("q_proj", "v_proj")  # peft's own for GPT-Neo


def read_peft(folder: Path) -> dict | None:
    """Read the adapter that stands in a folder, or LoRA and a prompt side by side in `lora/` and
    `prompt/`, as settings of ours; None where there is none."""
    if (folder / CONFIG).is_file():
        return peft_settings(read_json(folder / CONFIG), folder / CONFIG)
    paths = [folder / part / CONFIG for part in ("lora", "prompt")]
    if not all(path.is_file() for path in paths):
        return None
    lora, prompt = (peft_settings(read_json(path), path) for path in paths)
    return {**lora, **prompt, "method": f"{lora['method']}+{prompt['method']}"}


def named_base(folder: Path) -> str | None:
    """Name the base that peft's file in a folder names: a folder that is there, or a hub id; else
    None."""
    path = next(
        (folder / part / CONFIG for part in (".", "lora") if (folder / part / CONFIG).is_file()),
        None,
    )
    config = read_json(path) if path else {}
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str):
        return None
    if Path(name).parent == ASSETS.resolve():
        return Path(name).name  # bundled, as export writes it
    if os.path.isdir(name):  # Path's own raises for a name that is too long
        return name
    hub_id = f"{name}@{revision}" if revision else name
    return (
        hub_id
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?", hub_id) and len(hub_id) < 300
        else None
    )


def peft_settings(config: dict, path: Path) -> dict:
    """Read an adapter_config.json as settings of ours. Refuse by name each option that we do not
    compute."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise InputError(f"{path}: peft_type is {kind!r}; known here are {' and '.join(_KNOWN)}")
    if config.get("task_type") not in _TASK_TYPES:
        raise InputError(
            f"{path}: task_type is {config['task_type']!r}; known here are TOKEN_CLS, for tags, "
            "SEQ_CLS, for "
            "answers by a head, and CAUSAL_LM"
        )
    for name, value in config.items():
        neutral = value in (None, False, {}, [], "") or (
            name == "num_transformer_submodules" and value == 1
        )
        if name not in _KNOWN[kind] | _WITHOUT_EFFECT and not neutral:
            raise InputError(
                f"{path}: {name} is {value!r}: an option that is not known here changes what is "
                "computed; use peft"
            )
    if kind == "LORA" and config.get("init_lora_weights", True) not in _STARTS:
        raise InputError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r}: a start that moves the "
            "base's weights"
        )
    for name in ("target_modules", "modules_to_save"):
        value = config.get(name) or []
        if not (isinstance(value, list | str) and all(isinstance(part, str) for part in value)):
            raise InputError(f"{path}: {name} is {value!r}; it is a list of names")
        for part in [value] if isinstance(value, str) else value:
            try:
                re.compile(part)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(
                    f"{path}: {name} has {part!r}, no name and no regular expression: {error}"
                ) from None
    kept = config.get("modules_to_save") or []
    heads = ({kept} if isinstance(kept, str) else set(kept)) - {"classifier", "score"}
    if heads:
        raise InputError(
            f"{path}: modules_to_save is {sorted(heads)}: beyond the head, none is known here"
        )
    for name, (fits, expected) in _RANGES.items():
        if (
            name in _KNOWN[kind]
            and (name in config or kind == "PROMPT_TUNING")
            and not fits(config.get(name))
        ):
            raise InputError(f"{path}: {name} is {config.get(name)!r}; expected {expected}")
    readout = {"readout": "head" if config.get("task_type") == "SEQ_CLS" else "words"}
    if kind == "PROMPT_TUNING":
        return readout | {"method": "prompt", "prompt_length": config.get("num_virtual_tokens")}
    targets = config.get("target_modules") or _TARGETS
    return readout | {
        "method": "lora",
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout") or 0.0,
        "target_modules": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        "bias": config.get("bias") or "none",
        "rslora": bool(config.get("use_rslora")),
        "lora_init": "gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
    }
