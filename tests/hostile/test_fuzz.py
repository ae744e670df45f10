"""Randomly damaged files: reading one gives finite numbers, or an error that names it.

Each kind of file has a good file, a function that reads it, and CASES damaged copies, in two parts.
The kind and the number of a case are its seed, which a failure prints:
`damage(original, random.Random("kind 17"))` makes the copy again.
"""

import copy
import dataclasses
import functools
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
    PARTS,
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
# what a refusal can name: the folder of the file, --data hub, or an option
NAMED = "{}|--data hub|no linear layer matches"


def check_copies(
    numbers: range,
    kind: str,
    file: Path,
    damage: Callable,
    read: Callable[[], object],
    passes: Callable,
) -> None:
    """Read damaged copies of a file, those with these numbers. Each must be read, or be refused
    with the name of its folder. Both must occur.

    `passes(content)` is the first check of the reader; a fifth of the copies must pass it.
    """
    original, outcomes, failures = file.read_bytes(), Counter(), []
    for number in numbers:
        case = f"{kind} {number}"
        content = damage(original, random.Random(case))
        outcomes["passed the first check"] += bool(passes(content))
        file.unlink()  # a base's file is memory-mapped: it can be replaced, but not overwritten
        file.write_bytes(content)
        try:
            with bounded(), warnings.catch_warnings(action="ignore"):
                outcome = read() or "read"
        except InputError as error:
            outcome, line = "refused", " ".join(str(error).split())
            if not re.search(NAMED.format(re.escape(str(file.parent))), line):
                failures.append((case, "names no file", line[:200]))
        except (Exception, Late) as error:
            outcome = "failed"
            failures.append((case, type(error).__name__, str(error)[:200]))
        outcomes[outcome] += 1
    file.write_bytes(original)
    print(f"{kind}: {dict(outcomes)}")
    assert not failures, f"{len(failures)} of {len(numbers)}: " + "\n".join(map(str, failures[:20]))
    assert (
        outcomes["read"]
        and outcomes["refused"]
        and outcomes["passed the first check"] >= len(numbers) / 5
    )


@pytest.fixture(params=PARTS)
def check_damaged_copies(request) -> Callable:
    """Return `check_copies` of one part of the cases."""
    return functools.partial(check_copies, request.param)


# ---- A base


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def loaded_tokenizer(base, monkeypatch) -> None:
    """Load the tokenizer only once, since it takes most of the loading time of a tiny base."""
    monkeypatch.setattr(bases, "load_tokenizer", lambda folder: base.tokenizer)


def read_base(folder: Path) -> str:
    """Load a base. Return "read" if its loss is finite, else "stopped later".

    Loading does not check the values of a memory-mapped file. A run stops at the first loss that is
    not finite.
    """
    return (
        "read"
        if math.isfinite(loss_of(TunedModel(bases.load_base(str(folder)).trunk)))
        else "stopped later"
    )


def test_damaged_weights_are_read_or_refused(check_damaged_copies, folder, loaded_tokenizer):
    header = 8 + struct.unpack("<Q", (folder / bases.WEIGHTS).read_bytes()[:8])[0]
    damage = mixed(
        damaged_header,
        damaged_header,
        damaged,
        lambda original, draw: damaged(original, draw, header),
    )
    check_damaged_copies(
        "weights", folder / bases.WEIGHTS, damage, lambda: read_base(folder), has_header
    )


def test_a_damaged_index_of_shards_is_read_or_refused(
    check_damaged_copies, folder, loaded_tokenizer
):
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
    check_damaged_copies(
        "index",
        index,
        mixed(damaged, damaged_json, damaged_json),
        lambda: read_base(folder),
        is_json,
    )


def test_a_damaged_config_json_is_read_or_refused(check_damaged_copies, folder, loaded_tokenizer):
    damage = mixed(damaged, damaged_json, damaged_json)
    check_damaged_copies(
        "config", folder / "config.json", damage, lambda: read_base(folder), is_json
    )


