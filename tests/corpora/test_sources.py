"""Rows and splits: against the corpora's published counts, files written out by hand, and what
breaks them.

`data_folder` is the folder of the corpora; without it their tests are skipped, and the written
files remain.
"""

import csv
import hashlib
import logging
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from corpus_files import (
    AGREE_50,
    AGREE_66,
    CORPORA,
    DEV_IDS,
    FILES,
    GLUE,
    HUB_JSON,
    IOB2,
    IOB2_TEST,
    MRPC_HEADING,
    MRPC_TRAIN,
    PAIRS,
    PAIRS_TEST,
    PHRASES,
    TAG_IDS,
    TNER,
    write_glue,
    write_zip,
)

from neo_peft.corpora import sample, sources
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import Splits, limit_rows
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import TASKS

NER, SENTIMENT, SIMILARITY = TASKS["ner"], TASKS["sentiment"], TASKS["similarity"]


@cache
def real(data_folder: Path, task: str, protocol: str = "clean") -> Splits:
    return load_splits(TASKS[task], str(data_folder), protocol)


def raw_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """A corpus file's lines, without the package's readers."""
    with open(path, encoding=encoding, newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


def folded(sentence: str) -> str:
    return re.sub(r"[\W_]", "", sentence.lower())


# ---- JNLPBA


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
    said = [
        "\n".join(map("\t".join, zip(row["tokens"], row["tags"])))
        for row in splits.validation + splits.train
    ]
    assert said == blocks
    assert (
        "\n".join(map("\t".join, zip(splits.train[0]["tokens"], splits.train[0]["tags"])))
        == blocks[1927]
    )
    # The two rows of the hub's copy that are known from print: peft's guide, and the card's example
    # of train.
    assert splits.train[0]["tokens"][:5] == ["Since", "HUVECs", "released", "superoxide", "anions"]
    assert splits.train[20]["tokens"][:7] == ["In", "the", "presence", "of", "Epo", ",", "c-myb"]
    assert splits.validation[0]["tokens"][:4] == ["IL-2", "gene", "expression", "and"]
    assert splits.validation[0]["tags"][:4] == ["B-DNA", "I-DNA", "O", "O"]


def test_jnlpba_says_how_many_test_sentences_stand_in_train(data_folder):
    splits = real(data_folder, "ner", "paper")
    train = {" ".join(row["tokens"]) for row in splits.train}
    assert sum(" ".join(row["tokens"]) in train for row in splits.test) == 108
    assert splits.notes == (
        "108 of the 3,856 test sentences also stand in train (16,619 sentences)",
    )
    assert splits.protocol == "single"


# ---- PhraseBank


@pytest.mark.parametrize(
    "name, count", [("50Agree", 4_846), ("66Agree", 4_217), ("75Agree", 3_453), ("AllAgree", 2_264)]
)
def test_phrasebank_keeps_every_line_of_each_file(data_folder, tmp_path, name, count):
    corpus = Path(data_folder, "financial_phrasebank")
    rows = load(
        tmp_path, "sentiment", {AGREE_66: (corpus / f"Sentences_{name}.txt").read_bytes()}, "paper"
    ).test
    assert len(rows) == count
    lines = raw_lines(data_folder / f"financial_phrasebank/Sentences_{name}.txt", "latin-1")
    assert [f"{row['sentence']}@{row['label']}" for row in rows] == lines


def test_clean_phrasebank_has_each_sentence_once_in_one_split(data_folder):
    splits = real(data_folder, "sentiment")
    labels = defaultdict(list)
    for line in raw_lines(data_folder / "financial_phrasebank/Sentences_50Agree.txt", "latin-1"):
        sentence, label = line.rsplit("@", 1)
        labels[folded(sentence)].append(label)
    conflicting = {text for text, found in labels.items() if len(set(found)) > 1}
    assert (len(labels), len(conflicting)) == (4_835, 2)

    texts = [
        [folded(row["sentence"]) for row in rows]
        for rows in (splits.train, splits.validation, splits.test)
    ]
    assert [len(rows) for rows in texts] == [3_864, 485, 484]
    assert sorted(chain(*texts)) == sorted(labels.keys() - conflicting)
    assert splits.protocol == "clean"
    assert splits.notes == (
        "Sentences_50Agree.txt: 4,846 rows are 4,835 sentences that differ in letters or digits; "
        "dropped for conflicting labels: 2",
        "0 of the 484 test sentences also stand in train (3,864 sentences)",
    )


def test_clean_phrasebank_gives_every_split_its_share_of_each_label(data_folder):
    splits = real(data_folder, "sentiment")
    everything = Counter(row["label"] for row in splits.train + splits.validation + splits.test)
    for rows, share in ((splits.train, 0.8), (splits.validation, 0.1), (splits.test, 0.1)):
        found = Counter(row["label"] for row in rows)
        for label in SENTIMENT.labels:
            # Train is the rest, so the other two's differences of less than one row may add up
            # there.
            assert abs(found[label] - share * everything[label]) < (2 if share == 0.8 else 1)


def test_paper_phrasebank_tests_on_sentences_that_it_trains_on(data_folder):
    splits = real(data_folder, "sentiment", "paper")
    said = [
        [f"{row['sentence']}@{row['label']}" for row in rows]
        for rows in (splits.train, splits.validation)
    ]
    assert [len(rows) for rows in said] == [4_361, 485]
    assert sorted(chain(*said)) == sorted(
        raw_lines(data_folder / "financial_phrasebank/Sentences_50Agree.txt", "latin-1")
    )
    train = {row["sentence"] for row in splits.train}
    leaked = sum(row["sentence"] in train for row in splits.test)
    assert leaked == 3_780
    assert splits.notes == (
        "3,780 of the 4,217 test sentences also stand in train (4,361 sentences)",
    )
    assert splits.protocol == "paper"


# ---- MRPC


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

    def said(rows):
        return [
            [str(int(row["label"] == "equivalent")), row["sentence1"], row["sentence2"]]
            for row in rows
        ]

    assert said(splits.train) == [[c[0], *c[3:]] for c in lines if f"{c[1]}\t{c[2]}" not in listed]
    assert said(splits.validation) == [[c[0], *c[3:]] for c in lines if f"{c[1]}\t{c[2]}" in listed]
    assert said(splits.test) == [[c[0], *c[3:]] for c in test]
    assert splits.train[0] == {
        "sentence1": 'Amrozi accused his brother , whom he called " the witness " , '
        "of deliberately distorting his evidence .",
        "sentence2": 'Referring to him as only " the witness " , Amrozi accused his brother '
        "of deliberately distorting his evidence .",
        "label": "equivalent",
    }


@pytest.mark.parametrize("split, lost", [("train", 114), ("test", 75)])
def test_mrpc_keeps_the_rows_that_csv_quoting_swallows(data_folder, split, lost):
    with open(
        Path(data_folder, f"mrpc/msr_paraphrase_{split}.txt"), encoding="utf-8-sig", newline=""
    ) as file:
        quoted = len(list(csv.reader(file, delimiter="\t"))) - 1
    splits = real(data_folder, "similarity")
    rows = splits.train + splits.validation if split == "train" else splits.test
    assert len(rows) - quoted == lost


def test_mrpc_says_how_many_test_pairs_share_a_sentence_with_train(data_folder):
    splits = real(data_folder, "similarity")
    train = {row[side] for row in splits.train for side in ("sentence1", "sentence2")}
    assert sum(row["sentence1"] in train or row["sentence2"] in train for row in splits.test) == 245
    assert splits.notes == (
        "245 of the 1,725 test pairs share a sentence with train (3,668 pairs)",
    )


# ---- Small files, written out: each value of FILES is a whole folder


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


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


def load(
    folder: Path, task: str, changed: dict[str, bytes] | None = None, protocol="clean"
) -> Splits:
    """Load a folder of FILES, some of them changed."""
    return load_splits(TASKS[task], str(write(folder, FILES[task] | (changed or {}))), protocol)


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
    assert splits.notes == ("0 of the 2 test sentences also stand in train (2 sentences)",)


@pytest.mark.parametrize(
    "count, held_out", [(2, 1), (30, 3), (1_927, 192), (1_928, 1_927), (1_930, 1_927)]
)
def test_validation_is_the_first_1927_sentences_or_the_first_tenth_of_fewer(
    tmp_path, count, held_out
):
    words = [f"w{i}" for i in range(count)]
    train = "\n\n".join(f"{word}\tO" for word in words).encode()
    splits = load(tmp_path, "ner", {IOB2: train})
    assert [row["tokens"] for row in splits.validation] == [[word] for word in words[:held_out]]
    assert [row["tokens"] for row in splits.train] == [[word] for word in words[held_out:]]


def test_crlf_a_byte_order_mark_and_spaces_on_a_blank_line_do_not_change_the_rows(tmp_path):
    plain = load(tmp_path / "plain", "ner")
    dressed = {
        name: b"\xef\xbb\xbf" + content.replace(b"\n\n", b"\n  \n").replace(b"\n", b"\r\n")
        for name, content in FILES["ner"].items()
    }
    assert load(tmp_path / "dressed", "ner", dressed) == plain


def test_phrasebank_is_latin_1_and_split_at_the_last_at(tmp_path):
    # 0x85 ends a line for str.splitlines, and is a character of the sentence here.
    test = b'M\xe4kel\xe4 \x85 said " yes@firm.fi .@neutral\r\n  A  lot@positive\r\n'
    splits = load(tmp_path, "sentiment", {AGREE_66: test}, "paper")
    assert splits.test == [
        {"sentence": 'M\u00e4kel\u00e4 \x85 said " yes@firm.fi .', "label": "neutral"},
        {"sentence": "  A  lot", "label": "positive"},
    ]


def test_phrasebank_saved_as_utf_8_with_its_mark_is_read_as_that(tmp_path):
    test = "\ufeffM\u00e4kel\u00e4 .@neutral\n".encode()
    splits = load(tmp_path, "sentiment", {AGREE_66: test}, "paper")
    assert splits.test == [{"sentence": "M\u00e4kel\u00e4 .", "label": "neutral"}]


def test_clean_keeps_the_first_of_repeats_and_none_of_conflicting_ones(tmp_path):
    repeats = [
        "M\u00c4KEL\u00c4 S POSITIVE, no 1@positive",
        "Sales fell .@negative",
        "Sales : fell@neutral",
        "sales fell@negative",
    ]
    splits = load(tmp_path, "sentiment", {AGREE_50: "\n".join(PHRASES + repeats).encode("latin-1")})
    sentences = [row["sentence"] for row in splits.train + splits.validation + splits.test]
    assert sorted(sentences) == sorted(phrase.split("@")[0] for phrase in PHRASES)
    assert splits.notes[0].endswith(
        "34 rows are 31 sentences that differ in letters or digits; dropped for conflicting "
        "labels: 1"
    )


def distinct_phrases() -> list[tuple[str, str]]:
    counts = {"positive": 23, "neutral": 41, "negative": 12}
    return [
        (f"The {label} case no {i} .", label)
        for label, count in counts.items()
        for i in range(count)
    ]


def test_clean_deals_each_label_by_the_sha256_of_its_sentences(tmp_path):
    phrases = distinct_phrases()
    random.Random(1).shuffle(phrases)
    content = "\n".join("@".join(phrase) for phrase in phrases).encode()
    splits = load(tmp_path, "sentiment", {AGREE_50: content})
    expected = {"validation": set(), "test": set()}
    for label in ("negative", "neutral", "positive"):
        own = sorted(
            hashlib.sha256(text.encode()).hexdigest() + text for text, of in phrases if of == label
        )
        expected["validation"] |= {item[64:] for item in own[0::10]}
        expected["test"] |= {item[64:] for item in own[1::10]}
    for name, texts in expected.items():
        assert {row["sentence"] for row in getattr(splits, name)} == texts
    # Of 12, 23 and 41 sentences every tenth from the first is 2 + 3 + 5, from the second 2 + 3 + 4.
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [
        76 - 10 - 9,
        10,
        9,
    ]
    order = [text for text, _ in phrases]
    for rows in (splits.train, splits.validation, splits.test):
        places = [order.index(row["sentence"]) for row in rows]
        assert places == sorted(places)


def test_paper_deals_all_rows_together(tmp_path):
    phrases = distinct_phrases()
    content = "\n".join("@".join(phrase) for phrase in phrases).encode()
    splits = load(tmp_path, "sentiment", {AGREE_50: content}, "paper")
    own = sorted(hashlib.sha256(text.encode()).hexdigest() + text for text, _ in phrases)
    assert {row["sentence"] for row in splits.validation} == {item[64:] for item in own[0::10]}
    assert len(splits.train) == 76 - 8


def test_mrpc_quotes_are_text_and_validation_is_the_listed_pair_in_that_order(tmp_path):
    splits = load(tmp_path, "similarity")
    said = {"sentence1": 'He said : " no .', "sentence2": "He said no ."}
    # ids 11 and 12 that way round are not listed
    assert splits.train == [said | {"label": "equivalent"}] * 2
    assert splits.validation == [said | {"label": "not equivalent"}]
    assert splits.test == [
        {"sentence1": "He said no .", "sentence2": 'She said : " yes .', "label": "not equivalent"}
    ]
    assert splits.notes == ("1 of the 1 test pairs share a sentence with train (2 pairs)",)


def test_sample_formats(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE", tmp_path)
    for task in CORPORA:
        sample_folder(tmp_path, task)
    assert load_splits(NER, "sample").train == [
        {
            "tokens": ["NF-kappa", "B", "binds", "the", "IL-2", "promoter", "."],
            "tags": ["B-protein", "I-protein", "O", "O", "B-DNA", "I-DNA", "O"],
        },
        {"tokens": ["mRNA", "c-fos"], "tags": ["B-RNA", "B-RNA"]},
    ]
    assert load_splits(SENTIMENT, "sample").validation == [
        {"sentence": "Profit rose .", "label": "positive"},
        {"sentence": "The office\tis here .", "label": "neutral"},
    ]
    assert load_splits(SIMILARITY, "sample").test == [
        {"sentence1": "It rose .", "sentence2": "It went up .", "label": "equivalent"},
        {"sentence1": "It fell .", "sentence2": "It was said .", "label": "not equivalent"},
    ]


@pytest.mark.parametrize("task", CORPORA)
@pytest.mark.parametrize(
    "place", ["", "{corpus}", "{corpus}/FinancialPhraseBank-v1.0", "FinancialPhraseBank-v1.0"]
)
def test_the_folder_may_be_the_corpus_or_hold_it(tmp_path, task, place):
    corpus = {"ner": "jnlpba", "sentiment": "financial_phrasebank", "similarity": "mrpc"}[task]
    expected = load(tmp_path / "plain", task)
    write(tmp_path / "all" / place.format(corpus=corpus), FILES[task])
    assert load_splits(TASKS[task], str(tmp_path / "all")) == expected


def test_glue_calls_the_list_of_ids_dev_ids(tmp_path):
    files = dict(FILES["similarity"])
    expected = load(tmp_path / "ours", "similarity")
    files["dev_ids.tsv"] = files.pop(DEV_IDS)
    assert load_splits(SIMILARITY, str(write(tmp_path / "glue", files))) == expected


# ---- The hub, laid out in a folder


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """A folder in the place of the hub: <repository>/<file>."""

    def hub_file(repository, filename, kind="model", revision=None):
        assert kind == "dataset"
        return tmp_path / "hub" / repository / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    return tmp_path / "hub"


def test_tner_from_the_hub_is_the_folder(tmp_path, hub_folder):
    write(hub_folder / TNER, HUB_JSON)
    assert load_splits(NER, "hub") == load(tmp_path / "folder", "ner")


def test_tner_tags_are_read_by_their_names(tmp_path, hub_folder):
    renumbered = {name: 10 - number for name, number in TAG_IDS.items()}
    label_json = str(renumbered).replace("'", '"').replace(",", ",\n").encode()
    write(hub_folder / TNER, HUB_JSON | {"dataset/label.json": label_json})
    # numbers 5 and 6
    assert load_splits(NER, "hub").train[0]["tags"] == ["B-cell_type", "I-protein"]


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_phrasebank_from_the_hub_is_the_folder(tmp_path, hub_folder, protocol):
    write_zip(hub_folder, FILES["sentiment"])
    expected = load(tmp_path / "folder", "sentiment", protocol=protocol)
    assert load_splits(SENTIMENT, "hub", protocol) == expected


def test_glue_from_the_hub_is_the_folder(tmp_path, hub_folder):
    write_glue(hub_folder)
    expected = load(tmp_path / "folder", "similarity")
    assert load_splits(SIMILARITY, "hub") == expected


# ---- Bad input

LABELS = "expected one of negative, neutral, positive"
TAGS = (
    "expected one of O, B-DNA, I-DNA, B-protein, I-protein, B-cell_type, I-cell_type, "
    "B-cell_line, I-"
)
FIVE = "expected five, split by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"
NO_ROWS = ": the file holds no rows; fill it, or put the data's own file there"
TNER_LINE = (
    'expected {"tokens": ["..."], "tags": [0]}, as many tags as tokens, numbered as in label.json'
)
EMPTY = "an empty token or sentence; fill it, or remove what it belongs to"
STRAY = "expected words split by single spaces, and marks such as [protein NF-kappa B]"

BAD_FILES = [
    (IOB2, b"", NO_ROWS),
    (IOB2, b"\r\n \n\n", NO_ROWS),
    (IOB2_TEST, b"###MEDLINE:1\n\n", NO_ROWS),
    (IOB2, b"T\tO\n\nc\xe9ll\tO\n", ", line 3: not utf-8; save the file as utf-8"),
    (IOB2, b"T\tO\nIL-2 B-DNA\n", ", line 2: 'IL-2 B-DNA'; expected a token, a tab and"),
    (IOB2_TEST, b"\n\nT\tB-LOC\n", f", line 3: unknown label 'B-LOC'; {TAGS}"),
    (IOB2, b"T\tO\tO\n", r", line 1: unknown label 'O\tO'; " + TAGS),
    (IOB2, b"T\t\n", f", line 1: unknown label ''; {TAGS}"),
    (IOB2, b"T\tO\n\tO\n", f", line 2: {EMPTY}"),
    (IOB2, b"T\tO\n \tO\n", f", line 2: {EMPTY}"),
    (IOB2, b"T\tO\n\t\nT\tO\n", f", line 2: {EMPTY}"),
    (AGREE_50, b"", NO_ROWS),
    (AGREE_50, b"Up .@positive\nDown .\n", ", line 2: 'Down .'; expected a sentence, @"),
    (AGREE_50, b"Up .@positive\n\nDown .@bad\n", f", line 3: unknown label 'bad'; {LABELS}"),
    (AGREE_66, b" @positive\n", f", line 1: {EMPTY}"),
    (AGREE_66, b"\xef\xbb\xbfUp@neutral\n\xe4", ", line 2: not utf-8; save the file as"),
    (PAIRS, b"", NO_ROWS),
    (PAIRS_TEST, MRPC_HEADING, NO_ROWS),
    (PAIRS, MRPC_TRAIN + b"1\t2\t3\tIt\n", f", line 5: 4 columns in '1\\t2\\t3\\tIt'; {FIVE}"),
    (
        PAIRS,
        MRPC_TRAIN + b"1\t2\t3\tIt\tIt\t\n",
        f", line 5: 6 columns in '1\\t2\\t3\\tIt\\tIt\\t'; {FIVE}",
    ),
    (PAIRS, MRPC_TRAIN + b"2\t2\t3\tIt\tIt\n", ", line 5: unknown label '2'; expected one of 0, 1"),
    (PAIRS_TEST, MRPC_HEADING + b"1\t2\t3\tIt\t\n", f", line 2: {EMPTY}"),
    (PAIRS_TEST, MRPC_HEADING + b"\t\t\t\t\n", ", line 2: unknown label ''; expected one of 0, 1"),
    (PAIRS_TEST, MRPC_HEADING + b"1\t2\t3\t\xff\tIt\n", ", line 2: not utf-8; save"),
    (DEV_IDS, b"", NO_ROWS),
    (DEV_IDS, b"12\t11\n11 12\n", ", line 2: '11 12'; expected two ids split by a tab"),
    (
        DEV_IDS,
        b"12\t11\n13\t15\n",
        r", line 2: '13\t15' is no pair of the train file; use the list",
    ),
]

BAD_SAMPLES = [
    ("ner", b"", NO_ROWS),
    (
        "ner",
        b"The [DNA gene]\nThe [DNA gene\n",
        f", line 2: a stray bracket or space in 'The [DNA gene'; {STRAY}",
    ),
    ("ner", b"The DNA] gene\n", ", line 1: a stray bracket or space in 'The DNA] gene'; "),
    ("ner", b"The [DNA] gene\n", ", line 1: a stray bracket or space in 'The [DNA] gene'; "),
    (
        "ner",
        b"The [DNA a [RNA b] c]\n",
        ", line 1: a stray bracket or space in 'The [DNA a [RNA b] c]'; ",
    ),
    ("ner", b"The x[DNA a] b\n", ", line 1: a stray bracket or space in 'The x[DNA a] b'; "),
    ("ner", b"The  gene\n", ", line 1: a stray bracket or space in 'The  gene'; "),
    ("ner", b"The gene \n", ", line 1: a stray bracket or space in 'The gene '; "),
    ("ner", b"The [DNA a  b] .\n", f", line 1: {EMPTY}"),
    ("ner", b"The [LOC gene]\n", f", line 1: unknown label 'B-LOC'; {TAGS}"),
    (
        "sentiment",
        b"positive\tUp .\npositive Up .\n",
        ", line 2: 'positive Up .'; expected a label, a tab and",
    ),
    ("sentiment", b"good\tUp .\n", f", line 1: unknown label 'good'; {LABELS}"),
    ("sentiment", b"positive\t \n", f", line 1: {EMPTY}"),
    (
        "similarity",
        b"equivalent\nA\nB\n\nequivalent\nA\n",
        ", line 5: a block of 2 lines; expected a label, two",
    ),
    (
        "similarity",
        b"equivalent\nA\nB\nequivalent\nA\nB\n",
        ", line 1: a block of 6 lines; expected a label, two",
    ),
    (
        "similarity",
        b"same\nA\nB\n",
        ", line 1: unknown label 'same'; expected one of not equivalent, equivalent",
    ),
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
    ("dataset/test.json", b"[" * 100_000, f", line 1: '{'[' * 40}'; {TNER_LINE}"),
    ("dataset/label.json", b"", ": expected a JSON number for each of O, B-DNA, I-DNA"),
    ("dataset/label.json", b"[0]", ": expected a JSON number for each of O, B-DNA, I-DNA"),
    ("dataset/label.json", b'{"O": 0}', ": expected a JSON number for each of O, B-DNA, I-DNA"),
    (
        "dataset/label.json",
        HUB_JSON["dataset/label.json"].replace(b"10", b"9"),
        ": expected a JSON number for each",
    ),
    (
        "dataset/label.json",
        HUB_JSON["dataset/label.json"].replace(b"10", b"[]"),
        ": expected a JSON number for each",
    ),
]


def refusal(task, data, protocol="clean") -> str:
    """What a load is refused with, which must be one line."""
    with pytest.raises(InputError) as refused:
        load_splits(task, str(data), protocol)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name, content, message", BAD_FILES)
def test_a_bad_file_of_a_folder_is_refused_at_its_line(tmp_path, name, content, message):
    task = next(task for task, files in FILES.items() if name in files)
    folder = write(tmp_path, FILES[task] | {name: content})
    assert refusal(TASKS[task], folder, "paper").startswith(f"{folder / name}{message}")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("task, content, message", BAD_SAMPLES)
def test_a_bad_sample_is_refused_at_its_line(tmp_path, monkeypatch, task, content, message, split):
    monkeypatch.setattr(sample, "SAMPLE", sample_folder(tmp_path, task))
    (tmp_path / task / f"{split}.txt").write_bytes(content)
    assert refusal(TASKS[task], "sample").startswith(f"{tmp_path / task / split}.txt{message}")


@pytest.mark.parametrize("name, content, message", BAD_JSON)
def test_a_bad_json_file_is_refused_at_its_line(hub_folder, name, content, message):
    write(hub_folder / TNER, HUB_JSON | {name: content})
    refused = refusal(NER, "hub")
    assert refused.startswith(str(hub_folder / TNER / name))
    assert message in refused


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"label": [-1]}, ", row 1: unknown label '-1'; expected one of 0, 1"),
        ({"label": [None]}, ", row 1: unknown label 'None'; expected one of 0, 1"),
        ({"sentence2": [None]}, f", row 1: {EMPTY}"),
        ({"sentence1": [7]}, f", row 1: {EMPTY}"),
    ],
)
def test_a_bad_row_of_parquet_is_refused(hub_folder, changed, message):
    write_glue(hub_folder, test=changed)
    assert refusal(SIMILARITY, "hub").startswith(
        f"{hub_folder / GLUE}/mrpc/test-00000-of-00001.parquet{message}"
    )


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "columns", "rows"])
def test_what_is_not_mrpc_in_parquet_is_refused(hub_folder, capfd, caplog, damage):
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
        r": \w+; expected parquet with sentence1, sentence2, label; delete it, "
        "so that it is fetched again"
    )
    capfd.readouterr()
    logging.getLogger("datasets").addHandler(caplog.handler)
    assert re.fullmatch(re.escape(str(path)) + message, refusal(SIMILARITY, "hub"))
    logging.getLogger("datasets").removeHandler(caplog.handler)
    # no line of the libraries' own beside it
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])


