"""Save and load adapters in peft's own file format: adapter_config.json and
adapter_model.safetensors.

The keys of the tensors are peft's: `base_model.model.` and the parameter's name. Loading is strict:
a missing or unexpected tensor, or a wrong shape, is refused by name. What stands around an adapter,
a run, is in loading.py.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_folder import split_revision
from neo_peft.formats.peft_config import CONFIG
from neo_peft.lora import LoRALinear
from neo_peft.model import TunedModel
from neo_peft.settings import Settings, task_of
from neo_peft.system.files import (
    make_folders,
    read_tensors,
    write_folder,
    write_json,
    write_tensors,
)

WEIGHTS = "adapter_model.safetensors"

# ---- Names of tensors


def adapter_keys(model: TunedModel, with_prompt: bool) -> dict[str, str]:
    """Map peft's key of each trainable tensor to its name here. peft's prefix of a head differs
    beside a prompt."""
    keys = {}
    for name in model.trainable():
        module, _, kind = name.rpartition(".")
        if name == "prompt.embeddings":
            keys["prompt_embeddings"] = name
        elif with_prompt:
            keys[f"base_model.{name}"] = name
        elif kind == "bias" and isinstance(model.get_submodule(module), LoRALinear):
            keys[f"base_model.model.{module}.base_layer.bias"] = name
        else:
            keys[f"base_model.model.{name}"] = name
    return keys


def folder_parts(model: TunedModel, folder: Path) -> dict[Path, dict[str, str]]:
    """Say which files hold the adapter: {file: its keys}. LoRA beside a prompt is two of peft's
    folders, the head with LoRA; a fully tuned model is a model's folder."""
    lora = any(isinstance(module, LoRALinear) for module in model.modules())
    if any(parameter.requires_grad for parameter in model.transformer.wte.parameters()):
        return {folder / "model" / "model.safetensors": {name: name for name in model.trainable()}}
    if model.prompt is None or not lora:
        return {folder / WEIGHTS: adapter_keys(model, with_prompt=model.prompt is not None)}
    keys = adapter_keys(model, with_prompt=False)
    return {
        folder / "lora" / WEIGHTS: {
            key: name for key, name in keys.items() if key != "prompt_embeddings"
        },
        folder / "prompt" / WEIGHTS: {"prompt_embeddings": "prompt.embeddings"},
    }


#
# ---- Saving


def save_adapter(
    folder: Path | str, model: TunedModel, settings: Settings, tokenizer: Any = None
) -> list[Path]:
    """Write the adapter into a folder, each file whole or not at all; return the files.

    A fully tuned model is written as a model's folder, in transformers' layout, with its tokenizer.
    """
    files, parameters = [], dict(model.named_parameters())
    for path, keys in folder_parts(model, Path(folder)).items():
        # "." or the part's own folder, whatever the user's is called
        part = str(path.parent.relative_to(folder))
        if part == "model":
            labels, whole = task_of(settings).labels, path.parent
            write_folder(
                whole,
                lambda temporary: save_model(temporary, model, labels, tokenizer),  # noqa: B023
                anew=True,
            )
            return sorted(whole.iterdir())
        make_folders(path.parent)
        write_tensors(path, {key: parameters[name] for key, name in keys.items()})
        files.append(path)
        if config := _adapter_config(model, settings, part):
            write_json(path.parent / CONFIG, config)
            files.append(path.parent / CONFIG)
    return files


def save_model(
    folder: Path, model: TunedModel, labels: Sequence[str], tokenizer: Any = None
) -> list[Path]:
    """Write a whole model without LoRA or a prompt, in fp32, as a folder that transformers loads;
    return its files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()))
    write_json(folder / "config.json", _model_config(model, labels))
    files = [folder / "model.safetensors", folder / "config.json"]
    if tokenizer is not None:
        files += [folder / Path(name).name for name in tokenizer.save_pretrained(folder)]
    return [file for file in files if file.is_file()]


def _adapter_config(model: TunedModel, settings: Settings, part: str) -> dict | None:
    """Write down what peft must know to load the adapter; a head alone is no adapter of peft's."""
    trunk = model.transformer.config
    base, revision = split_revision(settings.model)
    common = {
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "task_type": {None: "CAUSAL_LM", "classifier": "TOKEN_CLS", "score": "SEQ_CLS"}[
            model.head_name
        ],
    }
    if model.prompt is not None and part != "lora":
        return common | {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": len(model.prompt),
            "token_dim": trunk.hidden_size,
            "num_layers": trunk.num_layers,
            "num_attention_heads": trunk.num_heads,
            "num_transformer_submodules": 1,
            # What the rows started from is over once they are loaded; peft would look for a
            # tokenizer to repeat it.
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
        }
    if "lora" not in settings.methods:
        return None
    return common | {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": peft_targets(model),
        "bias": settings.bias,
        "use_rslora": settings.rslora,
        "fan_in_fan_out": False,
        "init_lora_weights": "gaussian" if settings.lora_init == "gaussian" else True,
        "modules_to_save": [model.head_name] if model.head_name else None,
    }


def peft_targets(model: TunedModel) -> list[str]:
    """Name the adapted layers so that peft finds the same: by the ends of their names where those
    are enough."""
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    kinds = sorted({name.rsplit(".", 1)[-1] for name in adapted})
    meant = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in kinds
    ]
    return kinds if meant == adapted else sorted(adapted)


# The architecture that reads a model's head in transformers; without one it is the language model.
ARCHITECTURES = {
    None: "GPTNeoForCausalLM",
    "classifier": "GPTNeoForTokenClassification",
    "score": "GPTNeoForSequenceClassification",
}


def _model_config(model: TunedModel, labels: Sequence[str]) -> dict:
    """Write the config.json of a whole model, with the architecture that transformers has for
    it."""
    config = model.transformer.config
    names = list(config.attention_layers)
    values = dataclasses.asdict(config) | {
        "architectures": [ARCHITECTURES[model.head_name]],
        "model_type": "gpt_neo",
        "attention_layers": names,
        "attention_types": [[[name], 1] for name in names],
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
    if model.head_name:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values


#
# ---- Loading


def load_adapter(folder: Path | str, model: TunedModel) -> None:
    """Load the tensors of a folder into a model that was built for them; refuse what does not fit
    exactly."""
    put(read_adapter(folder, model), model)


def put(tensors: dict[str, Tensor], model: TunedModel) -> None:
    """Copy tensors into the parameters of their names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def read_adapter(
    folder: Path | str, model: TunedModel, with_head: bool = True
) -> dict[str, Tensor]:
    """Read the tensors of a folder under the names of a model that was built for them, and refuse
    what does not fit exactly. Without `with_head` the folder may hold none, and the tensors are
    then those of all else."""
    parameters, found = dict(model.named_parameters()), {}
    for path, keys in folder_parts(model, Path(folder)).items():
        stored = dict(_read_tensors(path))
        head = {key for key, name in keys.items() if name.split(".")[0] == model.head_name}
        if not with_head and not head & stored.keys():
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
            tensor, parameter = stored[key], parameters[name]
            if tensor.shape != parameter.shape:
                raise InputError(
                    f"{path}: {key} has the shape {tuple(tensor.shape)}, not "
                    f"{tuple(parameter.shape)}"
                )
            if not tensor.isfinite().all():
                raise InputError(f"{path}: {key} holds numbers that are not finite")
            found[name] = tensor
    return found


def _read_tensors(path: Path) -> list[tuple[str, Tensor]]:
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
    return [(name, tensor) for name, tensor in tensors.items() if not name.endswith(wrapped)]
