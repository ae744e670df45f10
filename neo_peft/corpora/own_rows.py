"""Your own labelled data: a file, a folder with a file for each split, a folder of `save_to_disk`,
or a data set of the hub."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.corpora import columns, delimited, json_rows, schemes, tables
from neo_peft.corpora.fields import field_name
from neo_peft.corpora.folders import NAMES, files_of_splits, find_file, unread_note
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request, Splits, split_in_three, split_off_validation
from neo_peft.errors import InputError
from neo_peft.tasks import Task, tags_of

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN = "train.jsonl"  # the file that messages name as an example
HUB = "hub:"  # before the name of a data set of the hub
ALL = "all"  # the name of data without splits
MOST_NAMED = 12  # labels in the line on a file

Reader = Callable[[Path, Request], FileRows]
# The reader of each kind of file. A new file format is a new module and a line here.
READERS: dict[str, Reader] = {
    ".jsonl": json_rows.read,
    ".json": json_rows.read,
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".parquet": tables.read_parquet,
}
TAGGING_READERS: dict[str, Reader] = {
    **READERS,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".txt", ".tsv"), columns.read),
}


def readers_of(task: Task) -> dict[str, Reader]:
    """Return the readers of a task's rows, by the suffix of a file."""
    return TAGGING_READERS if task.is_tagging else READERS


def is_one(data: str) -> bool:
    """Return whether `data` is one file, a saved data set, or a data set of the hub."""
    return data.startswith(HUB) or Path(data).is_file() or tables.is_saved(Path(data))


def train_files(task: Task, data: str) -> list[str]:
    """Return the names of the files with rows to train on: `data` itself if it is one."""
    if is_one(data):
        return [data]
    return [name for name in own_files(task, data, "train") if Path(data, name).is_file()]


def own_files(task: Task, folder: str, split: str | None = None) -> list[str]:
    """Return the names of the files of your own rows in a folder, of all splits or of one."""
    return files_of_splits(Path(folder), readers_of(task), split)


class Sources:
    """Where the rows of each split of `--data` are.

    path: the file or folder.
    tables: by the name of a split, a table of `datasets`; or one file or table, called `ALL`. None
        if it is a folder of files.
    """

    def __init__(self, request: Request):
        self.request, self.path, self.tables = request, Path(request.data), None
        if request.data.startswith(HUB):
            self.tables = tables.load_hub(request.data.removeprefix(HUB))
        elif self.path.is_file():
            self.tables = {ALL: self.path}
        elif tables.is_saved(self.path):
            self.tables = tables.load_saved(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether the rows are not split."""
        return self.tables is not None and ALL in self.tables

    def find(self, split: str) -> "Path | Dataset | None":
        """Return the file or the table of a split, or None."""
        if self.is_whole:
            return self.tables[ALL] if split == "train" else None
        if self.tables is None:
            return find_file(self.path, split, readers_of(self.request.task))
        return next((self.tables[name] for name in NAMES[split] if name in self.tables), None)

    def name_of(self, split: str) -> str:
        """Return what messages call the rows of a split."""
        source = self.find(split)
        if source is None or self.tables is None:
            return str(source or self.path / f"{split}{self._suffix()}")
        return self.request.data if self.is_whole else f"{self.request.data}, {split}"

    def _suffix(self) -> str:
        """Return the suffix of the files that are there."""
        suffixes = readers_of(self.request.task)
        found = (find_file(self.path, split, suffixes) for split in NAMES)
        return next((path.suffix for path in found if path), Path(TRAIN).suffix)

    def open(self, split: str) -> FileRows:
        """Return the rows of a split, not yet read."""
        source, name = self.find(split), self.name_of(split)
        if source is None and self.tables is not None:
            raise InputError(f"--data {self.request.data}: it has no {split} split")
        path = Path(name) if source is None else source
        if not isinstance(path, Path):
            return tables.dataset_rows(name, path, self.request)
        readers = readers_of(self.request.task)
        if (read := readers.get(path.suffix.lower())) is None:
            raise InputError(
                f"--data {path}: {path.suffix or 'no suffix'} is no format of rows for "
                f"{self.request.task.name}; expected {', '.join(readers)}"
            )
        if not path.exists():
            raise InputError(
                f"{path}: there is no such file; put it next to the task's other files"
            )
        return read(path, self.request)

    def note(self) -> str:
        """Return a note on files or splits that were not read; "" if there are none."""
        if self.tables is None:
            return unread_note(self.path, readers_of(self.request.task))
        known = {ALL, *(name for names in NAMES.values() for name in names)}
        unread = ", ".join(name for name in self.tables if name not in known)
        return f"{self.request.data}: splits that were not read: {unread}" if unread else ""


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
