"""CSV and TSV: delimiters, quotes, headings, encodings; hostile files with their one line."""

import csv
import io

import pytest
from refusals import run, shown

from neo_peft.corpora import lines
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

CLASSIFICATION = TASKS["classification"]
DEV = "text,label\nx,good\ny,bad\n"
ROWS = [('He said "no", loudly', "good"), ("two\nlines", "bad"), ("a;b|c\td", "good")]


def load(folder, content: str | bytes, name="train.csv", **more):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "dev.csv").write_text(DEV)
    splits = load_splits(CLASSIFICATION, str(folder), **more)
    return [(row["sentence"], row["label"]) for row in splits.train], splits


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_each_delimiter_is_found(tmp_path, mark, suffix, quoting):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, quoting=quoting)
    writer.writerows([("id", "Text ", "Label"), *((i, *row) for i, row in enumerate(ROWS))])
    rows, splits = load(tmp_path, text.getvalue(), f"train.{suffix}")
    assert rows == ROWS
    assert (
        splits.read[0]
        == f'train.{suffix}: 3 rows; text from "Text", label from "Label" (bad, good)'
    )


def test_quotes_that_are_no_quoting_are_text_in_a_file_with_tabs(tmp_path):
    text = 'text\tlabel\n"no" he said\tgood\nan inch is 1"\tbad\n"open\tbad\n'
    rows, splits = load(tmp_path, text, "train.tsv")
    assert rows == [('"no" he said', "good"), ('an inch is 1"', "bad"), ('"open', "bad")]
    assert splits.notes[0] == "train.tsv: quotes are a part of the text"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_line_ends_and_encodings(tmp_path, end, encoding):
    text = end.join(["text,label", "größer,good", '"a ""b""",bad', "", "NA,bad", "null,good"])
    rows, splits = load(tmp_path, text.encode(encoding))
    assert rows == [("größer", "good"), ('a "b"', "bad"), ("NA", "bad"), ("null", "good")]
    note = "train.csv: not utf-8, so it was read as Latin-1"
    assert (note in splits.notes) == (encoding == "latin-1")


def test_a_letter_that_is_cut_off_where_a_block_ends_is_not_utf_8(tmp_path, monkeypatch):
    content = b"text,label\na,b\nc,\xc3"
    monkeypatch.setattr(lines, "BLOCK", len(content))
    rows, _ = load(tmp_path, content, labels=("b", "\xc3", "good", "bad"))
    assert rows == [("a", "b"), ("c", "\xc3")]


def test_columns_by_number_without_a_heading(tmp_path):
    columns = ("text=2", "label=1")
    (tmp_path / "own.csv").write_text(
        "".join(f"{'good' if i % 2 else 'bad'},a{i}\n" for i in range(40))
    )
    splits = load_splits(CLASSIFICATION, str(tmp_path / "own.csv"), columns=columns)
    assert splits.read == (
        'own.csv: 40 rows; text from "column 2", label from "column 1" (bad, good)',
    )
    (tmp_path / "own.csv").write_text(
        "stars,body\n" + "".join(f"{i % 2},a{i}\n" for i in range(40))
    )
    splits = load_splits(CLASSIFICATION, str(tmp_path / "own.csv"), columns=columns)
    assert splits.read == ('own.csv: 40 rows; text from "body", label from "stars" (0, 1)',)
    assert splits.notes[0] == "own.csv: its first line is a heading: no other row has its label"


def tagged(folder, text: str, **more):
    (folder / "train.csv").write_text(text)
    (folder / "dev.csv").write_text("tokens,tags\na b,B-PER O\n\"['c']\",['B-LOC']\n")
    splits = load_splits(TASKS["tagging"], str(folder), **more)
    return [(row["tokens"], row["tags"]) for row in splits.train], splits


@pytest.mark.parametrize("repeated", [False, True])
def test_a_table_with_a_word_in_each_row_is_joined_to_sentences(tmp_path, repeated):
    second = "Sentence: 1" if repeated else ""
    text = f"Sentence #,Word,POS,Tag\nSentence: 1,Bonn,NNP,I-LOC\n{second},[ is,x,O\n"
    rows, splits = tagged(tmp_path, text + "Sentence: 2,Eve,NNP,I-PER\n")
    assert rows == [(["Bonn", "[ is"], ["B-LOC", "O"]), (["Eve"], ["B-PER"])]
    assert splits.read[0] == (
        'train.csv: 2 rows; tokens from "Word", tags from "Tag" (LOC, PER; tags in IOB1, converted '
        "to BIO)"
    )
    with pytest.raises(InputError, match="train.csv, line 3: tag 2 is 'E-PER'; expected 'O'"):
        tagged(tmp_path, text.replace("O\n", "E-PER\n"))


def test_a_table_with_a_word_in_each_row_needs_a_column_that_numbers_sentences(tmp_path):
    expected = "train.csv: each row has one word, and no column numbers the sentences; add one cal"
    with pytest.raises(InputError, match=expected):
        tagged(tmp_path, "word,tag\nBonn,B-LOC\nis,O\n")


