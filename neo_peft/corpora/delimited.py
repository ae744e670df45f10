"""Tables of your own data as text: .csv and .tsv, with the delimiter, the quotes and the heading
found in the file.

They are not read through `datasets`, which fills a row that is too short and shifts one that is too
long, in silence, and cannot name the line.
"""

import ast
import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

from neo_peft.corpora import lines, word_rows
from neo_peft.corpora.checks import own_label, own_tags
from neo_peft.corpora.fields import Found, find_columns, given_columns
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request
from neo_peft.errors import InputError
from neo_peft.progress import no_progress
from neo_peft.tasks import Task

LONGEST = 2**24  # characters of a value; a quote that is not closed makes a longer one
PLAIN_QUOTES = "quotes are a part of the text"  # a note
SAMPLED = 50  # lines in which the delimiter is found
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # in the order in which they are tried


def read(path: Path, request: Request) -> FileRows:
    """Return the rows of a file, each with the number of its first line."""
    csv.field_size_limit(LONGEST)
    encoding = lines.encoding_of(path)
    notes = lines.encoding_notes(path, encoding)
    mark, quoting = find_marks(path, encoding)
    if quoting == csv.QUOTE_NONE:
        notes.append(f"{path.name}: {PLAIN_QUOTES}")
    records = partial(_records, path, encoding, mark, quoting)
    numbered = records(progress=request.progress)
    number, heading = next(numbered, (0, []))
    if not heading:
        return FileRows(str(path), (), {}, notes)
    fields = request.task.fields
    found = Found(f"{path}, line {number}", heading, mark.join(heading))
    indices = [*find_columns(found, fields, request.columns).values()]
    pick, names = itemgetter(*indices), [heading[index].strip() for index in indices]
    given = given_columns(request.columns, fields).values()
    if given and all(map(str.isdecimal, given)):
        labels = (pick(row)[-1] for _, row in islice(records(), 1, None))
        if pick(heading)[-1] in labels:
            numbered = chain([(number, heading)], numbered)
            names = [f"column {index + 1}" for index in indices]
        else:
            notes.append(f"{path.name}: its first line is a heading: no other row has its label")
    origin = {field: f'"{name}"' for field, name in zip(fields, names)}
    sentence = word_rows.sentence_column(heading) if request.task.is_tagging else None
    sample = (pick(row) for _, row in islice(records(), 1, SAMPLED))
    if sentence is not None and not any(word_rows.is_sentence(*cells) for cells in sample):
        rows = word_rows.join_words(str(path), numbered, sentence, indices)
        return FileRows(str(path), rows, origin, notes, word_lines=True)
    rows = lines.parse_items(path, _row_maker(request.task, names, indices), numbered)
    rows = word_rows.refuse_words(str(path), rows) if request.task.is_tagging else rows
    return FileRows(str(path), rows, origin, notes)


def find_marks(path: Path, encoding: str) -> tuple[str, int]:
    """Return the delimiter of a file, and how csv reads its quotes: as a part of the text in a file
    with tabs that cannot be read in another way."""
    sample = list(islice(lines.stream_lines(path, encoding), SAMPLED))
    mark = _delimiter(sample, DELIMITERS[path.suffix.lower()])
    quoted = mark != "\t" or _can_be_read(partial(_records, path, encoding, mark))
    return mark, csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _delimiter(sample: list[str], marks: str) -> str:
    """Return the first mark that splits all records into the same number of columns, at least two;
    else the one that splits the first line into most."""

    def widths(mark: str) -> list[int]:
        try:
            found = [len(row) for row in csv.reader(sample, delimiter=mark) if row]
        except csv.Error:
            return [0]
        return found[:-1] if len(sample) == SAMPLED else found  # the last one can be cut

    for mark in marks:
        if len({*widths(mark)}) == 1 and widths(mark)[0] > 1:
            return mark
    return max(marks, key=lambda mark: (widths(mark) or [0])[0])


def _records(
    path: Path, encoding: str, mark: str, quoting: int = csv.QUOTE_MINIMAL, progress=no_progress
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each record's first line, and its values. Blank lines are left out."""
    text = lines.stream_lines(path, encoding, progress)
    reader, width = csv.reader(text, delimiter=mark, quoting=quoting, strict=True), 0
    for number, values in numbered(path, reader):
        if len(values) > 1 or "".join(values).strip():
            width = width or len(values)
            if len(values) != width:
                raise InputError(
                    f"{path}, line {number}: {len(values)} columns in "
                    f"{mark.join(values)[:40]!r}; expected {width}, as in the first line, "
                    f"separated by {mark!r}"
                )
            yield number, values


def numbered(path: Path, reader: "csv.Reader") -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each record's first line, and its values; [] for a blank line."""
    number = 1
    try:
        for values in reader:
            yield number, values
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {number}: a wrong quote ({error}); a value with quotes has quotes "
            'around it, and each one inside it is doubled: "a ""word"" here"'
        ) from error


def _can_be_read(records: Callable[[], Iterator]) -> bool:
    try:
        for _ in records():
            pass
    except InputError:
        return False
    return True


def _row_maker(task: Task, names: list[str], indices: list[int]) -> Callable[[list[str]], dict]:
    """Return a function from the values of a record to the row.

    names, indices: the columns of the task's fields. Tokens and tags are lists, as Python or JSON
    writes them, or are separated by spaces.
    """
    *texts, (label_field, label_index) = zip(task.fields, indices)
    labels = {}  # of the values so far: a million rows have few of them

    def make(values: list[str]) -> dict:
        row = {}
        for field, index in texts:
            text = row[field] = values[index]
            if not text.strip():
                wrong = lines.wrong_text(names[indices.index(index)], text)
                raise ValueError(f"{wrong}; correct the row, or remove it")
        value = values[label_index]
        if value not in labels:
            labels[value] = own_label(value, names[-1])
        row[label_field] = labels[value]
        return row

    def make_tagged(values: list[str]) -> dict:
        tokens, tags = (as_list(values[index]) for index in indices)
        if not tokens or len(tokens) != len(tags):
            raise ValueError(
                f"{len(tokens)} tokens and {len(tags)} tags in {values[indices[0]][:40]!r}; give "
                "one tag for each token"
            )
        if wrong := lines.wrong_text(names[0], tokens):
            raise ValueError(f"{wrong}; correct the row, or remove it")
        return {"tokens": tokens, "tags": own_tags(tags)}

    return make_tagged if task.is_tagging else make


def as_list(value: str) -> list[str]:
    if not value.strip().startswith("["):
        return value.split()
    try:
        # Without a comma between them, as numpy prints them, Python would join two texts.
        joined = re.search(r"""(['"])\s+\1""", value)
        found = None if joined else ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{value[:40]!r} is no list such as ['a', 'word', 'each'], with commas")
    return found
