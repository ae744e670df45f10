"""The files in a folder of your own rows: their names, and those that were not read."""

import re
from collections.abc import Iterable
from pathlib import Path

from neo_peft.errors import InputError

# The names that the file of a split can have, without its suffix.
NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val", "devel"),
    "test": ("test",),
}
# Names of files that look like data: by their suffix, or by a split's name.
LIKE_DATA = re.compile(
    r"(.+\.(jsonl|csv|tsv|conllu?|iob2?|bio|parquet|arrow)"
    r"|(train|training|validation|valid|val|dev|eval|test)([_\d-][\w-]*)?\.(txt|json|xlsx))"
    r"(\.(gz|xz|bz2|zst|zip))?",
    re.IGNORECASE,
)
MOST_NAMED = 5  # files in the note on files that were not read


def find_file(folder: Path, split: str, suffixes: Iterable[str]) -> Path | None:
    """Return the file of a split, or None. Raises InputError if there are two."""
    found = files_of_splits(folder, suffixes, split)
    if len(found) > 1:
        raise InputError(
            f"{folder} has {' and '.join(found)}, and each is a name of the {split} file; keep one "
            "of them"
        )
    return folder / found[0] if found else None


def files_of_splits(folder: Path, suffixes: Iterable[str], split: str | None = None) -> list[str]:
    """Return the names of the files in a folder that have the name of a split's file: of any split,
    or of one."""
    names = NAMES[split] if split else [name for names in NAMES.values() for name in names]
    files = [name + suffix for name in names for suffix in suffixes]
    return [file for file in files if (folder / file).exists()]


def unread_note(folder: Path, suffixes: Iterable[str]) -> str:
    """Return a note with the files that look like data, but are not the file of a split; "" if
    there are none."""
    read = files_of_splits(folder, suffixes)
    suffix = Path(read[0]).suffix if read else ""
    unread = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in read and LIKE_DATA.fullmatch(path.name) and path.is_file()
    )
    if not unread:
        return ""
    named = ", ".join(unread[:MOST_NAMED]) + ", …" * (len(unread) > MOST_NAMED)
    return (
        f"not read: {named} in {folder}; the files that are read are train{suffix}, "
        f"validation{suffix} (or dev, valid, val) and test{suffix}"
    )
