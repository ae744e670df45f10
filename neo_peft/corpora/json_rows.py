"""Rows of your own data in JSON: one object a line (.jsonl), or a list of objects (.json)."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from neo_peft.corpora import lines, spans
from neo_peft.corpora.checks import own_label, own_tags
from neo_peft.corpora.fields import Found, find_columns
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request
from neo_peft.errors import InputError
from neo_peft.tasks import Task


def read(path: Path, request: Request) -> FileRows:
    """Return the rows of a .jsonl or .json file. For a tagging task a row has tokens and tags, or a
    text with spans; the first row decides."""
    items, unit = ((number, line) for number, line in lines.read_lines(path) if line), "line"
    if path.suffix.lower() == ".json" and (found := _list_of_rows(path)) is not None:
        items, unit = enumerate(map(json.dumps, found), start=1), "row"
    return rows_of(str(path), items, request, unit)


def _list_of_rows(path: Path) -> list | None:
    """Return the rows of a file that is one list; None if each line is a row of its own."""
    text = "\n".join(line for _, line in lines.read_lines(path)).strip()
    if text.startswith("{") and "\n" in text and _is_json(text):
        raise InputError(
            f"{path}: one JSON object of several lines, {text[:40]!r}; expected a list of objects, "
            "or one object a line"
        )
    if not text.startswith("["):
        return None
    try:
        found = lines.parse_json(text)
    except ValueError as error:
        if all(line.startswith("[") for line in text.split("\n") if line):
            return None  # spaCy's rows, [text, {"entities": …}], one a line
        raise InputError(f"{path}: {error}") from error
    return None if found and isinstance(found[0], str) else found


def _is_json(text: str) -> bool:
    try:
        lines.parse_json(text)
    except ValueError:
        return False
    return True


def rows_of(
    name: str, items: Iterator[tuple[int, str]], request: Request, unit: str = "line"
) -> FileRows:
    """Return the rows of numbered JSON texts."""
    task, columns = request.task, request.columns
    first = next(items, None)
    if first is None:
        return FileRows(name, (), {}, [], unit)
    items = chain([first], items)
    try:
        value = lines.parse_json(first[1])
    except ValueError:
        value = None  # it is refused below, with its line number
    keys = list(value) if isinstance(value, dict) else []
    found = Found(f"{name}, {unit} {first[0]}", keys, first[1])
    if task.is_tagging and spans.has_spans(value, columns):
        return spans.rows_of(name, items, value, found, request, unit)
    names = dict.fromkeys(task.fields)
    if columns or not {*keys} <= {*task.fields}:
        names = {field: keys[i] for field, i in find_columns(found, task.fields, columns).items()}
    names = {field: column or field for field, column in names.items()}
    rows = lines.parse_items(name, partial(parse_row, task, names=names), items, unit)
    return FileRows(name, rows, {field: f'"{key}"' for field, key in names.items()}, [], unit)


def parse_row(task: Task, line: str, names: dict[str, str] | None = None) -> dict:
    """Return the row of a JSON object; any label is allowed. `names` has the object's name of each
    field, if they differ."""
    names = names or dict(zip(task.fields, task.fields))
    found, column = parse_object(line, task, names), names[task.fields[-1]]
    row = {field: found[names[field]] for field in task.fields[:-1]}
    if column not in found:
        raise ValueError(f"{line[:40]!r}; the field {column!r} is missing")
    value = found[column]
    if not task.is_tagging:
        return row | {task.fields[-1]: own_label(value, column)}
    if not isinstance(value, list) or len(value) != len(row["tokens"]):
        raise ValueError(
            f"{line[:40]!r}; expected in {column!r} a list with one tag for each token"
        )
    return row | {task.fields[-1]: own_tags(value)}


def parse_object(text: str, task: Task, names: dict[str, str] | None = None) -> dict:
    """Return a JSON object that has the fields of the task's rows. The label and other fields are
    not checked. `names` has the object's names of the fields, if they differ."""
    row = lines.parse_json(text)
    expected = '["a", "word", "each"]' if task.is_tagging else '"a sentence"'
    for field in task.fields[:-1]:
        field = names[field] if names else field
        value = row.get(field) if isinstance(row, dict) else None
        right_type = bool(value) and isinstance(value, list if task.is_tagging else str)
        wrong = lines.wrong_text(field, value) if right_type else repr(text[:40])
        if wrong:
            raise ValueError(f"{wrong}; expected a JSON object with {field!r}: {expected}")
    return row
