"""Save and load adapters in peft's own file format: adapter_config.json and
adapter_model.safetensors. A whole model, a tuned base or one with LoRA merged into it, is saved as
a folder that transformers loads.

The keys of the tensors are peft's: `base_model.model.` and the parameter's name. Loading is strict:
a missing or unexpected tensor, or a wrong shape, is refused by name. A run, of which an adapter is
a part, is loaded by runs/loading.py.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_folder import split_revision
from neo_peft.formats.peft_config import CONFIG, FORMATS, part_folders
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

ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FOLDER = "model"  # the folder of a model whose base trained
# For each kind of head, peft's type of task and transformers' architecture.
HEADS = {
    HeadKind.LM_HEAD: ("CAUSAL_LM", "GPTNeoForCausalLM"),
    HeadKind.CLASSIFIER: ("TOKEN_CLS", "GPTNeoForTokenClassification"),
    HeadKind.SCORE: ("SEQ_CLS", "GPTNeoForSequenceClassification"),
}

# ---- Names of tensors


def adapter_files(
    folder: Path, model: TunedModel, parts: tuple[Method, ...]
) -> dict[Path, dict[str, str]]:
    """Return the files of an adapter, each with peft's key and the name here of its tensors.

    A combination is several of peft's folders, the head in the first. A base that trains is a
    model's folder.
    """
    names = model.trainable()
    if any(part.trains_base for part in parts):
        return {folder / MODEL_FOLDER / "model.safetensors": {name: name for name in names}}
    files = {}
    for place, part in part_folders(folder, parts).items():
        # what peft has no adapter for is named as LoRA's tensors are
        key = FORMATS.get(part.peft_type, FORMATS["LORA"]).key
        own = (name for name in names if _owner(name, parts) is part)
        files[place / ADAPTER_FILE] = {key(name): name for name in own}
    return files


def _owner(name: str, parts: tuple[Method, ...]) -> Method:
    """Return the part of a combination that a tensor belongs to; the first one has the head."""
    found = (part for part in parts if part.tensors and re.search(part.tensors, name))
    return next(found, parts[0])


# ---- Saving


def save_adapter(
    folder: Path | str,
    model: TunedModel,
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """Write the adapter into a folder, each file whole or not at all.

    A fully tuned model is written as a model's folder, in transformers' layout, with its tokenizer.
    """
    folder = Path(folder)
    if settings.trains_base:
        write_folder(
            folder / MODEL_FOLDER,
            lambda inside: save_model(inside, model, task_of(settings).labels, tokenizer),
            overwrite=True,
        )
        return
    parameters, files = model.trainable(), adapter_files(folder, model, settings.parts)
    base, revision = split_revision(settings.model)
    for place, part in part_folders(folder, settings.parts).items():
        path = place / ADAPTER_FILE
        make_folders(place)
        write_tensors(path, {key: parameters[name] for key, name in files[path].items()})
        if part.peft_type in FORMATS:
            config = {
                "base_model_name_or_path": base,
                "revision": revision,
                "inference_mode": True,
                "task_type": HEADS[model.head_kind][0],
                "peft_type": part.peft_type,
            }
            config |= FORMATS[part.peft_type].to_config(model, settings)
            write_json(place / CONFIG, config)


# ---- Saving a whole model


def save_model(
    folder: Path,
    model: TunedModel,
    labels: tuple[str, ...],
    tokenizer: PreTrainedTokenizerFast | None,
) -> None:
    """Write a whole model without LoRA or a prompt, in fp32, into a folder, so that transformers
    loads it."""
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()))
    write_json(folder / "config.json", _model_config(model, labels))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _model_config(model: TunedModel, labels: tuple[str, ...]) -> dict:
    """Return the config.json of a whole model, with the architecture that transformers has for
    it."""
    config = model.transformer.config
    values = dataclasses.asdict(config) | {
        "architectures": [HEADS[model.head_kind][1]],
        "model_type": "gpt_neo",
        "attention_types": [[[name], 1] for name in config.attention_layers],
        "num_layers": config.num_layers,
        "activation_function": "gelu_new",
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "resid_dropout": 0.0,
        "classifier_dropout": model.head_dropout,
        "bos_token_id": config.eos_token_id,
        # `score` is read at the last token that is not this one
        "pad_token_id": config.eos_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if model.head:
        values["id2label"] = dict(enumerate(labels))
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values


# ---- Loading


def copy_into(model: TunedModel, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters of their names."""
    parameters = model.trainable()
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def read_adapter(
    folder: Path, model: TunedModel, parts: tuple[Method, ...], need_head: bool = True
) -> dict[str, Tensor]:
    """Return the tensors of a folder under the names of a model that was built for them; refuse
    what does not fit exactly. Without `need_head` the folder may have no head."""
    parameters, found = model.trainable(), {}
    for path, keys in adapter_files(folder, model, parts).items():
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
            found[name], shape = stored[key], parameters[name].shape
            if found[name].shape != shape:
                raise InputError(
                    f"{path}: {key} has the shape {tuple(found[name].shape)}, not {tuple(shape)}"
                )
            if not found[name].isfinite().all():
                raise InputError(f"{path}: {key} holds numbers that are not finite")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        if (pickled := path.with_suffix(".bin")).exists():
            raise InputError(
                f"{pickled} is pickled, which is never read here; convert it once: python -c "
                '"import torch; from safetensors.torch import save_file; '
                f"tensors = torch.load('{pickled}', 'cpu', weights_only=True); save_file("
                f"{{name: tensor.clone() for name, tensor in tensors.items()}}, '{path}')\""
            )
        raise InputError(f"{path} is missing: this is no complete run or adapter")
    tensors = read_tensors(path)
    # With bias "all" peft also stores the head's biases under the names of its wrapper; they are
    # the same head.
    wrapped = ("classifier.modules_to_save.bias", "classifier.original_module.bias")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(wrapped)}