@pytest.mark.parametrize("damage", ["empty", "text", "member", "line"])
def test_a_bad_zip_is_refused(hub_folder, damage):
    path = write_zip(hub_folder, FILES["sentiment"])
    message = f"{path}: a broken zip ("
    if damage == "member":
        content = bytearray(path.read_bytes())
        content[100:110] = bytes(10)
        path.write_bytes(content)
    elif damage == "line":
        path.unlink()
        path.parent.rmdir()
        write_zip(hub_folder, {AGREE_50: b"Up .@positive\nDown ."})
        message = (
            f"{path}/FinancialPhraseBank-v1.0/Sentences_50Agree.txt, line 2: 'Down .'; "
            "expected a sentence"
        )
    else:
        path.write_bytes({"empty": b"", "text": b"Up .@positive"}[damage])
    assert refusal(SENTIMENT, "hub").startswith(message)


@pytest.mark.parametrize(
    "task, files",
    [
        ("ner", "Genia4ERtask1.iob2, Genia4EReval1.iob2, nor does jnlpba/ below it"),
        (
            "sentiment",
            "Sentences_50Agree.txt, Sentences_66Agree.txt, nor does financial_phrasebank/ below it",
        ),
        (
            "similarity",
            "msr_paraphrase_train.txt, msr_paraphrase_test.txt, mrpc_dev_ids.tsv, nor does mrpc/ "
            "below it",
        ),
    ],
)
def test_a_folder_without_the_files_says_which_were_looked_for(tmp_path, task, files):
    assert refusal(TASKS[task], tmp_path) == f"--data {tmp_path}: it holds none of {files}"


