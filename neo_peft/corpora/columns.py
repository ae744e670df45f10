"""Tagged words in columns, one word a line, as in CoNLL's files: .conll, .iob, .iob2, .bio, .txt,
.tsv. A blank line ends a sentence.

Columns are separated by tabs, or by spaces in a line without tabs. The token is in the first one
and the tag in the last one, unless `--columns` names others, such as tokens=2,tags=3.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from neo_peft.corpora import lines
from neo_peft.corpora.checks import own_tags
from neo_peft.corpora.fields import USUAL, Found, find_columns, given_columns
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.schemes import MARKED
from neo_peft.corpora.splits import Request

DOCUMENT = "-DOCSTART-"  # starts a line between two documents
FIELDS = ("tokens", "tags")

Line = tuple[int, list[str]]  # the number of a line and its columns; [] for a blank line


def read(path: Path, request: Request) -> FileRows:
    """Return the sentences of a file, each with the number of its first word's line."""
    encoding, notes = lines.encoding_of(path), []
    numbered = enumerate(lines.stream_lines(path, encoding, request.progress), start=1)
    table = [(number, split_cells(line)) for number, line in numbered]
    words = [(number, cells) for number, cells in table if cells and not can_be_mark(cells)]
    if not words:
        return FileRows(str(path), (), {}, notes)
    heading = is_heading(words[0][1])
    indices = _find_columns(path, words, heading, request.columns)
    notes += lines.encoding_notes(path, encoding)
    kept = list(_without_marks(table, words[heading:], indices, notes, path.name))
    if heading:
        notes.append(f"{path.name}: its first line has the names of the columns")
    parse = partial(_parse_word, width=len(words[0][1]), indices=indices)
    parsed = lines.parse_items(path, lambda cells: parse(cells) if cells else None, kept)
    origin = {field: f"column {index + 1}" for field, index in zip(FIELDS, indices)}
    return FileRows(str(path), _sentences(parsed), origin, notes, word_lines=True)


def split_cells(line: str) -> list[str]:
    """Return the columns of a line; [] for a blank line, which can have spaces and tabs."""
    line = line.strip(" \r\n") if "\t" in line else line.strip("\r\n ")
    if not line.strip(" \t"):
        return []
    return line.split("\t") if "\t" in line else re.split(" +", line)


def can_be_mark(cells: list[str]) -> bool:
    """Return whether a line can be a comment, or is one between documents."""
    return cells[0].startswith(("#", DOCUMENT))


def is_heading(cells: list[str]) -> bool:
    """Return whether a line has the names of the columns in place of a word and its tag."""
    names = [name.strip().lower() for name in cells]
    return names[0] in (*USUAL["tokens"], "text", "id") and names[-1] in (*USUAL["tags"], "label")


def _find_columns(
    path: Path, words: Sequence[Line], heading: bool, columns: Sequence[str] | None
) -> tuple[int, int]:
    """Return the indices of the token's and the tag's column."""
    number, first = words[0]
    names = first if heading else [str(i) for i in range(1, len(first) + 1)]
    counted = len(first) > 2 and are_counted(words[heading:])
    usual = {"tokens": str(1 + counted), "tags": str(len(first))}
    chosen = usual | given_columns(columns, FIELDS)
    found = Found(f"{path}, line {number}", names, " ".join(first))
    if len(first) == 1:  # one column cannot be both; each word's line is refused
        return 0, 0
    indices = find_columns(found, FIELDS, [f"{key}={value}" for key, value in chosen.items()])
    return indices["tokens"], indices["tags"]


def are_counted(words: Sequence[Line]) -> bool:
    """Return whether the first column has the number of each word in its sentence, from 1 or 0."""
    before, number_before = None, None
    for number, cells in words:
        if not (cells[0].isascii() and cells[0].isdecimal()):
            return False
        count = int(cells[0][:9])
        if count not in (
            (0, 1) if before is None or number != number_before + 1 else (before + 1,)
        ):
            return False
        before, number_before = count, number
    return True


def _without_marks(
    table: Sequence[Line], words: Sequence[Line], indices: tuple[int, int], notes: list, name: str
) -> Iterator[Line]:
    """Yield the lines of words and the blank lines, and add notes on the others.

    A line that starts with # is a word if it has as many columns as the others, and a tag: one that
    others have, or a marked one such as B-drug. A line between documents becomes a blank one.
    """
    width = len(words[0][1]) if words else 0
    tags = {cells[indices[1]] for _, cells in words if len(cells) > indices[1]}
    counts = {"#": 0, DOCUMENT: 0}
    start = words[0][0] if words else 0
    for number, cells in table:
        is_mark = bool(cells) and can_be_mark(cells)
        if is_mark and cells[0].startswith("#"):
            tag = cells[indices[1]] if len(cells) == width else ""
            is_mark = tag != "O" and tag not in tags and not MARKED.fullmatch(tag)
        if is_mark:
            is_comment = cells[0].startswith("#")
            counts["#" if is_comment else DOCUMENT] += 1
            if not is_comment:
                yield number, []
        elif not cells or number >= start or cells[0].startswith("#"):
            yield number, cells
    if counts["#"]:
        notes.append(f"{name}: {counts['#']} lines that start with # are comments; left out")
    if counts[DOCUMENT]:
        notes.append(f"{name}: {counts[DOCUMENT]} {DOCUMENT} lines are not sentences; left out")


def _parse_word(cells: list[str], width: int, indices: tuple[int, int]) -> tuple[str, str]:
    """Return the token and the tag of a line."""
    if len(cells) != width or width < 2:
        wanted = f"{width}, as in the first one" if width > 1 else "a token and its tag"
        raise ValueError(
            f"{len(cells)} columns in {' '.join(cells)[:40]!r}; expected {wanted}, separated by "
            "tabs or spaces"
        )
    return lines.check_text(cells[indices[0]]), own_tags([cells[indices[1]]])[0]


def _sentences(words: Iterator[tuple[int, tuple | None]]) -> Iterator[tuple[int, dict]]:
    """Yield the number of each sentence's first line, and its row."""
    for is_word, sentence in groupby(words, key=lambda item: item[1] is not None):
        if is_word:
            numbers, pairs = zip(*sentence, strict=True)
            tokens, tags = zip(*pairs, strict=True)
            yield numbers[0], {"tokens": list(tokens), "tags": list(tags)}
