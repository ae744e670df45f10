"""Load a tokenizer: no space is added in front, GPT-2's two files, and a broken file."""

import json
import shutil
from pathlib import Path

import pytest
from base_files import assert_refused
from transformers import AutoTokenizer, GPT2Tokenizer

from neo_peft.formats.base import load_base
from neo_peft.formats.tokenizer import load_tokenizer


@pytest.fixture
def vocabulary(tiny_folder, tmp_path) -> Path:
    """Return a folder with the tiny tokenizer in two files, like those of the larger GPT-Neos."""
    model = json.loads((tiny_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "vocabulary" / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n"
    )
    return tmp_path / "vocabulary"


def test_a_tokenizer_saved_with_a_prefix_space_adds_none_here(tiny_folder, vocabulary, tmp_path):
    GPT2Tokenizer.from_pretrained(vocabulary, add_prefix_space=True).save_pretrained(
        tmp_path / "spaced"
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path / "spaced")
    assert theirs.encode("a") == theirs.encode(" a")  # transformers adds a space
    ours, plain = load_tokenizer(tmp_path / "spaced"), load_tokenizer(tiny_folder)
    assert ours.encode("a") != ours.encode(" a")
    for text in ("a", " a", " IL-2 gene", "Profit rose.", "  two", "Zürich"):
        assert ours.encode(text) == plain.encode(text) and ours.decode(ours.encode(text)) == text


def test_a_tokenizer_is_read_from_vocab_and_merges(folder, vocabulary):
    plain = load_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, folder)
    text = " Expression of the IL-2 gene"
    assert load_base(str(folder)).tokenizer.encode(text) == plain.encode(text)


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(folder, f"{folder}: the tokenizer cannot be loaded: ")