def test_what_is_no_folder_says_what_data_may_be(tmp_path):
    for path in (tmp_path / "nowhere", write(tmp_path, {"file.txt": b"It"}) / "file.txt"):
        expected = f"--data {path}: there is no such folder; --data may be sample, hub or a folder"
        assert refusal(SENTIMENT, path) == expected


@pytest.mark.parametrize(
    "task, name",
    [
        ("sentiment", AGREE_50),
        *((task, name) for task in ("ner", "similarity") for name in FILES[task]),
    ],
)
def test_one_missing_file_is_named(tmp_path, task, name):
    write(tmp_path, FILES[task])
    (tmp_path / name).unlink()
    expected = f"{tmp_path / name}: there is no such file; put it beside the task's other files"
    assert refusal(TASKS[task], tmp_path) == expected


def test_paper_without_66_agree_names_it_and_clean_does_without(tmp_path):
    write(tmp_path, {AGREE_50: FILES["sentiment"][AGREE_50]})
    file = tmp_path / AGREE_66
    expected = f"{file}: there is no such file to test on; add it, or use --protocol clean"
    assert refusal(SENTIMENT, tmp_path, "paper") == expected
    assert load_splits(SENTIMENT, str(tmp_path)).protocol == "clean"


def test_an_unknown_protocol_is_refused_for_every_source():
    expected = "there is no protocol 'papr'; the protocols are clean, paper"
    assert refusal(SENTIMENT, "sample", "papr") == expected


