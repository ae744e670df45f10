"""The files in a folder of your own rows: their names, and those that were not read."""

import re
from pathlib import Path

from neo_peft.errors import InputError

# The names that the file of a split can have, without its suffix.
NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val"),
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


def find_file(folder: Path, split: str, suffix: str) -> Path | None:
    """Return the file of a split, or None. Raises InputError if there are two."""
    found = [path for name in NAMES[split] if (path := folder / (name + suffix)).exists()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise InputError(
            f"{folder} has {names}, and each is a name of the {split} file; keep one of them"
        )
    return found[0] if found else None


def files_of_splits(folder: Path, suffix: str) -> list[str]:
    """Return the names of the files in a folder that have the name of a split's file."""
    names = [name + suffix for names in NAMES.values() for name in names]
    return [name for name in names if (folder / name).exists()]


def unread_note(folder: Path, suffix: str) -> str:
    """Return a note with the files that look like data, but are not the file of a split; "" if
    there are none."""
    read = files_of_splits(folder, suffix)
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
