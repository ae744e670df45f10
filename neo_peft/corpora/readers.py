"""How each kind of file is read into raw rows, with a line-numbered error for whatever is no row.

JNLPBA's IOB2, PhraseBank's `sentence@label`, GLUE's tables, the hub's JSON lines and parquet, and
the three plain formats of the bundled sample. A user's own rows are in own_rows.py; sources.py says
where the files stand.
"""

import codecs
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.tasks import Task

AnyPath = Path | zipfile.Path  # a member of a zip is read like a file
LARGEST_MEMBER = 2**24  # bytes of a file in a zip: PhraseBank's own have under a million
MRPC_QUALITY = {"0": "not equivalent", "1": "equivalent"}


def read_rows(
    path: AnyPath, parse: Callable, allowed: Collection, items: Iterable | None = None
) -> list:
    """Parse a file's lines, or the numbered items given in their place; what is no row is left
    out."""
    return [row for row in _parse(path, parse, allowed, items or lines_of(path)) if row]


def _parse(path: AnyPath, parse: Callable, allowed: Collection, items: Iterable) -> list:
    """Parse numbered items, giving None for a blank one. `parse` raises ValueError for what is
    wrong."""
    rows = []
    for number, item in items:
        try:
            rows.append(parse(item, allowed) if item else None)
        except ValueError as error:
            unit = "row" if path.suffix == ".parquet" else "line"
            raise InputError(f"{path}, {unit} {number}: {error}") from error
    if not any(rows):
        raise InputError(
            f"{path}: the file holds no rows; fill it, or put the data's own file there"
        )
    return rows


def lines_of(path: AnyPath, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Read a file's lines, numbered from 1, without their ends and without a byte order mark."""
    try:
        # a pipe would be waited for, and a device has no end
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no plain file; put the file itself there")
        raw = path.read_bytes() if isinstance(path, Path) else _unpack(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file; put it beside the task's other files"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; put the file itself there") from error
    if raw.startswith(codecs.BOM_UTF8):
        raw, encoding = raw.removeprefix(codecs.BOM_UTF8), "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {number}: not {encoding}; save the file as {encoding}"
        ) from error
    # Not splitlines(): it also splits at characters that stand inside sentences, such as Latin-1's
    # 0x85.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        yield number, line if line.strip(" ") else ""


def _unpack(path: zipfile.Path) -> bytes:
    """Unpack a member of a zip, within bounds: a few bytes may unpack to gigabytes, whatever the
    zip says they do."""
    with path.open("rb") as file:
        raw = file.read(LARGEST_MEMBER + 1)
    if len(raw) > LARGEST_MEMBER:
        raise InputError(
            f"{path} unpacks to more than {LARGEST_MEMBER:,} bytes; it is not the data's own zip"
        )
    return raw


def _two(parts: tuple[str, str, str], expected: str) -> tuple[str, str]:
    """Take what stands before and behind a separator from `str.partition`."""
    before, separator, behind = parts
    if not separator:
        raise ValueError(f"{(before + behind)[:40]!r}; expected {expected}")
    return before, behind


def one_of(allowed: Collection, label: str) -> str:
    if label not in allowed:
        raise ValueError(f"unknown label {label[:40]!r}; expected one of {', '.join(allowed)}")
    return label


def text_of(text: object) -> str:
    if not is_text(text):
        raise ValueError("an empty token or sentence; fill it, or remove what it belongs to")
    return text


def is_text(text: object) -> bool:
    """Say whether it is text that is not blank, and that can be written: half of a surrogate pair,
    as JSON may hold one, cannot."""
    return (
        isinstance(text, str)
        and bool(text.strip())
        and text == text.encode("utf-8", "ignore").decode()
    )


def read_iob2(task: Task, path: Path) -> list[dict]:
    """Read JNLPBA's sentences: the words between blank lines, or lines that number an abstract."""
    words = _parse(path, _iob2_word, task.labels, lines_of(path))
    sentences = [zip(*run, strict=True) for is_word, run in groupby(words, key=bool) if is_word]
    return [{"tokens": list(tokens), "tags": list(tags)} for tokens, tags in sentences]


def _iob2_word(line: str, labels: Collection) -> tuple[str, str] | None:
    """Parse JNLPBA: a token, a tab and its tag."""
    if line.startswith("###MEDLINE:"):
        return None
    token, tag = _two(line.partition("\t"), "a token, a tab and its tag")
    return text_of(token), one_of(labels, tag)


def read_phrasebank(task: Task, path: AnyPath) -> list[dict]:
    return read_rows(path, _phrasebank_row, task.labels, lines_of(path, "latin-1"))


def _phrasebank_row(line: str, labels: Collection) -> dict:
    """Parse PhraseBank: a sentence, @ and its label."""
    # the last @ of several
    sentence, label = _two(line.rpartition("@"), "a sentence, @ and its label")
    return {"sentence": text_of(sentence), "label": one_of(labels, label)}


def mrpc_pair(line: str, qualities: dict[str, str]) -> tuple[tuple[str, str], dict] | None:
    """Parse MRPC: a pair's ids, and its row. The heading is no row."""
    # Not by the csv module: a quote is text here, and there an open one swallows the lines up to
    # the next.
    columns = line.split("\t")
    if len(columns) != 5:
        expected = "five, split by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"
        raise ValueError(f"{len(columns)} columns in {line[:40]!r}; expected {expected}")
    quality, first_id, second_id, *sentences = columns
    if quality == "Quality":
        return None
    return (first_id, second_id), glue_row(
        ("sentence1", "sentence2", "label"), (*sentences, quality), qualities
    )


def mrpc_ids(line: str, known: Collection) -> tuple[str, str]:
    """Parse MRPC's list of validation pairs: the two ids of a pair of the train file."""
    ids = _two(line.partition("\t"), "two ids split by a tab")
    if ids not in known:
        raise ValueError(
            f"{line[:40]!r} is no pair of the train file; use the list that comes with it"
        )
    return ids


def glue_row(fields: tuple[str, ...], columns: tuple, names: dict[str, str]) -> dict:
    """Parse a row of GLUE: its sentences, then its label, whose number `names` names."""
    *sentences, label = columns
    label = names[one_of(names, str(label))]
    return dict(zip(fields, (*map(text_of, sentences), label), strict=True))


def read_tsv(task: Task, path: Path) -> list[dict]:
    """Read one of GLUE's TSV files, whose labels are numbers or names. A quote in it is text."""
    lines, columns = lines_of(path), task.glue.columns
    if isinstance(columns[0], str):
        heading = next(lines)[1].split("\t")
        if lost := [name for name in columns if name not in heading]:
            raise InputError(
                f"{path}: its heading has no column {', '.join(lost)}, which GLUE's own file has"
            )
        columns = [heading.index(name) for name in columns]
    names = {str(number): label for number, label in enumerate(task.labels)}
    names |= {label.replace(" ", "_"): label for label in task.labels}

    def parse(line: str, names: dict[str, str]) -> dict | None:
        values = line.split("\t")
        # QQP's own file has lines that break off; what reads GLUE elsewhere leaves them out, too.
        return (
            glue_row(task.fields, [values[i] for i in columns], names)
            if len(values) > max(columns)
            else None
        )

    return read_rows(path, parse, names, lines)


def parquet_rows(path: Path, fields: tuple[str, ...]) -> Iterable[tuple[int, tuple]]:
    """Read the columns of GLUE's parquet that hold a task's fields, row by row, numbered from 1."""
    import datasets

    datasets.disable_progress_bars()
    # bad input is one line, and that one is ours
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        # A cache that is thrown away: the usual one would keep a second copy of what the hub's
        # cache holds.
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        columns = [table[name] for name in fields]
    except Exception as error:  # datasets, pyarrow and fsspec each raise their own
        expected = (
            f"expected parquet with {', '.join(fields)}; delete it, so that it is fetched again"
        )
        raise InputError(f"{path}: {type(error).__name__}; {expected}") from error
    return enumerate(zip(*columns, strict=True), start=1)


def read_tag_names(task: Task, path: Path) -> dict[int, str]:
    """Read which tag each number of tner's files stands for: the numbers are its own, the names
    ours too."""
    try:
        numbers = json.loads("\n".join(line for _, line in lines_of(path)))
        names = {number: name for name, number in numbers.items()}
        if set(numbers) != set(task.labels) or len(names) != len(numbers):
            raise ValueError("other tags, or one number for two of them")
        return names
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a JSON number for each of {', '.join(task.labels)}"
        ) from error