LONG = "x" * (2**24 + 2)
MANY = ",".join(f"c{i}" for i in range(10_000))
EXPECTED = (
    "expected columns with the usual names: text (sentence, text, content, review); label (label, "
    "labels, category, sentiment, class); or name them, or give their numbers: --columns "
    "text=NAME,label=NAME"
)
HOSTILE = {
    "empty": (b"", ": the file has no rows; add rows, or use the original file"),
    "a heading alone": (
        b"text,label\n",
        ": the file has no rows; add rows, or use the original file",
    ),
    "short": (
        b"text,label\na,b\nc\n",
        ", line 3: 1 columns in 'c'; expected 2, as in the first line, separated by ','",
    ),
    "long, after a value of two lines": (
        b'text,label\n"a\nb",c\nd,e,f\n',
        ", line 4: 3 columns in 'd,e,f'; expected 2, as in the first line, separated by ','",
    ),
    "an open quote": (
        b'text,label\na,b\n"c,d\ne,f\n',
        ", line 3: a wrong quote (unexpected end of data); a value with quotes has quotes around "
        'it, and each one inside it is doubled: "a ""word"" here"',
    ),
    "text after a quote": (b'text,label\n"a" b,c\n', ", line 2: a wrong quote ('"),
    "a huge value": (
        f"text,label\n{LONG},b\n".encode(),
        ", line 2: a wrong quote (field larger than field limit (16777216)); a value",
    ),
    "NUL": (
        b"text,label\na,b\nc\0,d\n",
        ", line 3: a NUL byte, so it is not a line of text; save the file as utf-8 text",
    ),
    "UTF-16": ("text,label\na,b\n".encode("utf-16"), " is a file in UTF-16; save it as utf-8"),
    "two encodings": (
        "text,label\nä,b\n".encode() + "ä,b\n".encode("latin-1"),
        ", line 3: not utf-8; save the file as utf-8",
    ),
    "10,000 columns": (
        f"{MANY}\n{MANY}\n".encode(),
        ", line 1: no column is the text; the columns are c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, "
        f"c10, c11, …; its first line is {MANY[:80]!r}; {EXPECTED}",
    ),
    "two columns for the text": (
        b"review,content,label\na,b,c\n",
        ", line 1: the columns 'review' and 'content' can each be the text; the columns are "
        f"review, content, label; its first line is 'review,content,label'; {EXPECTED}",
    ),
    "a column twice": (
        b"text,text,label\na,b,c\n",
        ", line 1: the columns 'text' and 'text' can each be the text; the columns are text",
    ),
    "blank text": (
        b"text,label\na,b\n  ,c\n",
        ", line 3: 'text' is ' ', empty or not valid text; correct the row, or remove it",
    ),
    "no label": (b"text,label\na,b\nc,\n", ", line 3: the label is ''; expected in 'label' a text"),
    "-100": (
        b"text,label\na,b\nc,-100\n",
        ", line 3: the label is -100, which marks a row without",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, capfd, case):
    content, message = HOSTILE[case]
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    status = run(f"train --task classification --method lora --data {path}")
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    line = shown(err)
    assert line.count("\n") == 1 and line.startswith(f"error: {path}{message}")


def test_10_000_columns_are_read_where_two_are_known(tmp_path):
    values = ",".join(["v"] * 10_000)
    rows, _ = load(tmp_path, f"{MANY},text,label\n{values},a,good\n{values},b,bad\n")
    assert rows == [("a", "good"), ("b", "bad")]


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            "text=nowhere",
            "--columns names 'nowhere' for the text, and there is no such column; the "
            "columns are text, label",
        ),
        ("text=label", "one column cannot be both the text and the label"),
        (
            "tokens=text",
            "--columns tokens=text: tokens is no field of this task's rows; the fields "
            "are text, label",
        ),
        ("text=text,sentence=label", "--columns sentence=label: sentence is there twice"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises(InputError) as refused:
        load(tmp_path, "text,label\na,good\n", columns=tuple(columns.split(",")))
    assert message in str(refused.value)


def test_a_flag_that_names_no_column_is_refused(tmp_path, capfd):
    (tmp_path / "own.csv").write_text(DEV)
    command = f"train --task classification --method lora --data {tmp_path / 'own.csv'}"
    for columns in ("text", "text=", "=a", "text=a,b"):
        assert run(f"{command} --columns {columns}") == 2
        assert "is not FIELD=COLUMN, as in text=body,label=stars" in capfd.readouterr().err
    assert run("train --task ner --method lora --columns tokens=1") == 2
    assert "--columns is only for your own rows; the columns of ner" in capfd.readouterr().err


def test_a_number_is_a_place_also_where_the_first_line_has_that_number(tmp_path):
    """A file without a heading, whose first row has the label 3."""
    path = tmp_path / "news.csv"
    rows = [f'"{1 + i % 3}","Title {i}","Text {i} ."' for i in (2, *range(60))]
    path.write_text("\n".join(rows))
    splits = load_splits(TASKS["classification"], str(path), columns=("text=3", "label=1"))
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 61
    assert {row["sentence"][:4] for row in splits.train} == {"Text"}
    assert splits.labels == ("1", "2", "3")
