"""Load a tokenizer: no space is added in front, GPT-2's two files, a broken file, and the bundled
one without transformers."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from base_files import assert_refused
from transformers import AutoTokenizer, GPT2Tokenizer

from neo_peft.corpora.sources import load_splits
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import (
    BUNDLED,
    OTHER_VOCABULARIES,
    TOKENIZER_FILES,
    versioned_tokenizers,
)
from neo_peft.formats.tokenizer import (
    ODD_TEXTS,
    BundledTokenizer,
    load_tokenizer,
    load_with_transformers,
    splitting_digest,
)
from neo_peft.tasks import TASKS


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


def test_every_file_that_transformers_looks_for_in_a_folder_is_one_that_is_fetched(
    folder, vocabulary, monkeypatch
):
    from transformers import tokenization_utils_base
    from transformers.utils.hub import cached_file

    looked_up = set()

    def recorded(path, name, **options):
        looked_up.add(name)
        return cached_file(path, name, **options)

    monkeypatch.setattr(tokenization_utils_base, "cached_file", recorded)
    AutoTokenizer.from_pretrained(folder)
    shutil.copy(folder / "config.json", vocabulary)
    AutoTokenizer.from_pretrained(vocabulary)
    GPT2Tokenizer.from_pretrained(vocabulary)
    # The others are not read where there is a tokenizer.json, and are refused where there is none.
    assert looked_up <= {*TOKENIZER_FILES, *OTHER_VOCABULARIES}
    assert looked_up >= {"added_tokens.json", "special_tokens_map.json", "vocab.json"}


def test_a_versioned_tokenizer_file_is_one_of_the_files(folder):
    """transformers takes the newest tokenizer.VERSION.json that is not newer than itself."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 8192, "content": "<X>"})
    (folder / "tokenizer.4.0.0.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["fast_tokenizer_files"] = ["tokenizer.4.0.0.json", "tokenizer.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert versioned_tokenizers(folder) == config["fast_tokenizer_files"]
    assert load_tokenizer(folder).encode("<X>") == [8192]
    config["fast_tokenizer_files"] = ["../tokenizer.4.0.0.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert_refused(folder, "lists '../tokenizer.4.0.0.json', which is not a file of its own folder")


def test_two_vocabularies_are_refused(folder, vocabulary):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, folder)
    load_base(str(folder))
    (folder / "tokenizer.model").write_bytes(b"x")
    assert_refused(folder, "has two vocabularies, vocab.json and tokenizer.model")


# ---- How a tokenizer splits texts


def changed_tokenizer(folder, change) -> str:
    """Return the digest of a folder's tokenizer after a change of its tokenizer.json."""
    path = folder / "tokenizer.json"
    original = path.read_text()
    content = json.loads(original)
    change(content)
    path.write_text(json.dumps(content))
    digest = splitting_digest(load_tokenizer(folder))
    path.write_text(original)
    return digest


def test_the_digest_differs_where_texts_are_split_differently(folder):
    def add(**flags):
        return lambda content: content["added_tokens"].append(
            {**content["added_tokens"][0], "id": 77, "content": "<X>", **flags}
        )

    changes = {
        "a normaliser": lambda content: content.update(normalizer={"type": "Lowercase"}),
        "accents": lambda content: content.update(normalizer={"type": "NFC"}),
        "digits": lambda content: content.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    content["pre_tokenizer"],
                ],
            }
        ),
        "merges": lambda content: content["model"]["merges"].pop(5),
        "a token": add(),
        "strips": add(rstrip=True),
        "is a word": add(single_word=True),
    }
    digests = {name: changed_tokenizer(folder, change) for name, change in changes.items()}
    plain = splitting_digest(load_tokenizer(folder))
    assert len({plain, *digests.values()}) == len(changes) + 1
    # A template adds tokens around a text, which our encoder never does.
    assert changed_tokenizer(folder, lambda content: content.update(post_processor=None)) == plain


