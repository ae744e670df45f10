"""Change the files of a base model, and check that it is then refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import INDEX, WEIGHTS

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def with_pad_token(base: Path, folder: Path) -> Path:
    """Copy a base into a folder, and add [PAD] to its tokenizer, not to its model."""
    from transformers import AutoTokenizer

    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def change_config(folder: Path, removed: tuple[str, ...] = (), **entries) -> None:
    config = json.loads((folder / "config.json").read_text()) | entries
    for name in removed:
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path) -> None:
    """Split the weights of a folder into two shards with an index.

    The tensors go to the two shards in turn, so their order changes.
    """
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {name: SHARDS[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in SHARDS:
        save_file(
            {name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file
        )
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_refused(model: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_base(str(model))
