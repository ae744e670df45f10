"""Files that chance has damaged: what is read is whole and finite, what is not is refused in one
line that names it.

A kind of file is a sound file, the call that reads it, and CASES damaged copies, drawn from a seed
that is the kind's name and the case's number: a failure names both, and `damaged(whole,
random.Random("kind 17"))` makes that file again.
"""

import copy
import dataclasses
import json
import math
import random
import re
import shutil
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import (
    CASES,
    Late,
    bounded,
    damaged,
    damaged_header,
    damaged_json,
    damaged_lines,
    has_header,
    is_json,
    loss_of,
    mixed,
)

from neo_peft.corpora import sources
from neo_peft.encoding import Encoder, Examples
from neo_peft.errors import InputError
from neo_peft.formats import adapter
from neo_peft.formats import base as bases
from neo_peft.model import TunedModel
from neo_peft.runs import loading
from neo_peft.settings import with_labels
from neo_peft.system import hub
from neo_peft.tasks import TASKS, Task

LINES = (damaged, damaged_lines)
# the folder, what a user gave for it, or an option
NAMED = "{}|--data hub|no linear layer matches"


def survive(
    kind: str, file: Path, damage: Callable, read: Callable[[], object], passes: Callable
) -> None:
    """Read CASES damaged copies of a file. Each must be read, or be refused in one line that names
    the file or its folder. Both must occur, and a fifth of the copies must pass the first check,
    `passes(content)`."""
    whole, outcomes, wrong = file.read_bytes(), Counter(), []
    for number in range(CASES):
        case = f"{kind} {number}"
        content = damage(whole, random.Random(case))
        outcomes["behind the first check"] += bool(passes(content))
        file.unlink()  # a base stays mapped: its file may be replaced, never rewritten
        file.write_bytes(content)
        try:
            with bounded(), warnings.catch_warnings(action="ignore"):
                outcome = read() or "read"
        except InputError as error:
            outcome, line = "refused", " ".join(str(error).split())
            if not re.search(NAMED.format(re.escape(str(file.parent))), line):
                wrong.append((case, "names no file", line[:200]))
        except (Exception, Late) as error:
            outcome = "failed"
            wrong.append((case, type(error).__name__, str(error)[:200]))
        outcomes[outcome] += 1
    file.write_bytes(whole)
    print(f"{kind}: {dict(outcomes)}")
    assert not wrong, f"{len(wrong)} of {CASES}: " + "\n".join(map(str, wrong[:20]))
    assert (
        outcomes["read"] and outcomes["refused"] and outcomes["behind the first check"] >= CASES / 5
    )


# ---- A base


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def known_tokenizer(base, monkeypatch) -> None:
    """The tokenizer takes most of the time that a tiny base needs to load; where it is sound it is
    loaded once."""
    monkeypatch.setattr(bases, "load_tokenizer", lambda folder: base.tokenizer)


def read_base(folder: Path) -> str:
    """Load a base and compute with it. Numbers that are not finite may stay in the mapped file,
    which is not read as a whole; then the first loss that meets them is not finite either, at which
    a run stops."""
    return (
        "read"
        if math.isfinite(loss_of(TunedModel(bases.load_base(str(folder)).trunk)))
        else "stopped later"
    )


def test_weights(folder, known_tokenizer):
    header = 8 + struct.unpack("<Q", (folder / bases.WEIGHTS).read_bytes()[:8])[0]
    ways = mixed(
        damaged_header, damaged_header, damaged, lambda whole, draw: damaged(whole, draw, header)
    )
    survive("weights", folder / bases.WEIGHTS, ways, lambda: read_base(folder), has_header)


def test_a_shards_index(folder, known_tokenizer):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / bases.WEIGHTS)
    (folder / bases.WEIGHTS).unlink()
    weight_map = {
        name: f"model-0000{1 + index % 2}-of-00002.safetensors"
        for index, name in enumerate(tensors)
    }
    for shard in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    index = folder / bases.INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    survive(
        "index",
        index,
        mixed(damaged, damaged_json, damaged_json),
        lambda: read_base(folder),
        is_json,
    )


def test_config_json(folder, known_tokenizer):
    ways = mixed(damaged, damaged_json, damaged_json)
    survive("config", folder / "config.json", ways, lambda: read_base(folder), is_json)


