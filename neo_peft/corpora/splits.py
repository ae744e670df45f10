"""What a loader gets and returns (`Request`, `Splits`), and how rows are divided into splits."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task

PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside PhraseBank's zip


class NoFiles(InputError):
    """A folder has none of a corpus's files."""


class Request(NamedTuple):
    """The arguments of `load_splits`. A loader uses only those that it needs.

    task: load rows of this task.
    data: the value of `--data`: "sample", "hub", a folder, a file or a data set of the hub.
    protocol: how to split a corpus without official splits: "clean" or "paper".
    seed: seed for choosing the validation rows, if the data has no validation file.
    labels: the labels of your own rows, in their order; None to take them from train.
    split: the only split that is needed, to score a model with the labels of `task`; None for all.
        A loader need not read the others: it can return them without rows.
    columns: the columns of your own rows, such as `text=body`; None to find them by their names.
    progress: shows a bar while a large file is read.
    """

    task: Task
    data: str
    protocol: str
    seed: int
    labels: Sequence[str] | None
    split: str | None = None
    columns: Sequence[str] | None = None
    progress: Progress = no_progress

    def wants(self, *splits: str) -> bool:
        """Return whether one of these splits is needed."""
        return self.split in (None, *splits)

    def find_folder(self, name: str, files: Sequence[str]) -> Path:
        """Return the folder that has at least one of a corpus's files. It is `data`/`name` (the
        name can be in capitals) or `data`, or PhraseBank's folder in one of these."""
        for parts in product((name, name.upper(), ""), ("", PHRASEBANK)):
            folder = Path(self.data, *parts)
            if any((folder / file).exists() for file in files):
                return folder
        raise NoFiles(
            f"--data {self.data}: none of {', '.join(files)} is in this folder or in its folder "
            f"{name}/"
        )


@dataclass(frozen=True)
class Splits:
    """The rows of each split, in the order of their file.

    train, validation: rows.
    test: rows; None if your own data has no test file.
    protocol: "clean" or "paper"; "single" if the data can be split in one way only.
    notes: lines to print for the user.
    extra_tests: further test sets by name, such as MNLI's "mismatched".
    labels: the labels of your own rows, in their order; None if the task has fixed labels.
    read: for each of your own files a line: which columns it has, and which labels.
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict] | None
    protocol: str = "single"
    notes: tuple[str, ...] = ()
    extra_tests: dict[str, list[dict]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    read: tuple[str, ...] = field(default=(), compare=False)

    def named(self) -> dict[str, list[dict]]:
        """Return a dict from the name of each split to its rows, train first; without test if it is
        None."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: rows for name, rows in (splits | self.extra_tests).items() if rows is not None
        }


def limit_rows(rows: list[dict], limit: int | str | None) -> list[dict]:
    """Return `limit` evenly spaced rows in their order. Return all rows if there are no more than
    `limit`, or if it is "all" or None."""
    if limit in (None, "all") or limit >= len(rows):
        return rows
    if limit < 1:
        raise InputError(f"a limit of {limit} rows is too low; give 1 or more")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def split_off_validation(request: Request, splits: Splits) -> Splits:
    """Move a tenth of train to validation, if there are no validation rows. See `take_tenths`."""
    if splits.validation:
        return splits
    train, validation = take_tenths(request, splits.train, 1)
    note = (
        f"there is no validation file: a tenth of train is validation, {len(validation):,} of "
        f"{len(splits.train):,} rows, chosen by --seed {request.seed}"
    )
    notes = (*splits.notes, note) if validation else splits.notes
    return replace(splits, train=train, validation=validation, notes=notes)


def split_in_three(request: Request, splits: Splits) -> Splits:
    """Move a tenth of train to validation, and another one to test. See `take_tenths`."""
    train, validation, test = take_tenths(request, splits.train, 2)
    note = (
        "the data is not split: a tenth of each label's texts is validation, another one test, "
        f"chosen by --seed {request.seed}; to use all of a file, put it into a folder, as train, "
        "validation or test"
    )
    return replace(
        splits, train=train, validation=validation, test=test, notes=(*splits.notes, note)
    )


