"""Bases from folders and from the hub: what is read, what is refused with which words, and what names the weights."""

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoForCausalLM

from neo_peft import base, hub
from neo_peft.base import INDEX, TOKENIZER_FILES, WEIGHTS, load_base, load_tokenizer, read_config
from neo_peft.errors import InputError

WTE = "transformer.wte.weight"
OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_config(folder: Path, **changes) -> None:
    """Change entries of a folder's config.json; ... takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def change(folder: Path, **tensors) -> Path:
    """Change a folder's tensors, of which `_` stands for the dot; None takes one out."""
    stored = load_file(folder / WEIGHTS)
    stored |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / WEIGHTS)
    return folder


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def stored(tiny_folder) -> dict[str, torch.Tensor]:
    return load_file(tiny_folder / WEIGHTS)