def tner_row(line: str, tag_names: dict[int, str]) -> dict:
    """Parse tner's JNLPBA: a JSON object with tokens and numbered tags."""
    try:
        row = json.loads(line)
        words = zip(row["tokens"], row["tags"], strict=True)
        tokens, tags = zip(*((text_of(token), tag_names[tag]) for token, tag in words), strict=True)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        expected = (
            '{"tokens": ["..."], "tags": [0]}, as many tags as tokens, numbered as in label.json'
        )
        raise ValueError(f"{line[:40]!r}; expected {expected}") from error
    return {"tokens": list(tokens), "tags": list(tags)}


def marked_row(line: str, labels: Collection) -> dict:
    """Parse the sample's tagged sentences: `[protein NF-kappa B] binds the [DNA IL-2 promoter]
    .`"""
    pieces = list(re.finditer(r"\[(\w+) ([^][]+)\]|[^][ ]+", line))
    if " ".join(piece[0] for piece in pieces) != line:
        expected = "words split by single spaces, and marks such as [protein NF-kappa B]"
        raise ValueError(f"a stray bracket or space in {line[:40]!r}; expected {expected}")
    tokens, tags = [], []
    for piece in pieces:
        kind, words = piece[1], (piece[2] or piece[0]).split(" ")
        tokens += [text_of(word) for word in words]
        tags += [one_of(labels, f"B-{kind}"), *[f"I-{kind}"] * (len(words) - 1)] if kind else ["O"]
    return {"tokens": tokens, "tags": tags}


def labelled_row(line: str, labels: Collection) -> dict:
    """Parse the sample's labelled sentences: a label, a tab and a sentence."""
    label, sentence = _two(line.partition("\t"), "a label, a tab and a sentence")
    return {"sentence": text_of(sentence), "label": one_of(labels, label)}


def block_row(lines: list[str], labels: Collection) -> dict:
    """Parse the sample's pairs: three lines, the label and the two sentences."""
    if len(lines) != 3:
        raise ValueError(
            f"a block of {len(lines)} lines; expected a label, two sentences, a blank line"
        )
    return {"sentence1": lines[1], "sentence2": lines[2], "label": one_of(labels, lines[0])}


def blocks_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the runs of lines between blank lines, each with the number of its first."""
    for blank, block in groupby(lines_of(path), key=lambda item: not item[1]):
        if not blank:
            numbers, lines = zip(*block, strict=True)
            yield numbers[0], list(lines)
