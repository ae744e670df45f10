"""PhraseBank: its published counts, small files written by hand, and bad files."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import pytest
from corpus_files import (
    AGREE_50,
    AGREE_66,
    EMPTY,
    FILES,
    LABELS,
    NO_ROWS,
    PHRASES,
    load,
    raw_lines,
    real,
    refusal,
    write,
    write_zip,
)

from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

SENTIMENT = TASKS["sentiment"]


def folded(sentence: str) -> str:
    """Return the letters and digits of a sentence, in lower case."""
    return re.sub(r"[\W_]", "", sentence.lower())


# ---- The real data


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
    conflicting = {text for text, text_labels in labels.items() if len(set(text_labels)) > 1}
    assert (len(labels), len(conflicting)) == (4_835, 2)

    texts = [
        [folded(row["sentence"]) for row in rows]
        for rows in (splits.train, splits.validation, splits.test)
    ]
    assert [len(rows) for rows in texts] == [3_864, 485, 484]
    assert sorted(chain(*texts)) == sorted(labels.keys() - conflicting)
    assert splits.protocol == "clean"
    assert splits.notes == (
        "Sentences_50Agree.txt: 4,846 rows have 4,835 different sentences, compared by letters "
        "and digits; dropped for conflicting labels: 2",
        "0 of the 484 test sentences are also in train (3,864 sentences)",
    )


def test_clean_phrasebank_gives_every_split_its_share_of_each_label(data_folder):
    splits = real(data_folder, "sentiment")
    total = Counter(row["label"] for row in splits.train + splits.validation + splits.test)
    for rows, share in ((splits.train, 0.8), (splits.validation, 0.1), (splits.test, 0.1)):
        counts = Counter(row["label"] for row in rows)
        for label in SENTIMENT.labels:
            # Train has the remaining rows: the rounding errors of the other two can add up.
            assert abs(counts[label] - share * total[label]) < (2 if share == 0.8 else 1)


def test_paper_phrasebank_tests_on_sentences_that_it_trains_on(data_folder):
    splits = real(data_folder, "sentiment", "paper")
    lines = [
        [f"{row['sentence']}@{row['label']}" for row in rows]
        for rows in (splits.train, splits.validation)
    ]
    assert [len(rows) for rows in lines] == [4_361, 485]
    assert sorted(chain(*lines)) == sorted(
        raw_lines(data_folder / "financial_phrasebank/Sentences_50Agree.txt", "latin-1")
    )
    train = {row["sentence"] for row in splits.train}
    leaked = sum(row["sentence"] in train for row in splits.test)
    assert leaked == 3_780
    assert sum(row["sentence"] in train for row in splits.validation) == 3
    assert splits.notes == (
        "texts of train with different labels in different rows: 1",
        "3 of the 485 validation sentences are also in train (4,361 sentences)",
        "3,780 of the 4,217 test sentences are also in train (4,361 sentences)",
    )
    assert splits.protocol == "paper"


# ---- Small files


def test_phrasebank_is_latin_1_and_split_at_the_last_at(tmp_path):
    # str.splitlines would end a line at 0x85; here it is a character of the sentence.
    test = b'M\xe4kel\xe4 \x85 said " yes@firm.fi .@neutral\r\n  A  lot@positive\r\n'
    splits = load(tmp_path, "sentiment", {AGREE_66: test}, "paper")
    assert splits.test == [
        {"sentence": 'M\u00e4kel\u00e4 \x85 said " yes@firm.fi .', "label": "neutral"},
        {"sentence": "  A  lot", "label": "positive"},
    ]


def test_phrasebank_with_the_byte_order_mark_of_utf_8_is_read_as_utf_8(tmp_path):
    test = "\ufeffM\u00e4kel\u00e4 .@neutral\n".encode()
    splits = load(tmp_path, "sentiment", {AGREE_66: test}, "paper")
    assert splits.test == [{"sentence": "M\u00e4kel\u00e4 .", "label": "neutral"}]


def test_phrasebank_with_letters_in_both_encodings_is_refused(tmp_path):
    test = "M\u00e4kel\u00e4 .@neutral\nSales in ".encode() + b"M\xe4kel\xe4 .@neutral\n"
    with pytest.raises(InputError, match=r"Sentences_66Agree.txt, line 2: not utf-8; save the"):
        load(tmp_path, "sentiment", {AGREE_66: test}, "paper")


def test_phrasebank_that_was_saved_again_as_utf_8_is_read_as_utf_8(tmp_path):
    test = "M\u00e4kel\u00e4 \u20ac 5 .@neutral\nSales rose .@positive\n".encode()
    splits = load(tmp_path, "sentiment", {AGREE_66: test}, "paper")
    assert [row["sentence"] for row in splits.test] == [
        "M\u00e4kel\u00e4 \u20ac 5 .",
        "Sales rose .",
    ]


def test_clean_keeps_the_first_of_repeated_sentences_and_drops_conflicting_ones(tmp_path):
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
        "34 rows have 31 different sentences, compared by letters and digits; dropped for "
        "conflicting labels: 1"
    )


def distinct_phrases() -> list[tuple[str, str]]:
    """Return 76 pairs (sentence, label) with different sentences."""
    counts = {"positive": 23, "neutral": 41, "negative": 12}
    return [
        (f"The {label} case no {i} .", label)
        for label, count in counts.items()
        for i in range(count)
    ]


def test_clean_splits_each_label_by_the_sha256_of_its_sentences(tmp_path):
    phrases = distinct_phrases()
    random.Random(1).shuffle(phrases)
    content = "\n".join("@".join(phrase) for phrase in phrases).encode()
    splits = load(tmp_path, "sentiment", {AGREE_50: content})
    expected = {"validation": set(), "test": set()}
    for label in ("negative", "neutral", "positive"):
        by_hash = sorted(
            hashlib.sha256(text.encode()).hexdigest() + text
            for text, other in phrases
            if other == label
        )
        expected["validation"] |= {item[64:] for item in by_hash[0::10]}
        expected["test"] |= {item[64:] for item in by_hash[1::10]}
    for name, texts in expected.items():
        assert {row["sentence"] for row in getattr(splits, name)} == texts
    # The labels have 12, 23 and 41 sentences. Every tenth of each, from the first: 2 + 3 + 5; from
    # the second: 2 + 3 + 4.
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [
        76 - 10 - 9,
        10,
        9,
    ]
    order = [text for text, _ in phrases]
    for rows in (splits.train, splits.validation, splits.test):
        positions = [order.index(row["sentence"]) for row in rows]
        assert positions == sorted(positions)


def test_paper_splits_all_rows_together_by_sha256(tmp_path):
    phrases = distinct_phrases()
    content = "\n".join("@".join(phrase) for phrase in phrases).encode()
    splits = load(tmp_path, "sentiment", {AGREE_50: content}, "paper")
    by_hash = sorted(hashlib.sha256(text.encode()).hexdigest() + text for text, _ in phrases)
    assert {row["sentence"] for row in splits.validation} == {item[64:] for item in by_hash[0::10]}
    assert len(splits.train) == 76 - 8


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_phrasebank_from_the_hub_has_the_rows_of_the_folder(tmp_path, hub_folder, protocol):
    write_zip(hub_folder, FILES["sentiment"])
    expected = load(tmp_path / "folder", "sentiment", protocol=protocol)
    assert load_splits(SENTIMENT, "hub", protocol) == expected


# ---- Bad files


BAD_FILES = [
    (AGREE_50, b"", NO_ROWS),
    (AGREE_50, b"Up .@positive\nDown .\n", ", line 2: 'Down .'; expected a sentence, @"),
    (AGREE_50, b"Up .@positive\n\nDown .@bad\n", f", line 3: unknown label 'bad'; {LABELS}"),
    (
        AGREE_50,
        b"By ir@firm.fi\nin Oulu .@neutral\n",
        f", line 1: unknown label 'firm.fi'; {LABELS}",
    ),
    (AGREE_66, b" @positive\n", f", line 1: {EMPTY.format(' ')}"),
    (AGREE_66, b"\xef\xbb\xbfUp@neutral\n\xe4", ", line 2: not utf-8; save the file as"),
]


@pytest.mark.parametrize("name, content, message", BAD_FILES)
def test_a_bad_file_is_refused_at_its_line(tmp_path, name, content, message):
    folder = write(tmp_path, FILES["sentiment"] | {name: content})
    assert refusal(TASKS["sentiment"], folder, "paper").startswith(f"{folder / name}{message}")


@pytest.mark.parametrize("damage", ["empty", "text", "member", "line"])
def test_a_bad_zip_is_refused(hub_folder, damage):
    path = write_zip(hub_folder, FILES["sentiment"])
    message = f"{path}: a broken zip file ("
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


def test_paper_needs_the_66_agree_file_and_clean_does_not(tmp_path):
    write(tmp_path, {AGREE_50: FILES["sentiment"][AGREE_50]})
    file = tmp_path / AGREE_66
    expected = (
        f"{file}: there is no such file, which is the test set of --protocol paper; add it, or use "
        "--protocol clean"
    )
    assert refusal(SENTIMENT, tmp_path, "paper") == expected
    assert load_splits(SENTIMENT, str(tmp_path)).protocol == "clean"
