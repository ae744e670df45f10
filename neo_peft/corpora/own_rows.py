"""Your own labelled data: a folder of files with one JSON object a line."""

import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from neo_peft.corpora import lines
from neo_peft.corpora.folders import find_file, unread_note
from neo_peft.corpora.splits import Request, Splits, split_off_validation
from neo_peft.errors import InputError
from neo_peft.tasks import Task, is_tag, tags_of

SUFFIX = ".jsonl"
TRAIN = "train" + SUFFIX
NO_LABEL = "-100"  # what other programs write for a row or a word without a label


def load(request: Request) -> Splits:
    """Load train.jsonl, and the files of validation and test if they exist.

    The labels are `request.labels`, or those of train. Raises InputError, with the file and the
    line, for a row that has another label. Without a validation file, a tenth of train becomes
    validation. Without a test file, test is None. If only one split is needed, the files of the
    others are not read.
    """
    task, folder = request.task, Path(request.data)
    parse = partial(parse_row, task)
    # A model that is scored has its labels, in `task`. Training takes them from train.
    labels = request.labels or (task.labels if request.split else None)
    labels = task.own_labels(labels) if labels else None
    wanted = request.wants("train", "validation")
    validation_file = find_file(folder, "validation", SUFFIX) if wanted else None
    split_train = wanted and not validation_file  # validation is a tenth of train
    test_file = find_file(folder, "test", SUFFIX)

    train, validation, test = [], [], [] if test_file else None
    if split_train or request.wants("train") or not labels:
        train = lines.read_rows(folder / TRAIN, parse, labels)
        labels = labels or labels_in(task, train)
    if len(labels) < 2:
        raise InputError(
            f"{folder / TRAIN}: every label is {labels[0]}; expected at least two different labels"
        )
    if validation_file and request.wants("validation"):
        validation = lines.read_rows(validation_file, parse, labels)
    if test_file and request.wants("test"):
        test = lines.read_rows(test_file, parse, labels)
    notes = tuple(filter(None, [unread_note(folder, SUFFIX)]))
    splits = Splits(train, validation, test, notes=notes, labels=labels)
    return split_off_validation(request, splits) if split_train else splits


def parse_row(task: Task, line: str, labels: Collection | None) -> dict:
    """Return the row of a JSON object. If `labels` is None, every label is allowed."""
    row, name = parse_object(line, task), task.fields[-1]
    if name not in row:
        raise ValueError(f"{line[:40]!r}; the field {name!r} is missing")
    value = row[name]
    if task.is_tagging:
        if not isinstance(value, list) or len(value) != len(row["tokens"]):
            raise ValueError(
                f"{line[:40]!r}; expected in {name!r} a list with one tag for each token"
            )
        value = [tag.strip() if isinstance(tag, str) else tag for tag in value]
        _check_bio(value)
    else:
        if type(value) not in (str, int) or not lines.is_text(str(value)):
            raise ValueError(
                f"the label is {value!r:.40}; expected in {name!r} a text or a whole number"
            )
        value = str(value).strip()
        if value == NO_LABEL:
            raise ValueError(
                f"the label is {NO_LABEL}, which marks a row without a label in other programs; "
                "leave the row out, or give it a label"
            )
    for label in value if task.is_tagging else [value]:
        if labels and label not in labels:
            raise ValueError(
                f"unknown label {label[:40]!r}; expected one of {', '.join(labels)}: the labels of "
                "train, or those that --labels names when a model is trained"
            )
    return {field: row[field] for field in task.fields[:-1]} | {name: value}


def parse_object(text: str, task: Task) -> dict:
    """Return a JSON object that has the fields of the task's rows. The label and other fields are
    not checked."""
    row = lines.parse_json(text)
    expected = '["a", "word", "each"]' if task.is_tagging else '"a sentence"'
    for field in task.fields[:-1]:
        value = row.get(field) if isinstance(row, dict) else None
        right_type = bool(value) and isinstance(value, list if task.is_tagging else str)
        wrong = lines.wrong_text(field, value) if right_type else repr(text[:40])
        if wrong:
            raise ValueError(f"{wrong}; expected a JSON object with {field!r}: {expected}")
    return row


def _check_bio(tags: list) -> None:
    """Raise ValueError for a value that is not a BIO tag, or for an I- tag that does not continue
    an entity of its type."""
    previous = "O"
    for number, tag in enumerate(tags, start=1):
        if str(tag).strip() == NO_LABEL:
            raise ValueError(
                f"tag {number} is {NO_LABEL}, which marks a word without a tag in other programs, "
                "such as the second token of a word; give one tag for each word"
            )
        if not (lines.is_text(tag) and is_tag(tag)):
            raise ValueError(f"tag {number} is {tag!r}; expected 'O', 'B-type' or 'I-type'")
        if tag[0] == "I" and previous[2:] != tag[2:]:
            raise ValueError(
                f"tag {number} is {tag!r}, but no entity of that type comes before it; the first "
                f"word of an entity has B-{tag[2:]}"
            )
        previous = tag


def labels_in(task: Task, rows: list[dict]) -> tuple[str, ...]:
    """Return the labels of the rows: whole numbers by value, then others by name. For tags: `O`,
    then B- and I- of each type, with the types in this order. If they are the labels that the task
    has itself, they have its order."""
    if task.is_tagging:
        types = in_order({tag[2:] for row in rows for tag in row["tags"] if tag != "O"})
        labels = tags_of(types)
    else:
        labels = in_order({row["label"] for row in rows})
    return task.labels if {*labels} == {*task.labels} else labels


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels in an order that does not depend on the order of rows."""

    def key(label: str) -> tuple:
        is_number = re.fullmatch(r"[+-]?[0-9]{1,18}", label)
        return (0, int(label), label) if is_number else (1, 0, label)

    return tuple(sorted(labels, key=key))
