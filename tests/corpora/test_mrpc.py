"""MRPC: its published counts, small files written by hand, and bad files."""

import csv
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from corpus_files import (
    DEV_IDS,
    EMPTY,
    FILES,
    GLUE,
    MRPC_HEADING,
    MRPC_TRAIN,
    NO_ROWS,
    PAIRS,
    PAIRS_TEST,
    load,
    raw_lines,
    real,
    refusal,
    write,
    write_glue,
)

from neo_peft.corpora.sources import load_splits
from neo_peft.tasks import TASKS

SIMILARITY = TASKS["similarity"]


# ---- The real data


def test_mrpc_has_the_published_counts(data_folder):
    splits = real(data_folder, "similarity", "paper")
    counts = [
        Counter(row["label"] for row in rows)
        for rows in (splits.train, splits.validation, splits.test)
    ]
    assert counts == [
        {"equivalent": 2_474, "not equivalent": 1_194},
        {"equivalent": 279, "not equivalent": 129},
        {"equivalent": 1_147, "not equivalent": 578},
    ]
    assert splits.protocol == "single"


def test_mrpc_keeps_every_line_and_validates_on_the_listed_ids(data_folder):
    splits = real(data_folder, "similarity")
    listed = set(raw_lines(data_folder / "mrpc/mrpc_dev_ids.tsv"))
    lines = [
        line.split("\t")
        for line in raw_lines(data_folder / "mrpc/msr_paraphrase_train.txt", "utf-8-sig")[1:]
    ]
    test = [
        line.split("\t")
        for line in raw_lines(data_folder / "mrpc/msr_paraphrase_test.txt", "utf-8-sig")[1:]
    ]
    assert (len(lines), len(test), len(listed)) == (4_076, 1_725, 408)

    def as_columns(rows):
        return [
            [str(int(row["label"] == "equivalent")), row["sentence1"], row["sentence2"]]
            for row in rows
        ]

    assert as_columns(splits.train) == [
        [c[0], *c[3:]] for c in lines if f"{c[1]}\t{c[2]}" not in listed
    ]
    assert as_columns(splits.validation) == [
        [c[0], *c[3:]] for c in lines if f"{c[1]}\t{c[2]}" in listed
    ]
    assert as_columns(splits.test) == [[c[0], *c[3:]] for c in test]
    assert splits.train[0] == {
        "sentence1": 'Amrozi accused his brother , whom he called " the witness " , '
        "of deliberately distorting his evidence .",
        "sentence2": 'Referring to him as only " the witness " , Amrozi accused his brother '
        "of deliberately distorting his evidence .",
        "label": "equivalent",
    }


@pytest.mark.parametrize("split, lost_rows", [("train", 114), ("test", 75)])
def test_mrpc_keeps_the_rows_that_csv_quoting_loses(data_folder, split, lost_rows):
    with open(
        Path(data_folder, f"mrpc/msr_paraphrase_{split}.txt"), encoding="utf-8-sig", newline=""
    ) as file:
        quoted = len(list(csv.reader(file, delimiter="\t"))) - 1
    splits = real(data_folder, "similarity")
    rows = splits.train + splits.validation if split == "train" else splits.test
    assert len(rows) - quoted == lost_rows


def test_mrpc_notes_how_many_test_pairs_share_a_sentence_with_train(data_folder):
    splits = real(data_folder, "similarity")
    train = {row[side] for row in splits.train for side in ("sentence1", "sentence2")}
    shared = [
        sum(row["sentence1"] in train or row["sentence2"] in train for row in rows)
        for rows in (splits.validation, splits.test)
    ]
    assert shared == [43, 245]
    assert splits.notes == (
        "43 of the 408 validation pairs share a sentence with train (3,668 pairs)",
        "245 of the 1,725 test pairs share a sentence with train (3,668 pairs)",
    )


def test_glue_mrpc_loads_the_original_files(data_folder):
    similarity, glue_mrpc = (
        load_splits(TASKS[name], str(data_folder)) for name in ("similarity", "glue/mrpc")
    )
    assert similarity == glue_mrpc and len(glue_mrpc.test) == 1725


# ---- Small files


def test_mrpc_quotes_are_text_and_validation_is_the_listed_pair_in_the_listed_order(tmp_path):
    splits = load(tmp_path, "similarity")
    pair = {"sentence1": 'He said : " no .', "sentence2": "He said no ."}
    # the list has the pair (12, 11), not (11, 12)
    assert splits.train == [pair | {"label": "equivalent"}] * 2
    assert splits.validation == [pair | {"label": "not equivalent"}]
    assert splits.test == [
        {"sentence1": "He said no .", "sentence2": 'She said : " yes .', "label": "not equivalent"}
    ]
    assert splits.notes == (
        "1 of the 1 validation pairs share a sentence with train (2 pairs)",
        "1 of the 1 test pairs share a sentence with train (2 pairs)",
    )