def take_tenths(request: Request, rows: list[dict], count: int) -> list[list[dict]]:
    """Divide rows into a first part, and `count` more parts with a tenth each, by `request.seed`.

    It is a tenth of each label's texts: at least one, but never the last text of a label in the
    first part. Rows with the same text stay in the same part, so that no text is in two of them.
    """
    import numpy as np

    *fields, last = request.task.fields
    # in the order of a hash, as in `deal_tenths`: an array is small where there are many rows
    texts = (f"{request.seed} {[row[field] for field in fields]}".encode() for row in rows)
    digests = (hashlib.sha256(text).digest() for text in texts)
    digests = np.fromiter(digests, dtype="S32", count=len(rows))
    texts, text_of_row = np.unique(digests, return_inverse=True)
    # If rows with one text have different labels, the last one counts. Tagging rows have no label.
    label_of_text = [None] * len(texts)
    for text, row in zip(text_of_row.tolist(), rows):
        label_of_text[text] = None if request.task.is_tagging else row[last]
    texts_of_label = defaultdict(list)
    for text, label in enumerate(label_of_text):
        texts_of_label[label].append(text)
    part = np.zeros(len(texts), dtype=np.int8)
    for of_label in texts_of_label.values():
        tenth = max(1, round(len(of_label) / 10))
        for number in range(count):
            taken = of_label[number * tenth : (number + 1) * tenth]
            if len(of_label) > number + 1:
                part[taken] = number + 1
    parts = [[] for _ in range(count + 1)]
    for row, number in zip(rows, part[text_of_row].tolist()):
        parts[number].append(row)
    return parts


def deal_tenths(rows: list[dict], tenths: Iterable[range], by_label: bool) -> list[list[dict]]:
    """Divide rows of sentences into ten parts, numbered 0 to 9. Return a list of rows for each
    range of parts in `tenths`, in the order of the file.

    With `by_label` the rows of each label are divided separately, so that all parts have about the
    same share of each label.
    """
    # Rows go to the ten parts in turn, like cards, in the order of their sentences' sha256. Python
    # and numpy do not promise that a seed gives the same shuffle in every version; a hash does.
    order = sorted(
        range(len(rows)), key=lambda i: hashlib.sha256(rows[i]["sentence"].encode()).digest()
    )
    part, counts = [0] * len(rows), defaultdict(int)  # counts: rows dealt so far, by group
    for i in order:
        group = rows[i]["label"] if by_label else "all"
        part[i] = counts[group] % 10
        counts[group] += 1
    return [[row for i, row in enumerate(rows) if part[i] in wanted] for wanted in tenths]


def conflict_notes(task: Task, train: list[dict]) -> list[str]:
    """Return a line if texts of train have several labels, or sentences several sequences of
    tags."""
    *fields, label = task.fields
    labels_of, conflicts = {}, set()  # the label of each text; the texts with several
    for row in train:
        # not a copy of the text, where there is only one: memory counts in a million rows
        text = str([row[field] for field in fields]) if len(fields) > 1 else row[fields[0]]
        text = text if isinstance(text, str) else str(text)
        if labels_of.setdefault(text, row[label]) != row[label]:
            conflicts.add(text)
    count = len(conflicts)
    return [f"texts of train with different labels in different rows: {count:,}"] if count else []


def overlap_notes(task: Task, splits: Splits) -> list[str]:
    """Return a line for each split but train, with the number of its rows that have a sentence of
    train, letter for letter. Only test has a line where there are none."""
    fields = task.fields[:-1]  # sentences, or the words of a sentence

    def texts(row: dict) -> list[str]:
        return [str(row[field]).strip() for field in fields]

    train_texts = {text for row in splits.train for text in texts(row)}
    kind, verb = "sentences", "are also in"
    if len(fields) > 1:
        kind, verb = "pairs", "share a sentence with"
    notes = []
    for name, rows in splits.named().items():
        count = sum(not train_texts.isdisjoint(texts(row)) for row in rows)
        if name == "test" or (count and name != "train"):
            notes.append(
                f"{count:,} of the {len(rows):,} {name} {kind} {verb} train "
                f"({len(splits.train):,} {kind})"
            )
    return notes
