"""The head that a peft adapter was trained with: the language model's, one for tags, or one for
labels. Without torch, so that flags are checked fast.

peft writes it as `task_type`. An adapter without a task_type has the class of its model in
`auto_mapping`. The tensors in the file show it too, unless peft did not save the head.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.system.files import refuse_endless

ADAPTER_FILE = "adapter_model.safetensors"
# For each head, by its name in transformers: peft's task_type, and the class in transformers.
HEADS = {
    "lm_head": ("CAUSAL_LM", "GPTNeoForCausalLM"),
    "classifier": ("TOKEN_CLS", "GPTNeoForTokenClassification"),
    "score": ("SEQ_CLS", "GPTNeoForSequenceClassification"),
}
LINEAR_HEADS = {"classifier", "score"}
PREDICTS = {"lm_head": "label words", "classifier": "tags", "score": "labels by a head"}


class AdapterHead(NamedTuple):
    """What an adapter's two files tell of its head: "lm_head", "classifier" or "score"."""

    named: str | None  # by the config; None if it names none
    stored: str | None  # a linear head with tensors in the file; None if there is none
    listed: tuple[str, ...]  # `modules_to_save` of the config


def read_head(config: dict, path: Path) -> AdapterHead:
    """Return the head that an adapter_config.json at `path` and the tensors next to it name.

    Raises InputError for a model without one of the three heads, and where the two contradict.
    """
    listed = config.get("modules_to_save")
    listed = [listed] if isinstance(listed, str) else listed
    listed = tuple(map(str, listed)) if isinstance(listed, list) else ()
    file = path.with_name(ADAPTER_FILE)
    head = AdapterHead(_named_head(config, path), _stored_head(file), listed)
    if head.named and head.stored and head.named != head.stored:
        (named, _), (stored, model) = HEADS[head.named], HEADS[head.stored]
        raise InputError(
            f"{path}: the adapter is for {named}, but {ADAPTER_FILE} has the head {head.stored} of "
            f'{model}; if that was its model, set "task_type": "{stored}" in {path.name}'
        )
    if not (head.named or head.stored) and listed and file.exists():
        raise InputError(
            f"{path}: modules_to_save is {list(listed)}, but {file.name} has no such tensor, and "
            "no task_type tells whether the model had a head; save the adapter again"
        )
    return head


def _named_head(config: dict, path: Path) -> str | None:
    """Return the head that the config names by its task_type, or by the class of its model."""
    task_type, mapping = config.get("task_type"), config.get("auto_mapping")
    by_task_type = {kind: head for head, (kind, _) in HEADS.items()}
    if task_type is not None:
        if task_type not in list(by_task_type):  # a list, since the value can be unhashable
            raise InputError(
                f"{path}: task_type is {task_type!r}; expected TOKEN_CLS (tags), SEQ_CLS (labels "
                "by a head) or CAUSAL_LM (label words)"
            )
        return by_task_type[task_type]
    if not mapping:
        return None
    by_class = {model: head for head, (_, model) in HEADS.items()}
    model = mapping.get("base_model_class") if isinstance(mapping, dict) else mapping
    if model not in list(by_class):
        raise InputError(
            f"{path}: auto_mapping has the model {model!r}; expected {', '.join(by_class)}; if it "
            f"is one of them under another name, set its task_type in {path.name}: "
            f"{', '.join(by_task_type)}"
        )
    return by_class[model]


def _stored_head(path: Path) -> str | None:
    """Return the linear head that an adapter's file has tensors of, at least a bias."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    refuse_endless(path)
    try:
        with safe_open(path, framework="numpy") as file:
            keys = " ".join(file.keys())
    except (SafetensorError, OSError):  # reading the tensors will raise an error that names it
        return None
    found = re.search(rf"\b({'|'.join(LINEAR_HEADS)})\.(weight|bias)\b", keys)
    return found and found[1]