@pytest.fixture
def small_tokenizer(folder) -> Path:
    """Reduce neo-mini's tokenizer to its first 60 merges, so that not all damage is in the
    vocabulary. Return its file."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    model = content["model"]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]][:60]
    merged = {"".join(pair) for pair in pairs}
    model["merges"] = pairs
    model["vocab"] = {
        token: number
        for token, number in model["vocab"].items()
        if len(token) == 1 or token in merged
    }
    model["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    path.write_text(json.dumps(content, ensure_ascii=False))
    return path


def read_tokenizer(folder: Path) -> None:
    """Load a tokenizer and encode rows with it."""
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
    """Check that token ids and target positions are within their limits."""
    lengths = np.repeat(np.diff(examples.starts), np.diff(examples.target_starts))
    assert ((examples.ids >= 0) & (examples.ids < vocab_size)).all()
    assert ((examples.target_indices >= 0) & (examples.target_indices < lengths)).all()


def test_a_damaged_tokenizer_json_is_read_or_refused(check_damaged_copies, folder, small_tokenizer):
    damage = mixed(damaged, damaged_json, damaged_json)
    check_damaged_copies(
        "tokenizer", small_tokenizer, damage, lambda: read_tokenizer(folder), is_json
    )


def test_a_damaged_tokenizer_config_json_is_read_or_refused(
    check_damaged_copies, folder, small_tokenizer
):
    file = folder / "tokenizer_config.json"
    check_damaged_copies(
        "tokenizer_config",
        file,
        mixed(damaged, damaged_json),
        lambda: read_tokenizer(folder),
        is_json,
    )


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_damaged_older_files_of_a_tokenizer_are_read_or_refused(
    check_damaged_copies, folder, small_tokenizer, name
):
    model = json.loads(small_tokenizer.read_text())["model"]
    small_tokenizer.unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    )
    damage = mixed(damaged, damaged_json) if name == "vocab.json" else mixed(*LINES)
    passes = (
        is_json
        if name == "vocab.json"
        else lambda content: "\ufffd" not in content.decode("utf-8", "replace")
    )
    check_damaged_copies(name, folder / name, damage, lambda: read_tokenizer(folder), passes)


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
CSV = "id,text,label\n" + "".join(f'{n},"It is ""{n}"", or",{n % 2}\n' for n in range(24))
WORD_ROWS = "Sentence #,Word,Tag\n" + "".join(
    f"Sentence: {n},IL-{n},I-DNA\n,gene,B-DNA\n,of,O\n" for n in range(12)
)
TSV = "premise\thypothesis\tlabel\n" + "".join(f"It is {n}\tor\t{n % 2}\n" for n in range(24))
CONLL = "-DOCSTART- O\n\n" + "".join(f"IL-{n} I-DNA\ngene B-DNA\n# O\nof O\n \n" for n in range(12))
JSON_SPANS = [
    json.dumps({"text": f"The IL-{n} gene", "label": [[4, 7, "DNA"], [10, 13, "RNA"]]})
    for n in range(24)
]
TNER_TAGS = json.dumps({tag: number for number, tag in enumerate(TASKS["ner"].labels)})
TNER = "".join(
    json.dumps({"tokens": ["IL-2", "gene", str(n)], "tags": [1, 2, 0]}) + "\n" for n in range(12)
)
JSON_LINES = lambda original, draw: damaged_lines(original, draw, damaged_json)  # noqa: E731
ANY_JSON = (damaged, damaged_json, damaged_json)
# For each kind: the task, the file to damage, its text, the ways to damage it, the other files.
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
    "own csv": ("classification", "train.csv", CSV, LINES, {}),
    "own csv of words": ("tagging", "train.csv", WORD_ROWS, LINES, {}),
    "own tsv": ("pairs", "train.tsv", TSV, LINES, {}),
    "own json": ("classification", "train.json", f"[{','.join(JSON_CLASS)}]", ANY_JSON, {}),
    "own columns": ("tagging", "train.conll", CONLL, LINES, {}),
    "own spans": (
        "tagging",
        "train.jsonl",
        "\n".join(JSON_SPANS) + "\n",
        (*LINES, JSON_LINES, JSON_LINES),
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
    """Load the splits, encode them and convert them to JSON, as a run does."""
    splits = sources.load_splits(task, data)
    task = with_labels(task, splits.labels) if splits.labels else task
    encoder = Encoder(task, tokenizer, 0, True, 60, 8192, stride=7)
    for rows in splits.named().values():
        examples = encoder(rows)
        check_examples(examples, 8192)
        assert ((examples.targets >= 0) & (examples.targets < len(task.labels))).all()
    json.dumps([splits.labels, splits.train, splits.notes], ensure_ascii=False).encode()


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_data_is_read_or_refused(check_damaged_copies, base, tmp_path, monkeypatch, kind):
    name, file, text, ways, other_files = FORMATS[kind]
    monkeypatch.setattr(
        hub, "hub_file", lambda repository, filename, **_: tmp_path / Path(filename).name
    )
    encoding = "latin-1" if name == "sentiment" else "utf-8"
    other_files = other_files | (
        {"valid.json": TNER, "test.json": TNER} if kind.startswith("tner") else {}
    )
    for other_file, content in (*other_files.items(), (file, text)):
        (tmp_path / other_file).write_text(content, encoding=encoding, newline="")
    data = "hub" if kind.startswith("tner") else str(tmp_path)

    def passes(content: bytes) -> bool:  # the file is text
        return content.strip() and content.decode(encoding, "replace").count("\ufffd") == 0

    check_damaged_copies(
        kind,
        tmp_path / file,
        mixed(*ways),
        lambda: read_data(TASKS[name], data, base.tokenizer),
        passes,
    )


def test_a_damaged_zip_of_phrasebank_is_read_or_refused(
    check_damaged_copies, base, tmp_path, monkeypatch
):
    import zipfile

    file = tmp_path / "bank.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("Sentences_50Agree.txt", "Sentences_66Agree.txt"):
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", PHRASES.encode("latin-1"))
    monkeypatch.setattr(hub, "hub_file", lambda *_, **__: file)
    read = lambda: read_data(TASKS["sentiment"], "hub", base.tokenizer)  # noqa: E731
    # passes: the directory of a zip is at the end of the file
    check_damaged_copies("zip", file, damaged, read, lambda content: b"PK\x05\x06" in content[-22:])


def test_a_damaged_parquet_file_is_read_or_refused(
    check_damaged_copies, base, tmp_path, monkeypatch
):
    import datasets

    file, original = tmp_path / "train-00000-of-00001.parquet", tmp_path / "original"
    columns = {"sentence": [f"It is {n} ." for n in range(24)], "label": [n % 2 for n in range(24)]}
    datasets.Dataset.from_dict(columns).to_parquet(str(file))
    shutil.copy(file, original)
    monkeypatch.setattr(
        hub, "hub_file", lambda _, name, **__: file if "/train-" in name else original
    )
    read = lambda: read_data(TASKS["glue/sst2"], "hub", base.tokenizer)  # noqa: E731
    # passes: a parquet file ends with these four bytes
    check_damaged_copies("parquet", file, damaged, read, lambda content: content.endswith(b"PAR1"))


def test_a_damaged_parquet_file_of_own_rows_is_read_or_refused(
    check_damaged_copies, base, tmp_path
):
    import datasets

    file = tmp_path / "train.parquet"
    columns = {"sentence": [f"It is {n} ." for n in range(24)], "label": [n % 2 for n in range(24)]}
    datasets.Dataset.from_dict(columns).to_parquet(str(file))
    read = lambda: read_data(TASKS["classification"], str(tmp_path), base.tokenizer)  # noqa: E731
    check_damaged_copies(
        "own parquet", file, damaged, read, lambda content: content.endswith(b"PAR1")
    )


# ---- An adapter made by peft


def read_adapter(folder: Path, model: Path, base: bases.Base) -> str:
    """Load an adapter made by peft. Return "read" if the loss is finite, else "stopped later".

    Finite weights as large as 1e38 can give a loss that is not finite.
    """
    settings = loading.settings_in(folder, str(model), "sentiment")
    fresh = dataclasses.replace(base, trunk=copy.deepcopy(base.trunk))
    return (
        "read"
        if math.isfinite(loss_of(loading.load(folder, settings, fresh).model))
        else "stopped later"
    )


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize("file", [adapter.CONFIG, adapter.ADAPTER_FILE])
def test_a_damaged_adapter_made_by_peft_is_read_or_refused(
    check_damaged_copies, tiny_folder, base, tmp_path, method, file
):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from transformers import GPTNeoForCausalLM

    configs = {
        "lora": LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=["q_proj", "c_fc"]
        ),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    }
    get_peft_model(GPTNeoForCausalLM.from_pretrained(tiny_folder), configs[method]).save_pretrained(
        tmp_path
    )
    header = 8 + struct.unpack("<Q", (tmp_path / adapter.ADAPTER_FILE).read_bytes()[:8])[0]
    in_header = lambda original, draw: damaged(original, draw, header)  # noqa: E731
    is_config = file == adapter.CONFIG
    ways = (
        (damaged, damaged_json, damaged_json)
        if is_config
        else (damaged_header, damaged_header, damaged, in_header)
    )
    read = lambda: read_adapter(tmp_path, tiny_folder, base)  # noqa: E731
    check_damaged_copies(
        f"{method} {file}",
        tmp_path / file,
        mixed(*ways),
        read,
        is_json if is_config else has_header,
    )
