"""What a loader gets and returns (`Request`, `Splits`), and how rows are divided into splits."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.tasks import Task

PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside PhraseBank's zip


class NoFiles(InputError):
    """A folder has none of a corpus's files."""


class Request(NamedTuple):
    """The arguments of `load_splits`. A loader uses only those that it needs.

    task: load rows of this task.
    data: the value of `--data`: "sample", "hub" or a folder.
    protocol: how to split a corpus without official splits: "clean" or "paper".
    seed: seed for choosing the validation rows, if the data has no validation file.
    labels: the labels of your own rows, in their order; None to take them from train.
    split: the only split that is needed, to score a model with the labels of `task`; None for all.
        A loader need not read the others: it can return them without rows.
    """

    task: Task
    data: str
    protocol: str
    seed: int
    labels: Sequence[str] | None
    split: str | None = None

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
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict] | None
    protocol: str = "single"
    notes: tuple[str, ...] = ()
    extra_tests: dict[str, list[dict]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

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
    """Move a tenth of train to validation, if there are no validation rows.

    It is a tenth of each label's texts: at least one, but never the only text of a label. Rows with
    the same text stay in the same split, so that no validation text is in train.
    """
    if splits.validation:
        return splits

    def text_of(row: dict) -> str:
        return str([row[field] for field in request.task.fields[:-1]])

    # If rows with one text have different labels, the last one counts. Tagging rows have no label.
    label_of = {text_of(row): row.get("label") for row in splits.train}
    texts = defaultdict(list)
    for text, label in label_of.items():
        texts[label].append(text)
    chosen = set()
    for label_texts in texts.values():
        # in the order of a hash, as in `deal_tenths`
        label_texts.sort(
            key=lambda text: hashlib.sha256(f"{request.seed} {text}".encode()).digest()
        )
        tenth = max(1, round(len(label_texts) / 10)) if len(label_texts) > 1 else 0
        chosen.update(label_texts[:tenth])
    train = [row for row in splits.train if text_of(row) not in chosen]
    validation = [row for row in splits.train if text_of(row) in chosen]
    note = (
        f"there is no validation file: a tenth of train is validation, {len(validation):,} of "
        f"{len(splits.train):,} rows, chosen by --seed {request.seed}"
    )
    notes = (*splits.notes, note) if validation else splits.notes
    return replace(splits, train=train, validation=validation, notes=notes)


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
    labels_of = defaultdict(set)
    for row in train:
        labels_of[str([row[field] for field in fields])].add(str(row[label]))
    count = sum(len(labels) > 1 for labels in labels_of.values())
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
