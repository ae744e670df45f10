"""What `load_splits` is asked for, the splits that it returns, and how rows are divided among
them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.tasks import Task

PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside PhraseBank's zip


class Request(NamedTuple):
    """The arguments of `load_splits`; each loader uses those that concern it.

    task: the task whose rows are wanted
    data: what `--data` names: "sample", "hub" or a folder
    protocol: how a corpus without official splits is split: "clean" or "paper"
    seed: draws the validation rows where the data has no validation file
    labels: the labels of a user's own rows, in their order; None takes them from train
    """

    task: Task
    data: str
    protocol: str
    seed: int
    labels: Sequence[str] | None

    def find_folder(self, name: str, files: Sequence[str]) -> Path:
        """Return the folder that has any of a corpus's files: `data`/`name`, `data`, or
        PhraseBank's folder in one of these."""
        for below in ((name,), (name, PHRASEBANK), (), (PHRASEBANK,)):
            folder = Path(self.data, *below)
            if any((folder / file).exists() for file in files):
                return folder
        raise InputError(
            f"--data {self.data}: it holds none of {', '.join(files)}, nor does {name}/ below it"
        )


@dataclass(frozen=True)
class Splits:
    """The rows of each split, in the order of their file.

    train, validation, test: test is None where a user's own rows have none
    protocol: "clean" or "paper"; "single" where the data can be split in one way only
    notes: lines that a user should read
    extra_tests: further test sets by name, such as MNLI's "mismatched"
    labels: the labels of a user's own rows, in their order; None where the task fixes them
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict] | None
    protocol: str = "single"
    notes: tuple[str, ...] = ()
    extra_tests: dict[str, list[dict]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    def named(self) -> dict[str, list[dict]]:
        """Return the rows of each split by its name, train first. A split that is None is left
        out."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: rows for name, rows in (splits | self.extra_tests).items() if rows is not None
        }


def limit_rows(rows: list[dict], limit: int | None) -> list[dict]:
    """Return `limit` rows, evenly spaced over the list and in its order, or all if there are no
    more."""
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise InputError(f"a limit of {limit} rows leaves none; give 1 or more")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def split_off_validation(request: Request, splits: Splits) -> Splits:
    """Where there is no validation row, move a tenth of train there: a tenth of each label's texts,
    at least one, but never a label's only text.

    Rows with the same text stay together: otherwise train would give away part of validation.
    """
    if splits.validation:
        return splits

    def text_of(row: dict) -> str:
        return str([row[field] for field in request.task.fields[:-1]])

    # the label of a text is that of its last row; words are tagged, and have none
    label_of = {text_of(row): row.get("label") for row in splits.train}
    texts = defaultdict(list)
    for text, label in label_of.items():
        texts[label].append(text)
    chosen = set()
    for of_label in texts.values():
        # sorted by a hash for the reason given in deal_tenths
        of_label.sort(key=lambda text: hashlib.sha256(f"{request.seed} {text}".encode()).digest())
        chosen.update(of_label[: max(1, round(len(of_label) / 10)) if len(of_label) > 1 else 0])
    return replace(
        splits,
        train=[row for row in splits.train if text_of(row) not in chosen],
        validation=[row for row in splits.train if text_of(row) in chosen],
    )


def deal_tenths(rows: list[dict], tenths: Iterable[range], by_label: bool) -> list[list[dict]]:
    """Deal rows of sentences into ten parts, like cards, and return the rows of each range of parts
    in their order in the file.

    With `by_label` each label's rows are dealt on their own, so that every part has its share.
    """
    # The order of dealing is that of the sentences' sha256. It is the same for every seed and every
    # version of Python and numpy, which do not promise that a seed always shuffles alike.
    order = sorted(
        range(len(rows)), key=lambda i: hashlib.sha256(rows[i]["sentence"].encode()).digest()
    )
    part, dealt = [0] * len(rows), defaultdict(int)
    for i in order:
        pack = rows[i]["label"] if by_label else "all"
        part[i] = dealt[pack] % 10
        dealt[pack] += 1
    return [[row for i, row in enumerate(rows) if part[i] in wanted] for wanted in tenths]


def overlap_note(task: Task, train: list[dict], test: list[dict]) -> str:
    """Return a line that counts the test rows with a sentence that train has too, letter for
    letter."""
    fields = task.fields[:-1]  # of sentences, or of a sentence's words
    known = {str(row[field]) for row in train for field in fields}
    count = sum(any(str(row[field]) in known for field in fields) for row in test)
    kind, how = "sentences", "also stand in"
    if len(fields) > 1:
        kind, how = "pairs", "share a sentence with"
    return f"{count:,} of the {len(test):,} test {kind} {how} train ({len(train):,} {kind})"
