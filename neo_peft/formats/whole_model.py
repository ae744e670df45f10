"""A whole model as a folder that transformers loads: a tuned base, or one with LoRA merged into
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.model import HeadKind, TunedModel
from neo_peft.system.files import write_json, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# transformers' architecture for each kind of head.
ARCHITECTURES = {
    HeadKind.LM_HEAD: "GPTNeoForCausalLM",
    HeadKind.CLASSIFIER: "GPTNeoForTokenClassification",
    HeadKind.SCORE: "GPTNeoForSequenceClassification",
}


def save_model(
    folder: Path,
    model: TunedModel,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerFast | None = None,
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


def _model_config(model: TunedModel, labels: Sequence[str]) -> dict:
    """Write the config.json of a whole model, with the architecture that transformers has for
    it."""
    config = model.transformer.config
    names = list(config.attention_layers)
    values = dataclasses.asdict(config) | {
        "architectures": [ARCHITECTURES[model.head_kind]],
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
    if model.head:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values
