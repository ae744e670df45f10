"""Read the tensors of peft's adapter_model.safetensors under the names that peft gives them.

A file can have more than the adapter: names of wrappers around the model, copies of the head's
bias, and the base's embeddings. peft writes these if the vocabulary was resized, for example after
a token [PAD] was added, although they are frozen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.system.files import read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Modules around a model: torch.compile, DistributedDataParallel, FSDP, activation checkpointing.
_WRAPPERS = r"\b(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# A model's own state_dict has the adapter's name in the keys of its parts: `lora_A.default.weight`.
# peft leaves the name out when it saves an adapter; other programs do not.
_ADAPTER_NAME = r"(?<=\.lora_[AB]\.)[^.]+\.(?=weight$)|\bmodules_to_save\.[^.]+\.(?=(weight|bias)$)"
# peft's keys of the base's embeddings, in a LoRA adapter and in a soft prompt's. The language model
# head has the same weights in GPT-Neo.
_EMBEDDINGS = r"base_model\.(model\.)?(transformer\.wte|lm_head)\.weight"


def read_peft_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file by peft's keys, without the names of wrappers and of
    the adapter."""
    if not path.exists():
        if (pickled := path.with_suffix(".bin")).exists():
            raise InputError(
                f"{pickled} is a pickle file, which is never loaded; convert it once: python -c "
                '"import torch; from safetensors.torch import save_file; '
                f"tensors = torch.load('{pickled}', 'cpu', weights_only=True); save_file("
                f"{{name: tensor.clone() for name, tensor in tensors.items()}}, '{path}')\""
            )
        raise InputError(f"{path} is missing: this run or adapter is not complete")
    tensors = {}
    for stored_key, tensor in read_tensors(path).items():
        key = re.sub(f"{_WRAPPERS}|{_ADAPTER_NAME}", "", stored_key)
        if key in tensors:
            raise InputError(f"{path} has {key} twice; one of them is {stored_key}")
        tensors[key] = tensor
    # Copies of the head under the names of its wrapper. With bias "all" peft stores such a bias.
    copies = (".modules_to_save.bias", ".original_module.bias", ".original_module.weight")
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(copies)}


def drop_embeddings(
    tensors: dict[str, Tensor],
    wte: Tensor,
    path: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[str]:
    """Remove the base's embeddings from an adapter's tensors. Return a note if there were any.

    wte: the base's own (V, H). Rows after the first V are of added tokens, which no text has here.
    Raises InputError for another width, and for a row that is not the base's: it was trained.
    """
    dropped, added = [key for key in tensors if re.fullmatch(_EMBEDDINGS, key)], 0
    for key in dropped:
        rows = tensors.pop(key)
        if not rows.is_floating_point() or rows.dim() != 2 or rows.shape[1] != wte.shape[1]:
            raise InputError(
                f"{path}: {key} is {rows.dtype} of the shape {tuple(rows.shape)}, but the base's "
                f"embeddings are floats of the shape {tuple(wte.shape)}"
            )
        if differing := _differing_rows(rows, wte):
            token = differing[0]
            text = f" ({tokenizer.decode([token])!r})" if tokenizer else ""
            raise InputError(
                f"{path}: {key} differs from the base's embeddings in {len(differing)} of "
                f"{min(len(rows), len(wte))} rows; the first is that of token {token}{text}. "
                "Trained embeddings are not supported: use peft, or name the base that the adapter "
                "was trained on with --model"
            )
        added = max(added, len(rows) - len(wte))
    if not dropped:
        return []
    more = f"; rows for added tokens, which no text has here: {added}" if added else ""
    return [f"{path}: left out a copy of the base's embeddings ({', '.join(dropped)}){more}"]


def _differing_rows(rows: Tensor, wte: Tensor) -> list[int]:
    """Return the indices of the rows that differ from the base's, among those that both have.

    The same numbers in two dtypes are equal up to the rounding of the coarser one.
    """
    count, relative, smallest = min(len(rows), len(wte)), 0.0, 0.0
    if rows.dtype != wte.dtype:
        limits = [torch.finfo(each.dtype) for each in (rows, wte)]
        relative = max(limit.eps for limit in limits)
        smallest = max(limit.tiny * limit.eps for limit in limits)  # below it all rounds to zero
    rows, wte = rows[:count].to(wte.device).float(), wte[:count].float()
    is_close = (rows - wte).abs() <= relative * wte.abs() + smallest  # False for nan
    return (~is_close.all(1)).nonzero().flatten().tolist()
