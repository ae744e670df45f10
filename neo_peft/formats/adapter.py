"""Save and load adapters in peft's file format: adapter_config.json and adapter_model.safetensors.
Save a whole model (fully tuned, or with LoRA merged into it) as a folder that transformers loads.

The keys of the tensors are those of peft, for LoRA `base_model.model.` and the name. Loading is
strict: it raises InputError for a missing or unexpected tensor, or a wrong shape. An adapter is one
part of a run; runs/loading.py loads the whole run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_folder import split_revision
from neo_peft.formats.peft_config import CONFIG, FORMATS, part_folders
from neo_peft.formats.peft_head import ADAPTER_FILE, HEADS
from neo_peft.formats.peft_tensors import drop_embeddings, read_peft_tensors
from neo_peft.methods import Method
from neo_peft.model import TunedModel
from neo_peft.settings import Settings, task_of
from neo_peft.system.files import make_folders, write_folder, write_json, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODEL_FOLDER = "model"  # the folder of a fully tuned model, inside the run's folder

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
    folder: Path,
    model: TunedModel,
    parts: tuple[Method, ...],
    need_head: bool = True,
    tokenizer: PreTrainedTokenizerFast | None = None,
    notes: list[str] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names of the model's trainable parameters.

    need_head: if False, an adapter without a head is allowed too.
    tokenizer: for the text of a token in an error message.
    notes: gets a line on what was left out.

    Raises InputError for a missing or unexpected tensor, a wrong shape or dtype, or values that are
    not finite.
    """
    parameters, tensors = model.trainable(), {}
    for path, keys in adapter_files(folder, model, parts).items():
        stored = read_peft_tensors(path)
        if not (wte := model.transformer.wte.weight).requires_grad:
            found = drop_embeddings(stored, wte, path, tokenizer)
            if notes is not None:
                notes += found
        head = {key for key, name in keys.items() if name.split(".")[0] == model.head_kind}
        has_head = any(key in stored for key in head if key.endswith(".weight"))
        if head and not has_head and not need_head:  # with bias "all" peft stores its bias alone
            keys = {key: name for key, name in keys.items() if key not in head}
            stored = {key: tensor for key, tensor in stored.items() if key not in head}
        _check_keys(path, keys.keys(), stored.keys(), head)
        for key, name in keys.items():
            tensor, shape = stored[key], parameters[name].shape
            if tensor.shape != shape:
                raise InputError(
                    f"{path}: {key} has the shape {tuple(tensor.shape)}; expected {tuple(shape)}"
                )
            if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise InputError(
                    f"{path}: {key} is stored as {dtype}, without the scale that its values need; "
                    "only floats of 16 to 64 bits are supported: save the adapter in fp32"
                )
            if not tensor.isfinite().all():
                raise InputError(f"{path}: {key} has values that are not finite")
            tensors[name] = tensor
    return tensors


def _check_keys(path: Path, expected: Set[str], stored: Set[str], head: Set[str]) -> None:
    """Raise InputError for missing and for unexpected tensors. `head` has the keys of a head."""
    for problem, names in (("missing", expected - stored), ("unexpected", stored - expected)):
        if names:
            advice = ""
            if problem == "missing" and names <= head:
                advice = (
                    ": the adapter was saved without its head (peft saves it with a task_type, or "
                    "if modules_to_save names it); train it further with --adapter, which starts "
                    "with an untrained head"
                )
            elif problem == "missing" and (others := stored - expected):
                advice = (
                    f"; the file has {min(others)} instead: save the adapter with peft's "
                    "save_pretrained, which writes its names and its config together"
                )
            raise InputError(
                f"{path}: {problem} tensors: {len(names)}, the first is {min(names)}{advice}"
            )
