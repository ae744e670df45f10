"""JNLPBA: its published counts, small files written by hand, and bad files."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from corpus_files import (
    EMPTY,
    FILES,
    HUB_JSON,
    IOB2,
    IOB2_TEST,
    NO_ROWS,
    TAG_IDS,
    TAGS,
    TNER,
    load,
    raw_lines,
    real,
    refusal,
    write,
)

from neo_peft.corpora.sources import load_scored, load_splits
from neo_peft.tasks import TASKS

NER = TASKS["ner"]


def test_a_line_between_two_documents_is_no_sentence_and_is_counted(tmp_path):
    sentence = "IL-2\tB-protein\nbinds\tO\n\n"
    train = f"-DOCSTART-\tO\n\n{sentence * 6}-DOCSTART- -X- O O\n{sentence * 6}"
    test = f"{sentence}-DOCSTART-\tO\n{sentence}"
    splits = load(tmp_path, "ner", {IOB2: train.encode(), IOB2_TEST: test.encode()})
    row = {"tokens": ["IL-2", "binds"], "tags": ["B-protein", "O"]}
    assert (splits.train, splits.validation, splits.test) == ([row] * 11, [row], [row] * 2)
    assert splits.notes[:2] == (
        "Genia4ERtask1.iob2: 2 -DOCSTART- lines are not sentences; left out",
        "Genia4EReval1.iob2: 1 -DOCSTART- lines are not sentences; left out",
    )


# ---- The real data


@pytest.mark.parametrize(
    "split, sentences, tokens, entities",
    [
        ("train", 16_619, 492_551 - 50_827, 51_301 - 5_553),
        ("validation", 1_927, 50_827, 5_553),
        ("test", 3_856, 101_039, 8_662),
    ],
)
def test_jnlpba_has_the_published_counts(data_folder, split, sentences, tokens, entities):
    rows = getattr(real(data_folder, "ner"), split)
    assert len(rows) == sentences
    assert sum(len(row["tokens"]) for row in rows) == tokens
    assert sum(tag.startswith("B-") for row in rows for tag in row["tags"]) == entities


def test_jnlpba_has_the_published_entities_of_each_type(data_folder):
    def entities(rows):
        return Counter(tag[2:] for row in rows for tag in row["tags"] if tag[0] == "B")

    splits = real(data_folder, "ner")
    train = {"protein": 30_269, "DNA": 9_533, "cell_type": 6_718, "cell_line": 3_830, "RNA": 951}
    validation = {"protein": 3_029, "DNA": 1_260, "cell_type": 628, "cell_line": 505, "RNA": 131}
    test = {"protein": 5_067, "cell_type": 1_921, "DNA": 1_056, "cell_line": 500, "RNA": 118}
    assert entities(splits.train) + entities(splits.validation) == train
    assert entities(splits.validation) == validation
    assert entities(splits.test) == test
    in_file = Counter(
        line.split("\tB-")[1]
        for line in raw_lines(data_folder / "jnlpba/Genia4ERtask1.iob2")
        if "\tB-" in line
    )
    assert in_file == train


def test_jnlpba_keeps_every_line_in_order_and_starts_train_at_sentence_1927(data_folder):
    splits = real(data_folder, "ner")
    blocks = (
        Path(data_folder, "jnlpba/Genia4ERtask1.iob2")
        .read_text(encoding="utf-8")
        .rstrip("\n")
        .split("\n\n")
    )
    loaded_blocks = [
        "\n".join(map("\t".join, zip(row["tokens"], row["tags"])))
        for row in splits.validation + splits.train
    ]
    assert loaded_blocks == blocks
    assert (
        "\n".join(map("\t".join, zip(splits.train[0]["tokens"], splits.train[0]["tags"])))
        == blocks[1927]
    )
    # peft's guide and the hub's data set card each show a row of train.
    assert splits.train[0]["tokens"][:5] == ["Since", "HUVECs", "released", "superoxide", "anions"]
    assert splits.train[20]["tokens"][:7] == ["In", "the", "presence", "of", "Epo", ",", "c-myb"]
    assert splits.validation[0]["tokens"][:4] == ["IL-2", "gene", "expression", "and"]
    assert splits.validation[0]["tags"][:4] == ["B-DNA", "I-DNA", "O", "O"]


def test_jnlpba_notes_how_many_test_sentences_are_in_train(data_folder):
    splits = real(data_folder, "ner", "paper")
    train = {" ".join(row["tokens"]) for row in splits.train}
    assert sum(" ".join(row["tokens"]) in train for row in splits.test) == 108
    assert sum(" ".join(row["tokens"]) in train for row in splits.validation) == 7
    assert splits.notes == (
        "texts of train with different labels in different rows: 6",
        "7 of the 1,927 validation sentences are also in train (16,619 sentences)",
        "108 of the 3,856 test sentences are also in train (16,619 sentences)",
    )
    assert splits.protocol == "single"


# ---- Small files


def test_iob2_lines_become_sentences(tmp_path):
    splits = load(tmp_path, "ner")
    assert splits.validation == [{"tokens": ["IL-2", "gene"], "tags": ["B-DNA", "I-DNA"]}]
    assert splits.train == [
        {"tokens": ["T", "cells"], "tags": ["B-cell_type", "I-cell_type"]},
        {"tokens": ["I-kappaB"], "tags": ["I-protein"]},
    ]
    assert splits.test == [
        {"tokens": ["T"], "tags": ["O"]},
        {"tokens": ["IL-2", "gene"], "tags": ["B-DNA", "I-DNA"]},
    ]
    assert splits.notes == (
        "Genia4ERtask1.iob2 is not complete: the first 1 of its 3 sentences are validation",
        "0 of the 2 test sentences are also in train (2 sentences)",
    )


@pytest.mark.parametrize(
    "count, validation_size", [(2, 1), (30, 3), (1_927, 192), (1_928, 1_927), (1_930, 1_927)]
)
def test_validation_is_the_first_1927_sentences_or_a_tenth_of_a_smaller_file(
    tmp_path, count, validation_size
):
    words = [f"w{i}" for i in range(count)]
    train = "\n\n".join(f"{word}\tO" for word in words).encode()
    splits = load(tmp_path, "ner", {IOB2: train})
    assert [row["tokens"] for row in splits.validation] == [
        [word] for word in words[:validation_size]
    ]
    assert [row["tokens"] for row in splits.train] == [[word] for word in words[validation_size:]]


def test_tner_from_the_hub_has_the_rows_of_the_folder(tmp_path, hub_folder):
    write(hub_folder / TNER, HUB_JSON)
    folder = load(tmp_path / "folder", "ner")
    notes = folder.notes[1:]  # without the note that this is not the complete corpus
    assert load_splits(NER, "hub") == dataclasses.replace(folder, notes=notes)


@pytest.mark.parametrize("parent", ["", "jnlpba", "JNLPBA"])
def test_the_folders_of_the_original_archives_are_found(tmp_path, parent):
    """The archives of train and test unpack to train/ and test/."""
    files = {f"train/{IOB2}": FILES["ner"][IOB2], f"test/{IOB2_TEST}": FILES["ner"][IOB2_TEST]}
    write(tmp_path / "archives" / parent, files)
    assert load_splits(NER, str(tmp_path / "archives")) == load(tmp_path / "plain", "ner")


def test_a_split_that_is_scored_is_the_only_one_that_is_downloaded(tmp_path, hub_folder):
    needed = {name: HUB_JSON[name] for name in ("dataset/label.json", "dataset/test.json")}
    write(hub_folder / TNER, needed)  # no other file is there
    name, splits = load_scored(NER, "hub", "clean", 0, None)
    assert name == "test" and splits.test == load(tmp_path / "folder", "ner").test


def test_tner_tags_are_read_by_their_names(tmp_path, hub_folder):
    renumbered = {name: 10 - number for name, number in TAG_IDS.items()}
    label_json = str(renumbered).replace("'", '"').replace(",", ",\n").encode()
    write(hub_folder / TNER, HUB_JSON | {"dataset/label.json": label_json})
    # the file has the numbers 5 and 6
    assert load_splits(NER, "hub").train[0]["tags"] == ["B-cell_type", "I-protein"]


# ---- Bad files


TNER_LINE = (
    'expected {"tokens": ["..."], "tags": [0]} with one tag for each token, '
    "numbered as in label.json"
)


BAD_FILES = [
    (IOB2, b"", NO_ROWS),
    (IOB2, b"\r\n \n\n", NO_ROWS),
    (IOB2_TEST, b"###MEDLINE:1\n\n", NO_ROWS),
    (IOB2, b"T\tO\n\nc\xe9ll\tO\n", ", line 3: not utf-8; save the file as utf-8"),
    (IOB2, b"T\tO\nIL-2 B-DNA\n", ", line 2: 'IL-2 B-DNA'; expected a token, a tab and"),
    (IOB2_TEST, b"\n\nT\tB-LOC\n", f", line 3: unknown label 'B-LOC'; {TAGS}"),
    (IOB2, b"T\tO\tO\n", r", line 1: unknown label 'O\tO'; " + TAGS),
    (IOB2, b"T\t\n", f", line 1: unknown label ''; {TAGS}"),
    (IOB2, b"T\tO\n\tO\n", f", line 2: {EMPTY.format('')}"),
    (IOB2, b"T\tO\n \tO\n", f", line 2: {EMPTY.format(' ')}"),
    (IOB2, "T\tO\n\xa0\tO\n".encode(), f", line 2: {EMPTY.format(chr(0xA0))}"),
    (IOB2, b"T\tO\n\t\nT\tO\n", f", line 2: {EMPTY.format('')}"),
]


BAD_JSON = [
    ("dataset/train.json", b"", NO_ROWS),
    ("dataset/train.json", b"[]", f", line 1: '[]'; {TNER_LINE}"),
    ("dataset/train.json", b'{"tokens": ["a"]', f""", line 1: '{{"tokens": ["a"]'; {TNER_LINE}"""),
    (
        "dataset/train.json",
        b'{"tokens": ["a"]}',
        f""", line 1: '{{"tokens": ["a"]}}'; {TNER_LINE}""",
    ),
    ("dataset/valid.json", b'{"tokens": [], "tags": []}', TNER_LINE),
    ("dataset/valid.json", b'{"tokens": ["a", "b"], "tags": [0]}', TNER_LINE),
    ("dataset/test.json", b'{"tokens": ["a"], "tags": [11]}', TNER_LINE),
    ("dataset/test.json", b'{"tokens": ["a"], "tags": [[0]]}', TNER_LINE),
    ("dataset/test.json", b'{"tokens": [1], "tags": [0]}', TNER_LINE),
    ("dataset/test.json", b'{"tokens": [""], "tags": [0]}', TNER_LINE),
    (
        "dataset/test.json",
        '{"tokens": ["a", "\xa0"], "tags": [0, 0]}'.encode(),
        "token 2 is '\\xa0'",
    ),
    ("dataset/test.json", b"[" * 100_000, f", line 1: '{'[' * 40}'; {TNER_LINE}"),
    (
        "dataset/label.json",
        b"",
        ": expected a JSON object with a number for each of O, B-DNA, I-DNA",
    ),
    (
        "dataset/label.json",
        b"[0]",
        ": expected a JSON object with a number for each of O, B-DNA, I-DNA",
    ),
    (
        "dataset/label.json",
        b'{"O": 0}',
        ": expected a JSON object with a number for each of O, B-DNA, I-DNA",
    ),
    (
        "dataset/label.json",
        HUB_JSON["dataset/label.json"].replace(b"10", b"9"),
        ": expected a JSON object with a number for each",
    ),
    (
        "dataset/label.json",
        HUB_JSON["dataset/label.json"].replace(b"10", b"[]"),
        ": expected a JSON object with a number for each",
    ),
]


@pytest.mark.parametrize("name, content, message", BAD_FILES)
def test_a_bad_file_is_refused_at_its_line(tmp_path, name, content, message):
    folder = write(tmp_path, FILES["ner"] | {name: content})
    assert refusal(TASKS["ner"], folder, "paper").startswith(f"{folder / name}{message}")


@pytest.mark.parametrize("name, content, message", BAD_JSON)
def test_a_bad_json_file_is_refused_at_its_line(hub_folder, name, content, message):
    write(hub_folder / TNER, HUB_JSON | {name: content})
    refused = refusal(NER, "hub")
    assert refused.startswith(str(hub_folder / TNER / name))
    assert message in refused
