"""Save and load adapters in peft's own file format: adapter_config.json and
adapter_model.safetensors.

The keys of the tensors are peft's: `base_model.model.` and the parameter's name. Loading is strict:
a missing or unexpected tensor, or a wrong shape, is refused by name. A run, of which an adapter is
a part, is loaded by runs/loading.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_folder import split_revision
from neo_peft.formats.peft_config import CONFIG, format_of, part_folders
from neo_peft.formats.whole_model import save_model
from neo_peft.methods import Method
from neo_peft.model import HeadKind, TunedModel
from neo_peft.settings import Settings, task_of
from neo_peft.system.files import (
    make_folders,
    read_tensors,
    write_folder,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS = "adapter_model.safetensors"
MODEL = "model"  # the folder of a model whose base trained
PLAIN_PREFIX = "base_model.model."  # in front of the tensors of what peft has no adapter for
TASK_TYPES = {
    HeadKind.LM_HEAD: "CAUSAL_LM",
    HeadKind.CLASSIFIER: "TOKEN_CLS",
    HeadKind.SCORE: "SEQ_CLS",
}

# ---- Names of tensors


def adapter_files(
    folder: Path, model: TunedModel, parts: tuple[Method, ...]
) -> dict[Path, dict[str, str]]:
    """Return the files of an adapter, each with peft's key and the name here of its tensors.

    A combination is several of peft's folders, the head in the first. A base that trains is a
    model's folder.
    """
    names = list(model.trainable())
    if any(part.trains_base for part in parts):
        return {folder / MODEL / "model.safetensors": {name: name for name in names}}
    heads = [name for name in names if name.split(".")[0] == model.head_kind]
    files = {}
    for place, part in part_folders(folder, parts).items():
        of_type = format_of(part)
        key, prefix = (of_type.key, of_type.HEAD_PREFIX) if of_type else (_plain_key, PLAIN_PREFIX)
        own = (name for name in names if name not in heads and _owner(name, parts) is part)
        keys = {key(name): name for name in own if key(name)}
        if not files:
            keys |= {prefix + name: name for name in heads}
        files[place / WEIGHTS] = keys
    return files


def _owner(name: str, parts: tuple[Method, ...]) -> Method:
    """Return the part of a combination that a tensor belongs to."""
    found = (part for part in parts if part.tensors and re.search(part.tensors, name))
    return next(found, parts[0])


def _plain_key(name: str) -> str:
    """Return the key of a tensor of a method that peft does not have."""
    return PLAIN_PREFIX + name


# ---- Saving


def save_adapter(
    folder: Path | str,
    model: TunedModel,
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[Path]:
    """Write the adapter into a folder, each file whole or not at all; return the files.

    A fully tuned model is written as a model's folder, in transformers' layout, with its tokenizer.
    """
    folder = Path(folder)
    if settings.trains_base:
        labels, whole = task_of(settings).labels, folder / MODEL
        write_folder(
            whole, lambda temporary: save_model(temporary, model, labels, tokenizer), anew=True
        )
        return sorted(whole.iterdir())
    files, parameters = [], dict(model.named_parameters())
    for path, keys in adapter_files(folder, model, settings.parts).items():
        make_folders(path.parent)
        write_tensors(path, {key: parameters[name] for key, name in keys.items()})
        files.append(path)
    for place, part in part_folders(folder, settings.parts).items():
        if format_of(part):
            write_json(place / CONFIG, _peft_config(model, settings, part))
            files.append(place / CONFIG)
    return files


def _peft_config(model: TunedModel, settings: Settings, part: Method) -> dict:
    """Return what peft must know to load a part of the adapter."""
    base, revision = split_revision(settings.model)
    return {
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "task_type": TASK_TYPES[model.head_kind],
        "peft_type": part.peft_type,
        **format_of(part).to_config(model, settings),
    }


# ---- Loading


def load_adapter(folder: Path | str, model: TunedModel, parts: tuple[Method, ...]) -> None:
    """Load the tensors of a folder into a model that was built for them; refuse what does not fit
    exactly."""
    copy_into(model, read_adapter(folder, model, parts))


def copy_into(model: TunedModel, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters of their names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def read_adapter(
    folder: Path | str, model: TunedModel, parts: tuple[Method, ...], need_head: bool = True
) -> dict[str, Tensor]:
    """Return the tensors of a folder under the names of a model that was built for them; refuse
    what does not fit exactly. Without `need_head` the folder may have no head."""
    parameters, found = dict(model.named_parameters()), {}
    for path, keys in adapter_files(Path(folder), model, parts).items():
        stored = _read_tensors(path)
        head = {key for key, name in keys.items() if name.split(".")[0] == model.head_kind}
        if not need_head and not head & stored.keys():
            keys = {key: name for key, name in keys.items() if key not in head}
        for problem, names in (
            ("lacks", keys.keys() - stored.keys()),
            ("also holds", stored.keys() - keys.keys()),
        ):
            if names:
                raise InputError(
                    f"{path} {problem} {len(names)} tensors, the first is {min(names)}"
                )
        for key, name in keys.items():
            found[name] = _checked(stored[key], parameters[name], f"{path}: {key}")
    return found


def _checked(tensor: Tensor, parameter: Tensor, what: str) -> Tensor:
    if tensor.shape != parameter.shape:
        shapes = f"{tuple(tensor.shape)}, not {tuple(parameter.shape)}"
        raise InputError(f"{what} has the shape {shapes}")
    if not tensor.isfinite().all():
        raise InputError(f"{what} holds numbers that are not finite")
    return tensor


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
        code = (
            "import torch; from safetensors.torch import save_file; "
            f"tensors = torch.load('{pickled}', 'cpu', weights_only=True); "
            f"save_file({{name: tensor.clone() for name, tensor in tensors.items()}}, '{path}')"
        )
        raise InputError(
            f'{pickled} is pickled, which is never read here; convert it once: python -c "{code}"'
        )
    if not path.exists():
        raise InputError(f"{path} is missing: this is no complete run or adapter")
    tensors = read_tensors(path)
    # With bias "all" peft also stores the head's biases under the names of its wrapper; they are
    # the same head.
    wrapped = ("classifier.modules_to_save.bias", "classifier.original_module.bias")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(wrapped)}
