"""Small files in the formats of the data sets, functions to load them, and the real data sets."""

import zipfile
from functools import cache
from pathlib import Path

import pytest

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import Splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

IOB2, IOB2_TEST = "Genia4ERtask1.iob2", "Genia4EReval1.iob2"

AGREE_50, AGREE_66 = "Sentences_50Agree.txt", "Sentences_66Agree.txt"

PAIRS, PAIRS_TEST, DEV_IDS = (
    "msr_paraphrase_train.txt",
    "msr_paraphrase_test.txt",
    "mrpc_dev_ids.tsv",
)

IOB2_TRAIN = b"""###MEDLINE:95369245

IL-2\tB-DNA
gene\tI-DNA
###MEDLINE:95333264
T\tB-cell_type
cells\tI-cell_type

I-kappaB\tI-protein
"""

PHRASES = [
    f"M\u00e4kel\u00e4 's {label} no {i} .@{label}"
    for label in ("positive", "neutral", "negative")
    for i in range(10)
]

MRPC_HEADING = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n".encode()

MRPC_TRAIN = (
    MRPC_HEADING
    + 'He said : " no .\tHe said no .\n'.join(
        ["1\t11\t12\t", "0\t12\t11\t", "1\t13\t14\t", ""]
    ).encode()
)

FILES = {
    "ner": {IOB2: IOB2_TRAIN, IOB2_TEST: b"T\tO\n\nIL-2\tB-DNA\ngene\tI-DNA"},
    "sentiment": {
        AGREE_50: "\r\n".join(PHRASES).encode("latin-1"),
        AGREE_66: "\r\n".join(PHRASES[:4]).encode("latin-1"),
    },
    "similarity": {
        PAIRS: MRPC_TRAIN,
        PAIRS_TEST: MRPC_HEADING + b'0\t1\t2\tHe said no .\tShe said : " yes .\n',
        DEV_IDS: b"12\t11\r\n",
    },
}

CORPORA = tuple(FILES)  # the tasks with their own corpus; the sample has them too

TAG_IDS = {
    "O": 0,
    "B-DNA": 1,
    "I-DNA": 2,
    "B-protein": 3,
    "I-protein": 4,
    "B-cell_type": 5,
    "I-cell_type": 6,
    "B-cell_line": 7,
    "I-cell_line": 8,
    "B-RNA": 9,
    "I-RNA": 10,
}

HUB_JSON = {
    "dataset/valid.json": b'{"tokens": ["IL-2", "gene"], "tags": [1, 2]}\n',
    "dataset/train.json": b'{"tokens": ["T", "cells"], "tags": [5, 6]}\n\n{"tags": [4], "tokens": '
    b'["I-kappaB"]}\n',
    "dataset/test.json": b'{"tokens": ["T"], "tags": [0]}\n{"tokens": ["IL-2", "gene"], "tags": '
    b"[1, 2]}",
    "dataset/label.json": str(TAG_IDS).replace("'", '"').encode(),
}

# Error messages for bad files
NO_ROWS = ": the file has no rows; add rows, or use the original file"
EMPTY = "a token or sentence is {!r}, empty or not valid text; correct or remove it"  # the value
TAGS = (
    "expected one of O, B-DNA, I-DNA, B-protein, I-protein, B-cell_type, I-cell_type, "
    "B-cell_line, I-"
)
LABELS = "expected one of negative, neutral, positive"

TNER, PHRASEBANK, GLUE = "tner/bionlp2004", "takala/financial_phrasebank", "nyu-mll/glue"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def load(
    folder: Path, task: str, changed: dict[str, bytes] | None = None, protocol="clean"
) -> Splits:
    """Write FILES into a folder, with the changed ones, and load them."""
    return load_splits(TASKS[task], str(write(folder, FILES[task] | (changed or {}))), protocol)


def refusal(task, data, protocol="clean") -> str:
    """Return the error message of a load that is refused; it must be one line."""
    with pytest.raises(InputError) as refused:
        load_splits(task, str(data), protocol)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@cache
def real(data_folder: Path, task: str, protocol: str = "clean") -> Splits:
    """Load the real data set of a task."""
    return load_splits(TASKS[task], str(data_folder), protocol)


def raw_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a corpus file, read without the package."""
    with open(path, encoding=encoding, newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


SAMPLES = {
    "ner": b"[protein NF-kappa B] binds the [DNA IL-2 promoter] .\n\n[RNA mRNA] [RNA c-fos]\n",
    "sentiment": b"positive\tProfit rose .\nneutral\tThe office\tis here .\n",
    "similarity": b"equivalent\nIt rose .\nIt went up .\n\nnot equivalent\nIt fell .\nIt was said "
    b".\n",
}


def sample_folder(folder: Path, task: str, content: bytes | None = None) -> Path:
    content = SAMPLES[task] if content is None else content
    return write(
        folder, {f"{task}/{split}.txt": content for split in ("train", "validation", "test")}
    )


def write_glue(folder: Path, **changed) -> None:
    """Write the MRPC rows of FILES in GLUE's format: parquet, with the label as a class.

    `changed` replaces columns of a split; a column that is None is removed.
    """
    import datasets

    columns = {
        "sentence1": ['He said : " no .', 'He said : " no .'],
        "sentence2": ["He said no .", "He said no ."],
        "label": [1, 1],
        "idx": [0, 2],
    }
    classes = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    tables = {
        "train": columns,
        "validation": {name: values[:1] for name, values in columns.items()}
        | {"label": [0], "idx": [1]},
        "test": {
            "sentence1": ["He said no ."],
            "sentence2": ['She said : " yes .'],
            "label": [0],
            "idx": [0],
        },
    }
    (folder / GLUE / "mrpc").mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        data = datasets.Dataset.from_dict(table)
        if split in changed:
            table = {
                name: values
                for name, values in (table | changed[split]).items()
                if values is not None
            }
            data = datasets.Dataset.from_dict(table)
        else:
            data = data.cast_column("label", classes)
        data.to_parquet(str(folder / GLUE / f"mrpc/{split}-00000-of-00001.parquet"))


def write_zip(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / PHRASEBANK / "data/FinancialPhraseBank-v1.0.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", content)
    return path