def test_the_list_of_ids_can_have_glues_name_dev_ids(tmp_path):
    files = dict(FILES["similarity"])
    expected = load(tmp_path / "ours", "similarity")
    files["dev_ids.tsv"] = files.pop(DEV_IDS)
    assert load_splits(SIMILARITY, str(write(tmp_path / "glue", files))) == expected


def test_mrpc_from_the_hub_has_the_rows_of_the_folder(tmp_path, hub_folder):
    write_glue(hub_folder)
    expected = load(tmp_path / "folder", "similarity")
    assert load_splits(SIMILARITY, "hub") == expected


def test_mrpc_without_its_header_line_has_the_same_rows(tmp_path):
    expected = load(tmp_path / "whole", "similarity")
    changed = {PAIRS: MRPC_TRAIN.removeprefix(MRPC_HEADING)}
    assert load(tmp_path / "without", "similarity", changed) == expected


# ---- Bad files


FIVE = "expected five, separated by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"


BAD_FILES = [
    (PAIRS, b"", NO_ROWS),
    (PAIRS_TEST, MRPC_HEADING, NO_ROWS),
    (PAIRS, MRPC_TRAIN + b"1\t2\t3\tIt\n", f", line 5: 4 columns in '1\\t2\\t3\\tIt'; {FIVE}"),
    (
        PAIRS,
        MRPC_TRAIN + b"1\t2\t3\tIt\tIt\t\n",
        f", line 5: 6 columns in '1\\t2\\t3\\tIt\\tIt\\t'; {FIVE}",
    ),
    (PAIRS, MRPC_TRAIN + MRPC_HEADING[3:], ", line 5: unknown label 'Quality'; expected one of 0"),
    (PAIRS, MRPC_TRAIN + b"1\t2\t3\tIt\tIt\nfell\n", f", line 6: 1 columns in 'fell'; {FIVE}"),
    (PAIRS, MRPC_TRAIN + b"2\t2\t3\tIt\tIt\n", ", line 5: unknown label '2'; expected one of 0, 1"),
    (PAIRS_TEST, MRPC_HEADING + b"1\t2\t3\tIt\t\n", f", line 2: {EMPTY.format('')}"),
    (PAIRS_TEST, MRPC_HEADING + b"\t\t\t\t\n", ", line 2: unknown label ''; expected one of 0, 1"),
    (PAIRS_TEST, MRPC_HEADING + b"1\t2\t3\t\xff\tIt\n", ", line 2: not utf-8; save"),
    (DEV_IDS, b"", NO_ROWS),
    (DEV_IDS, b"12\t11\n11 12\n", ", line 2: '11 12'; expected two ids separated by a tab"),
    (
        DEV_IDS,
        b"12\t11\n13\t15\n",
        r", line 2: '13\t15' is not a pair of the train file; use the list",
    ),
]


@pytest.mark.parametrize("name, content, message", BAD_FILES)
def test_a_bad_file_is_refused_at_its_line(tmp_path, name, content, message):
    folder = write(tmp_path, FILES["similarity"] | {name: content})
    assert refusal(TASKS["similarity"], folder, "paper").startswith(f"{folder / name}{message}")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"label": [-1]}, ", row 1: unknown label '-1'; expected one of 0, 1"),
        ({"label": [None]}, ", row 1: unknown label 'None'; expected one of 0, 1"),
        ({"sentence2": [None]}, f", row 1: {EMPTY.format(None)}"),
        ({"sentence1": [7]}, f", row 1: {EMPTY.format(7)}"),
    ],
)
def test_a_bad_row_of_a_parquet_file_is_refused(hub_folder, changed, message):
    write_glue(hub_folder, test=changed)
    assert refusal(SIMILARITY, "hub").startswith(
        f"{hub_folder / GLUE}/mrpc/test-00000-of-00001.parquet{message}"
    )


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "columns", "rows"])
def test_a_parquet_file_that_is_not_mrpc_is_refused(hub_folder, capfd, caplog, damage):
    write_glue(hub_folder)
    path = hub_folder / GLUE / "mrpc/train-00000-of-00001.parquet"
    if damage == "columns":
        write_glue(hub_folder, train={"sentence2": None})
    elif damage == "rows":
        write_glue(hub_folder, train={"sentence1": [], "sentence2": [], "label": [], "idx": []})
    else:
        path.write_bytes(
            {"empty": b"", "cut": path.read_bytes()[:-30], "text": b"1\tIt\tIt\n"}[damage]
        )
    message = (
        r": \w+; expected a parquet file with the columns sentence1, sentence2, label; "
        "delete it to download it again"
    )
    capfd.readouterr()
    logging.getLogger("datasets").addHandler(caplog.handler)
    assert re.fullmatch(re.escape(str(path)) + message, refusal(SIMILARITY, "hub"))
    logging.getLogger("datasets").removeHandler(caplog.handler)
    # the libraries print nothing
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])
