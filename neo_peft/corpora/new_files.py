"""Files of new rows, which need no labels, for `predict --file`: tables (.csv, .tsv) and words in
columns (.conll, .iob, .iob2, .bio; for a tagging task .tsv too).

A record is the part of a file that is one row: a line of a table, which can have line ends in
quotes, or the lines of a sentence. Its number is that of its first line.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from neo_peft.corpora import columns, delimited, lines
from neo_peft.corpora.fields import Found, find_columns, find_inputs, given_columns
from neo_peft.corpora.word_rows import sentence_column
from neo_peft.corpora.words import split_words
from neo_peft.errors import InputError
from neo_peft.tasks import Task

COLUMNS = (".conll", ".iob", ".iob2", ".bio")
Record = tuple[int, bytes]  # the number of its first line, and its text


class NewFile:
    """A file of new rows.

    heading: the names of a table's columns; [] for words in columns.
    comments: the number of lines so far that were comments.
    notes: lines to print.
    """

    def __init__(self, path: Path):
        self.path, self.encoding = path, lines.encoding_of(path)
        self.heading: list[str] = []
        self.comments = 0
        self.notes = lines.encoding_notes(path, self.encoding)

    def records(self) -> Iterator[Record]:
        """Yield the records, without a heading and without the lines between them."""
        raise NotImplementedError

    def parse(self, record: bytes) -> tuple[dict, list, list[int] | None]:
        """Return the row of a record; its columns as they were given, the values of a table's line
        or a list with the columns of each word; and where each word starts in the row's text, None
        if it has no text. Raises ValueError for a wrong record."""
        raise NotImplementedError


def open_new(path: Path, task: Task, names: Sequence[str] | None) -> NewFile | None:
    """Return the file of new rows at a path; None if each of its lines is a text. `names` is the
    value of `--columns`."""
    suffix = path.suffix.lower()
    if task.is_tagging and suffix in (*COLUMNS, ".tsv"):
        return Words(path, names)
    return Table(path, task, names) if suffix in delimited.DELIMITERS else None


class Table(NewFile):
    """A .csv or .tsv file with a heading. For tags it has a column of texts, or of tokens."""

    def __init__(self, path: Path, task: Task, names: Sequence[str] | None):
        super().__init__(path)
        csv.field_size_limit(delimited.LONGEST)
        self.mark, self.quoting = delimited.find_marks(path, self.encoding)
        if self.quoting == csv.QUOTE_NONE:
            self.notes.append(f"{path.name}: {delimited.PLAIN_QUOTES}")
        number, text = next(self._numbered(), (0, ""))
        self.first, self.heading, self.indices = number, self._values(text), {}
        if not self.heading:
            return
        found = Found(f"{path}, line {number}", self.heading, text.strip())
        self.indices = find_inputs(found, task, names)
        self._refuse_words()
        given = given_columns(names, (*self.indices, task.fields[-1]))
        if all(given.get(field, "").isdecimal() for field in self.indices):
            self.first = 0  # no name shows that there is a heading
            self.heading = [f"column {index + 1}" for index in range(len(self.heading))]
            self.notes.append(
                f"{path.name}: columns are given by number, so its first line is a row"
            )

    def _refuse_words(self) -> None:
        """Raise InputError for a table with one word of a sentence in each row."""
        if "tokens" not in self.indices or sentence_column(self.heading) is None:
            return
        texts = (text for _, text in islice(self._numbered(), 1, delimited.SAMPLED))
        tokens = [self._values(text)[self.indices["tokens"]].split() for text in texts]
        if tokens and max(map(len, tokens)) < 2:
            raise InputError(
                f"{self.path}: each row has one word; write a .conll file, with one word per line, "
                "and a blank line after each sentence"
            )

    def records(self) -> Iterator[Record]:
        return ((number, text.encode()) for number, text in self._numbered() if number > self.first)

    def parse(self, record: bytes) -> tuple[dict, list, list[int] | None]:
        values = self._values(record.decode())
        if len(values) != len(self.heading):
            raise ValueError(
                f"{len(values)} columns in {self.mark.join(values)[:40]!r}; expected "
                f"{len(self.heading)}, as in the heading, separated by {self.mark!r}"
            )
        row = {name.strip(): value for name, value in zip(self.heading, values)}
        for field, index in self.indices.items():
            row.pop(self.heading[index].strip(), None)
            row[field] = values[index]
            if field == "tokens":
                row[field] = delimited.as_list(values[index])
            if wrong := lines.wrong_text(field, row[field]):
                raise ValueError(wrong)
        if "text" not in self.indices:
            return row, values, None
        starts, tokens = zip(*split_words(row["text"]), strict=True)
        return row | {"tokens": list(tokens)}, values, list(starts)

    def _numbered(self) -> Iterator[Record]:
        """Yield the number of the first line of each record, and its text."""
        taken: list[str] = []

        def take() -> Iterator[str]:
            for line in lines.stream_lines(self.path, self.encoding):
                taken.append(line)
                yield line

        for number, values in delimited.numbered(self.path, self._reader(take())):
            if "".join(values).strip() or len(values) > 1:
                yield number, "".join(taken)
            taken.clear()

    def _values(self, text: str) -> list[str]:
        return next(self._reader(io.StringIO(text, newline="")), [])

    def _reader(self, text: Iterator[str]):
        return csv.reader(text, delimiter=self.mark, quoting=self.quoting, strict=True)


class Words(NewFile):
    """A file with one word a line, in the first column, and a blank line after each sentence.

    If the first column has the numbers of the first sentence's words, the word is in the second
    column. `--columns tokens=2` names another one.
    """

    def __init__(self, path: Path, names: Sequence[str] | None):
        super().__init__(path)
        first = self._first_lines()
        self.heading_line, shown = 0, []
        if first and columns.is_heading(first[0][1]):
            self.heading_line, shown = first.pop(0)
        number, cells = first[0] if first else (self.heading_line, shown)
        self.width, self.index = len(cells), 0
        if len(cells) > 1:
            counted = columns.are_counted(first)
            given = given_columns(names, columns.FIELDS).get("tokens", str(1 + counted))
            shown = shown or [str(index) for index in range(1, len(cells) + 1)]
            found = Found(f"{path}, line {number}", shown, " ".join(cells))
            self.index = find_columns(found, ("tokens",), [f"tokens={given}"])["tokens"]

    def _first_lines(self) -> list[tuple[int, list[str]]]:
        """Return the numbers and the columns of the lines up to the end of the first sentence."""
        found = []
        for number, line in enumerate(lines.stream_lines(self.path, self.encoding), start=1):
            cells = columns.split_cells(line)
            if cells and not columns.can_be_mark(cells):
                found.append((number, cells))
            elif not cells and found:
                break
        return found

    def records(self) -> Iterator[Record]:
        start, taken = 0, []
        for number, line in enumerate(lines.stream_lines(self.path, self.encoding), start=1):
            cells = columns.split_cells(line)
            if number == self.heading_line:
                continue
            if self._is_comment(cells, first=not taken):
                self.comments += 1
                continue
            if cells and not cells[0].startswith(columns.DOCUMENT):
                start = start or number
                taken.append(line)
            elif taken:
                yield start, "".join(taken).encode()
                start, taken = 0, []
        if taken:
            yield start, "".join(taken).encode()

    def _is_comment(self, cells: list[str], first: bool) -> bool:
        """Return whether a line that starts with # is no word: it has not as many columns as the
        first word, or `first` comes before the words of a sentence and has a space after #."""
        if not cells or not cells[0].startswith("#"):
            return False
        return len(cells) != self.width or (first and cells[0] == "#")

    def parse(self, record: bytes) -> tuple[dict, list, list[int] | None]:
        words = [columns.split_cells(line) for line in io.StringIO(record.decode(), newline="")]
        for number, cells in enumerate(words, start=1):
            if len(cells) != self.width:
                raise ValueError(
                    f"word {number} has {len(cells)} columns, {' '.join(cells)[:40]!r}; expected "
                    f"{self.width}, as in the first line, separated by tabs or spaces"
                )
        tokens = [cells[self.index] for cells in words]
        if wrong := lines.wrong_text("tokens", tokens):
            raise ValueError(wrong)
        return {"tokens": tokens}, words, None