@pytest.fixture
def small_tokenizer(folder) -> Path:
    """neo-mini's tokenizer with its first merges alone: small enough that damage meets more than
    the vocabulary."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    model = content["model"]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]][:60]
    kept = {"".join(pair) for pair in pairs}
    model["merges"] = pairs
    model["vocab"] = {
        token: number
        for token, number in model["vocab"].items()
        if len(token) == 1 or token in kept
    }
    model["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    path.write_text(json.dumps(content, ensure_ascii=False))
    return path


def read_tokenizer(folder: Path) -> None:
    """Load a tokenizer, and encode with it what rows hold."""
    tokenizer = bases.load_tokenizer(folder)
    words = ["IL-2", "gene", "\u03baB", "\u65e5\u672c", "(", "x" * 60, "\u200b", "0"]
    for name in ("ner", "sentiment"):
        encoder = Encoder(
            TASKS[name], tokenizer, 0, name == "ner", 40, 8192, tag_last_subtoken=True
        )
        row = (
            {"tokens": words, "tags": ["O"] * len(words)}
            if name == "ner"
            else {"sentence": " ".join(words)}
        )
        check_examples(encoder([row, row]), 8192)


def check_examples(examples: Examples, vocab_size: int) -> None:
    lengths = np.repeat(np.diff(examples.starts), np.diff(examples.target_starts))
    assert ((examples.ids >= 0) & (examples.ids < vocab_size)).all()
    assert ((examples.target_indices >= 0) & (examples.target_indices < lengths)).all()


def test_tokenizer_json(folder, small_tokenizer):
    ways = mixed(damaged, damaged_json, damaged_json)
    survive("tokenizer", small_tokenizer, ways, lambda: read_tokenizer(folder), is_json)


def test_tokenizer_config_json(folder, small_tokenizer):
    file = folder / "tokenizer_config.json"
    survive(
        "tokenizer_config",
        file,
        mixed(damaged, damaged_json),
        lambda: read_tokenizer(folder),
        is_json,
    )


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_the_older_files_of_a_tokenizer(folder, small_tokenizer, name):
    model = json.loads(small_tokenizer.read_text())["model"]
    small_tokenizer.unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    )
    ways = mixed(damaged, damaged_json) if name == "vocab.json" else mixed(*LINES)
    passes = (
        is_json
        if name == "vocab.json"
        else lambda content: "\ufffd" not in content.decode("utf-8", "replace")
    )
    survive(name, folder / name, ways, lambda: read_tokenizer(folder), passes)


# ---- Data

TAGGED = "".join(f"IL-{n}\tB-DNA\ngene\tI-DNA\nof\tO\nT\tB-cell_type\n\n" for n in range(12))
PHRASES = "".join(
    f"Profit@home {label[2:]} {n} % \xe4 .@{label}\r\n"
    for n in range(12)
    for label in ("positive", "neutral")
)
PAIRS = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
PAIRS += "".join(f'{n % 2}\t1{n}\t2{n}\tHe said : " {n} .\tHe said no .\n' for n in range(12))
COLA = "".join(f"gj04\t{n % 2}\t\tThe sailors rode {n} .\n" for n in range(24))
SST = "sentence\tlabel\n" + "".join(f"a film of {n} jokes \t{n % 2}\n" for n in range(24))
MNLI = "index\tsentence1\tsentence2\tgold_label\n"
MNLI += "".join(
    f"{n}\tIt is {n} .\tIt is .\t{('entailment', 'neutral')[n % 2]}\n" for n in range(24)
)
JSON_TAGS = [
    json.dumps({"tokens": ["IL-2", "gene", str(n)], "tags": ["B-DNA", "I-DNA", "O"]})
    for n in range(24)
]
JSON_CLASS = [json.dumps({"sentence": f"It is {n}.", "label": n % 3}) for n in range(24)]
TNER_TAGS = json.dumps({tag: number for number, tag in enumerate(TASKS["ner"].labels)})
TNER = "".join(
    json.dumps({"tokens": ["IL-2", "gene", str(n)], "tags": [1, 2, 0]}) + "\n" for n in range(12)
)
JSON_LINES = lambda whole, draw: damaged_lines(whole, draw, damaged_json)  # noqa: E731
# Kind -> task, the file that is damaged, its text, the ways to damage it, the files beside it.
FORMATS = {
    "iob2": ("ner", "Genia4ERtask1.iob2", TAGGED, LINES, {"Genia4EReval1.iob2": TAGGED}),
    "phrasebank": ("sentiment", "Sentences_50Agree.txt", PHRASES, LINES, {}),
    "mrpc": (
        "similarity",
        "msr_paraphrase_train.txt",
        PAIRS,
        LINES,
        {"msr_paraphrase_test.txt": PAIRS, "mrpc_dev_ids.tsv": "12\t22\n13\t23\n"},
    ),
    "mrpc ids": (
        "similarity",
        "mrpc_dev_ids.tsv",
        "12\t22\n13\t23\n14\t24\n",
        LINES,
        {"msr_paraphrase_train.txt": PAIRS, "msr_paraphrase_test.txt": PAIRS},
    ),
    "glue without a heading": ("glue/cola", "train.tsv", COLA, LINES, {"dev.tsv": COLA}),
    "glue with a heading": ("glue/sst2", "train.tsv", SST, LINES, {"dev.tsv": SST}),
    "glue's pairs": (
        "glue/mnli",
        "train.tsv",
        MNLI,
        LINES,
        {"dev_matched.tsv": MNLI, "dev_mismatched.tsv": MNLI},
    ),
    "own tags": (
        "tagging",
        "train.jsonl",
        "\n".join(JSON_TAGS) + "\n",
        (*LINES, JSON_LINES, JSON_LINES),
        {},
    ),
    "own labels": (
        "classification",
        "train.jsonl",
        "\n".join(JSON_CLASS) + "\n",
        (*LINES, JSON_LINES),
        {},
    ),
    "tner": (
        "ner",
        "train.json",
        TNER,
        (*LINES, JSON_LINES, JSON_LINES),
        {"label.json": TNER_TAGS},
    ),
    "tner's numbers": (
        "ner",
        "label.json",
        TNER_TAGS,
        (damaged, damaged_json, damaged_json),
        {"train.json": TNER},
    ),
}


def read_data(task: Task, data: str, tokenizer: Any) -> None:
    """Load the splits, and encode and write down what they hold, as a run would."""
    splits = sources.load_splits(task, data)
    task = with_labels(task, splits.labels) if splits.labels else task
    encoder = Encoder(task, tokenizer, 0, True, 60, 8192)
    for rows in splits.named().values():
        examples = encoder(rows)
        check_examples(examples, 8192)
        assert ((examples.targets >= 0) & (examples.targets < len(task.labels))).all()
    json.dumps([splits.labels, splits.train, splits.notes], ensure_ascii=False).encode()


@pytest.mark.parametrize("kind", FORMATS)
def test_data(base, tmp_path, monkeypatch, kind):
    name, file, text, ways, beside = FORMATS[kind]
    monkeypatch.setattr(
        hub, "hub_file", lambda repository, filename, **_: tmp_path / Path(filename).name
    )
    encoding = "latin-1" if name == "sentiment" else "utf-8"
    beside = beside | ({"valid.json": TNER, "test.json": TNER} if kind.startswith("tner") else {})
    for other, content in (*beside.items(), (file, text)):
        (tmp_path / other).write_text(content, encoding=encoding, newline="")
    data = "hub" if kind.startswith("tner") else str(tmp_path)

    def passes(content: bytes) -> bool:  # the first check is that it is text at all
        return content.strip() and content.decode(encoding, "replace").count("\ufffd") == 0

    survive(
        kind,
        tmp_path / file,
        mixed(*ways),
        lambda: read_data(TASKS[name], data, base.tokenizer),
        passes,
    )


def test_phrasebanks_zip(base, tmp_path, monkeypatch):
    import zipfile

    file = tmp_path / "bank.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("Sentences_50Agree.txt", "Sentences_66Agree.txt"):
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", PHRASES.encode("latin-1"))
    monkeypatch.setattr(hub, "hub_file", lambda *_, **__: file)
    read = lambda: read_data(TASKS["sentiment"], "hub", base.tokenizer)  # noqa: E731
    # A file is a zip as long as its directory is found, at its end.
    survive("zip", file, damaged, read, lambda content: b"PK\x05\x06" in content[-22:])


def test_the_hubs_parquet(base, tmp_path, monkeypatch):
    import datasets

    file, kept = tmp_path / "train-00000-of-00001.parquet", tmp_path / "kept"
    columns = {"sentence": [f"It is {n} ." for n in range(24)], "label": [n % 2 for n in range(24)]}
    datasets.Dataset.from_dict(columns).to_parquet(str(file))
    shutil.copy(file, kept)
    monkeypatch.setattr(hub, "hub_file", lambda _, name, **__: file if "/train-" in name else kept)
    read = lambda: read_data(TASKS["glue/sst2"], "hub", base.tokenizer)  # noqa: E731
    # What is no parquet at all lacks the word at its end.
    survive("parquet", file, damaged, read, lambda content: content.endswith(b"PAR1"))


# ---- Peft's adapter


def read_adapter(folder: Path, model: Path, base: bases.Base) -> str:
    """Load an adapter of peft's and compute with it. Finite numbers as large as 1e38 may still
    overflow."""
    settings = loading.settings_in(folder, str(model), "sentiment")
    fresh = dataclasses.replace(base, trunk=copy.deepcopy(base.trunk))
    return (
        "read"
        if math.isfinite(loss_of(loading.load(folder, settings, fresh).model))
        else "stopped later"
    )


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize("file", [adapter.CONFIG, adapter.ADAPTER_FILE])
def test_pefts_adapter(tiny_folder, base, tmp_path, method, file):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from transformers import GPTNeoForCausalLM

    kinds = {
        "lora": LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=["q_proj", "c_fc"]
        ),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    }
    get_peft_model(GPTNeoForCausalLM.from_pretrained(tiny_folder), kinds[method]).save_pretrained(
        tmp_path
    )
    header = 8 + struct.unpack("<Q", (tmp_path / adapter.ADAPTER_FILE).read_bytes()[:8])[0]
    in_header = lambda whole, draw: damaged(whole, draw, header)  # noqa: E731
    of_json = file == adapter.CONFIG
    ways = (
        (damaged, damaged_json, damaged_json)
        if of_json
        else (damaged_header, damaged_header, damaged, in_header)
    )
    read = lambda: read_adapter(tmp_path, tiny_folder, base)  # noqa: E731
    survive(
        f"{method} {file}", tmp_path / file, mixed(*ways), read, is_json if of_json else has_header
    )
