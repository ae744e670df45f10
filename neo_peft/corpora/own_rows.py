"""Your own labelled data: read the rows of each split, which own_files.py finds; check the labels,
and convert the tags to BIO."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from neo_peft.corpora import schemes
from neo_peft.corpora.checks import refuse_regression
from neo_peft.corpora.fields import field_name
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.own_files import HUB, Sources
from neo_peft.corpora.splits import Request, Splits, split_in_three, split_off_validation
from neo_peft.errors import InputError
from neo_peft.tasks import Task, tags_of

MOST_NAMED = 12  # labels in the line on a file


def load(request: Request) -> Splits:
    """Load the rows of `--data`.

    The labels are `request.labels`, or those of train. Raises InputError, with the file and the
    line, for a row that has another label. Without a validation file, a tenth of train becomes
    validation; one file is split into three. Without a test file, test is None. If only one split
    is needed, the files of the others are not read.
    """
    task, sources, notes, read = request.task, Sources(request), [], []
    # A model that is scored has its labels, in `task`. Training takes them from train.
    labels = request.labels or (task.labels if request.split else None)
    labels = task.own_labels(labels) if labels else None
    wanted = request.wants("train", "validation")
    has_validation = wanted and sources.find("validation") is not None
    split_train = (wanted and not has_validation) or sources.is_whole
    has_test = sources.find("test") is not None

    train, validation, test = [], [], [] if has_test else None
    if split_train or request.wants("train") or not labels:
        train = _read(sources, "train", labels, notes, read)
        if not labels and not task.is_tagging:
            refuse_regression(sources.name_of("train"), {row["label"] for row in train})
        labels = labels or labels_in(task, train)
    if len(labels) < 2:
        raise InputError(
            f"{sources.name_of('train')}: every label is {labels[0]}; expected at least two "
            "different labels"
        )
    if has_validation and request.wants("validation"):
        validation = _read(sources, "validation", labels, notes, read)
    if has_test and request.wants("test"):
        test = _read(sources, "test", labels, notes, read)
    notes += filter(None, [sources.note()])
    splits = Splits(train, validation, test, notes=tuple(notes), labels=labels, read=tuple(read))
    if not split_train:
        return splits
    return (
        split_in_three(request, splits)
        if sources.is_whole
        else split_off_validation(request, splits)
    )


def _read(
    sources: Sources, split: str, labels: Sequence[str] | None, notes: list[str], read: list[str]
) -> list[dict]:
    """Return the rows of a split, whose labels or tags must be among `labels` if they are given.
    Add the notes of its file, and to `read` a line on what was read."""
    task, problem = sources.request.task, ""
    try:
        file = sources.open(split)
        rows, scheme = (_tagged if task.is_tagging else _labelled)(file, labels)
    except InputError as error:
        problem = str(error)
    if problem:  # not raised above, where the traceback keeps the bar of the file open
        raise InputError(problem)
    if not rows:
        raise InputError(f"{file.name}: the file has no rows; add rows, or use the original file")
    notes += file.notes
    origin = ", ".join(f"{field_name(field)} from {at}" for field, at in file.origin.items())
    kinds = labels_in(task, rows)
    if task.is_tagging:
        kinds = [label[2:] for label in kinds if label[:2] == "B-"]
    shown = ", ".join(kinds[:MOST_NAMED]) + ", …" * (len(kinds) > MOST_NAMED)
    if scheme:
        shown += f"; tags in {scheme}" + ", converted to BIO" * (scheme != schemes.BIO)
    name = file.name if file.name.startswith(HUB) else Path(file.name).name
    read.append(f"{name}: {len(rows):,} rows; {origin} ({shown})")
    return rows


def _labelled(file: FileRows, labels: Sequence[str] | None) -> tuple[list[dict], str]:
    """Return the rows of a classification task, and "" for the scheme of their tags."""
    rows = []
    for number, row in file.rows:
        if labels and row["label"] not in labels:
            _refuse_label(file, number, row["label"], labels)
        rows.append(row)
    return rows, ""


def _tagged(file: FileRows, labels: Sequence[str] | None) -> tuple[list[dict], str]:
    """Return the rows of a tagging task with BIO tags, and the scheme of the tags in the file."""
    numbered = list(file.rows)
    tags = [row["tags"] for _, row in numbered]
    scheme = schemes.find_scheme(tags)
    for wrong in schemes.wrong_tags(tags, scheme):
        number = numbered[wrong.sequence][0] + wrong.word * file.word_lines
        other = "" if scheme == schemes.BIO else f"; the other tags of the file are {scheme}"
        raise InputError(
            f"{file.name}, {file.unit} {number}: tag {wrong.word + 1} is {wrong.reason}{other}"
        )

    rows = [row for _, row in numbered]
    for number, row in numbered:
        row["tags"] = schemes.to_bio(row["tags"], scheme)
        for word, tag in enumerate(row["tags"] if labels else ()):
            if tag not in labels:
                _refuse_label(file, number + word * file.word_lines, tag, labels)
    return rows, scheme


def _refuse_label(file: FileRows, number: int, label: str, labels: Sequence[str]) -> None:
    raise InputError(
        f"{file.name}, {file.unit} {number}: unknown label {label[:40]!r}; expected one of "
        f"{', '.join(labels)}: the labels of train, or those that --labels names when a model is "
        "trained"
    )


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