def test_too_few_rows_for_a_split_are_refused(tmp_path):
    folder = write(tmp_path / "one", FILES["ner"] | {IOB2: b"T\tO\n"})
    assert (
        refusal(NER, folder)
        == f"--data {folder}: too few rows, none is left for train; give more of them"
    )
    folder = write(tmp_path / "all", FILES["similarity"] | {DEV_IDS: b"11\t12\n12\t11\n13\t14\n"})
    assert "none is left for train" in refusal(SIMILARITY, folder)


@pytest.mark.parametrize("task", CORPORA)
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path, monkeypatch, hub_folder, task):
    """Bytes are overwritten, cut out and put in at random, in each file of each source: never a
    traceback."""
    draw = random.Random(0)
    monkeypatch.setattr(sample, "SAMPLE", sample_folder(tmp_path / "sample", task))
    folder = write(tmp_path / "folder", FILES[task])
    files = [(file, str(folder)) for file in folder.iterdir()]
    files += [(file, "sample") for file in (tmp_path / "sample" / task).iterdir()]
    if task == "ner":
        write(hub_folder / TNER, HUB_JSON)
        files += [(file, "hub") for file in (hub_folder / TNER / "dataset").iterdir()]
    if task == "sentiment":
        files.append((write_zip(hub_folder, FILES["sentiment"]), "hub"))
    for file, data in files:
        whole = file.read_bytes()
        for _ in range(60):
            start = draw.randrange(len(whole))
            put_in = bytes(
                draw.choice(b'\t\n\r @[]{}"0\x00\x85\xff,') for _ in range(draw.randrange(4))
            )
            file.write_bytes(whole[:start] + put_in + whole[start + draw.randrange(4) :])
            try:
                load_splits(TASKS[task], data, "paper")
            except InputError as error:
                assert len(str(error).splitlines()) == 1
        file.write_bytes(whole)


# ---- Limits, imports, and the bundled sample


def test_a_limit_takes_evenly_spaced_rows_in_order():
    rows = [{"sentence": str(i)} for i in range(10)]
    assert limit_rows(rows, 4) == [rows[0], rows[2], rows[5], rows[7]]
    assert limit_rows(rows, 1) == rows[:1]
    assert limit_rows(rows, 9) == rows[:9]
    for limit in (None, 10, 11):
        assert limit_rows(rows, limit) == rows
    with pytest.raises(InputError, match="a limit of 0 rows leaves none; give 1 or more"):
        limit_rows(rows, 0)


def test_importing_the_module_loads_neither_torch_nor_datasets():
    code = (
        "import sys, neo_peft.corpora.sources; print({'torch', 'datasets', 'huggingface_hub'} & "
        "set(sys.modules))"
    )
    root = Path(sources.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
