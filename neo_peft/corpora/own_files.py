"""Where the rows of each split of your own data are: in a file, in a folder with a file for each
split, in a folder of `save_to_disk`, or in a data set of the hub. The table of file formats."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.corpora import columns, delimited, json_rows, tables
from neo_peft.corpora.folders import NAMES, files_of_splits, find_file, unread_note
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request
from neo_peft.errors import InputError
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"  # before the name of a data set of the hub
ALL = "all"  # the name of data without splits

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
        return next((path.suffix for path in found if path), ".jsonl")

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
