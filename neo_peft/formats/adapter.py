"""Save and load adapters in peft's file format: adapter_config.json and adapter_model.safetensors.
Save a whole model (fully tuned, or with LoRA merged into it) as a folder that transformers loads.

The keys of the tensors are those of peft, for LoRA `base_model.model.` and the name. Loading is
strict: it raises InputError for a missing or unexpected tensor, or a wrong shape. An adapter is one
part of a run; runs/loading.py loads the whole run.
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
MODEL_FOLDER = "model"  # the folder of a fully tuned model, inside the run's folder
# For each kind of head: peft's task_type, and the class in transformers.
HEADS = {
    HeadKind.LM_HEAD: ("CAUSAL_LM", "GPTNeoForCausalLM"),
    HeadKind.CLASSIFIER: ("TOKEN_CLS", "GPTNeoForTokenClassification"),
    HeadKind.SCORE: ("SEQ_CLS", "GPTNeoForSequenceClassification"),
}

# ---- Tensor names


def adapter_files(
    folder: Path, model: TunedModel, parts: tuple[Method, ...]
) -> dict[Path, dict[str, str]]:
    """Return the files of an adapter. For each file: a dict from peft's key of a tensor to the name
    of the parameter in `model`.

    A combination of methods has one adapter folder for each part; the head is in the first one. A
    fully tuned model has one file in the layout of transformers.
    """
    names = model.trainable()
    if any(part.trains_base for part in parts):
        return {folder / MODEL_FOLDER / "model.safetensors": {name: name for name in names}}
    files = {}
    for part_folder, part in part_folders(folder, parts).items():
        # a method that peft does not have uses LoRA's keys
        key = FORMATS.get(part.peft_type, FORMATS["LORA"]).key
        part_names = (name for name in names if _owner(name, parts) is part)
        files[part_folder / ADAPTER_FILE] = {key(name): name for name in part_names}
    return files


def _owner(name: str, parts: tuple[Method, ...]) -> Method:
    """Return the part of a combination that a tensor belongs to. The head belongs to the first."""
    matching = (part for part in parts if part.tensors and re.search(part.tensors, name))
    return next(matching, parts[0])


# ---- Saving


def save_adapter(
    folder: Path | str,
    model: TunedModel,
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """Write the adapter into a folder. An interrupted write leaves no partial file.

    A fully tuned model is written to the folder `model/` in the layout of transformers, with its
    tokenizer.
    """
    folder = Path(folder)
    if settings.trains_base:
        write_folder(
            folder / MODEL_FOLDER,
            lambda path: save_model(path, model, task_of(settings).labels, tokenizer),
            overwrite=True,
        )
        return
    parameters, files = model.trainable(), adapter_files(folder, model, settings.parts)
    base, revision = split_revision(settings.model)
    for part_folder, part in part_folders(folder, settings.parts).items():
        path = part_folder / ADAPTER_FILE
        make_folders(part_folder)
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
            write_json(part_folder / CONFIG, config)


# ---- Saving a whole model


def save_model(
    folder: Path,
    model: TunedModel,
    labels: tuple[str, ...],
    tokenizer: PreTrainedTokenizerFast | None,
) -> None:
    """Write a whole model in fp32 into a folder that transformers loads. It must not have LoRA
    layers or a prompt."""
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()))
    write_json(folder / "config.json", _model_config(model, labels))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _model_config(model: TunedModel, labels: tuple[str, ...]) -> dict:
    """Return the config.json of a whole model."""
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
        # transformers applies `score` at the last token that is not this one
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
    """Copy each tensor into the trainable parameter with its name."""
    parameters = model.trainable()
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def read_adapter(
    folder: Path, model: TunedModel, parts: tuple[Method, ...], need_head: bool = True
) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names of the model's trainable parameters.

    With `need_head` False, an adapter without a head is allowed too. Raises InputError for a
    missing or unexpected tensor, a wrong shape, or values that are not finite.
    """
    parameters, tensors = model.trainable(), {}
    for path, keys in adapter_files(folder, model, parts).items():
        stored = _read_tensors(path)
        head = {key for key, name in keys.items() if name.split(".")[0] == model.head_kind}
        if not need_head and not head & stored.keys():
            keys = {key: name for key, name in keys.items() if key not in head}
        for problem, names in (
            ("missing", keys.keys() - stored.keys()),
            ("unexpected", stored.keys() - keys.keys()),
        ):
            if names:
                raise InputError(
                    f"{path}: {problem} tensors: {len(names)}, the first is {min(names)}"
                )
        for key, name in keys.items():
            tensor, shape = stored[key], parameters[name].shape
            if tensor.shape != shape:
                raise InputError(
                    f"{path}: {key} has the shape {tuple(tensor.shape)}; expected {tuple(shape)}"
                )
            if not tensor.isfinite().all():
                raise InputError(f"{path}: {key} has values that are not finite")
            tensors[name] = tensor
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        if (pickled := path.with_suffix(".bin")).exists():
            raise InputError(
                f"{pickled} is a pickle file, which is never loaded; convert it once: python -c "
                '"import torch; from safetensors.torch import save_file; '
                f"tensors = torch.load('{pickled}', 'cpu', weights_only=True); save_file("
                f"{{name: tensor.clone() for name, tensor in tensors.items()}}, '{path}')\""
            )
        raise InputError(f"{path} is missing: this run or adapter is not complete")
    tensors = read_tensors(path)
    # With bias "all" peft stores the head's bias twice more, under the names of its wrapper.
    wrapped = ("classifier.modules_to_save.bias", "classifier.original_module.bias")
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(wrapped)}