def test_a_tokenizer_that_has_no_token_for_a_text_has_a_digest(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"Label": 0, ":": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    digest = splitting_digest(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert len(digest) == 64


def test_a_tokenizer_that_splits_at_random_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.3
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_refused(folder, "tokenizer.json has a BPE dropout, so it splits texts at random")


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(folder, f"{folder}: the tokenizer cannot be loaded: ")


# ---- The bundled model's tokenizer


def without_transformers(tokenizer: BundledTokenizer) -> bool:
    return "in_transformers" not in vars(tokenizer)


def test_the_bundled_tokenizer_encodes_and_decodes_as_the_one_of_transformers():
    folder = BUNDLED["neo-mini"]
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    # The whole state: vocabulary, merges, normalizer, added tokens, truncation and padding.
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.backend_tokenizer.encode_special_tokens == theirs.split_special_tokens is False
    assert ours.all_special_ids == theirs.all_special_ids == [0]
    assert ours.name_or_path == theirs.name_or_path
    rows = [row for task in TASKS.values() if task.name in ("ner", "sentiment", "similarity")
            for row in load_splits(task, "sample").test]  # fmt: skip
    values = [value for row in rows for value in row.values()]
    sample = [" ".join(value) if isinstance(value, list) else value for value in values]
    for text in (*ODD_TEXTS, *sample):
        ids = ours.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
        for start in range(min(9, len(ids))):  # also in the middle of a letter of several bytes
            assert ours.decode(ids[start : start + 1]) == theirs.decode(ids[start : start + 1])
        assert [ours.decode(i) for i in ids[:3]] == [theirs.decode(i) for i in ids[:3]]
    assert splitting_digest(ours) == splitting_digest(theirs)
    assert without_transformers(ours)


def test_what_only_transformers_decodes_is_decoded_by_its_tokenizer():
    ours, theirs = load_tokenizer(BUNDLED["neo-mini"]), load_with_transformers(BUNDLED["neo-mini"])
    ids = torch.tensor([0, 300, 301])  # 0 is the end token
    assert ours.decode(ids) == theirs.decode(ids) == ours.decode(ids.tolist())
    assert ours.decode(ids.tolist(), skip_special_tokens=True) == theirs.decode([300, 301])


def test_the_bundled_tokenizer_is_saved_as_transformers_saves_it(tmp_path):
    ours = load_tokenizer(BUNDLED["neo-mini"])
    ours.save_pretrained(tmp_path / "ours")
    load_with_transformers(BUNDLED["neo-mini"]).save_pretrained(tmp_path / "theirs")
    files = [
        sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ours", "theirs")
    ]
    assert files[0] == files[1] == ["tokenizer.json", "tokenizer_config.json"]
    for name in files[0]:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    # From the first use of transformers' tokenizer on, a change of its backend is one of ours.
    assert ours.backend_tokenizer is ours.in_transformers.backend_tokenizer
    assert ours("a b").input_ids == load_with_transformers(BUNDLED["neo-mini"])("a b").input_ids


def test_what_is_set_in_the_bundled_tokenizer_is_saved(tmp_path):
    ours = load_tokenizer(BUNDLED["neo-mini"])
    ours.pad_token, ours.model_max_length = "<|endoftext|>", 77
    ours.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.pad_token_id == ours.pad_token_id == 0
    assert saved.model_max_length == ours.model_max_length == 77


def test_the_bundled_tokenizer_can_be_copied():
    ours = load_tokenizer(BUNDLED["neo-mini"])
    for copied in (copy.copy(ours), copy.deepcopy(ours)):
        assert copied.decode([300]) == ours.decode([300]) and without_transformers(copied)
    assert without_transformers(ours)


def test_only_a_folder_with_exactly_the_bundled_files_has_the_bundled_tokenizer(folder):
    def is_bundled() -> bool:
        return isinstance(load_tokenizer(folder), BundledTokenizer)

    assert is_bundled()
    for name in {*TOKENIZER_FILES, *OTHER_VOCABULARIES} - {"tokenizer.json"}:
        path = folder / name
        original = path.read_bytes() if path.exists() else None
        path.write_text("{}")  # changed, or new
        assert not is_bundled(), name
        path.unlink() if original is None else path.write_bytes(original)
    assert is_bundled()
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content))  # the same, in other bytes
    assert not is_bundled()
