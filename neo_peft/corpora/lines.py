"""The lines of a data file, and the checks that all parsers share.

A parser turns one line into a row and raises ValueError for a wrong one; `read_rows` puts the file
and the line's number in front of the message. Each corpus's file has its own parsers.
"""

import codecs
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from neo_peft.errors import InputError

AnyPath = Path | zipfile.Path  # a file inside a zip is read like any other
LARGEST_MEMBER = 2**24  # bytes of a file inside a zip: PhraseBank's own have under a million


def read_rows(
    path: AnyPath,
    parse: Callable,
    allowed: Collection,
    items: Iterable | None = None,
    keep_blank: bool = False,
) -> list:
    """Return what `parse(line, allowed)` makes of each line, without the lines it makes None of.

    `items` are numbered items to parse instead of the file's lines. With `keep_blank` a blank line,
    and one that `parse` makes None of, is None.
    """
    rows = []
    for number, item in items or lines_of(path):
        try:
            rows.append(parse(item, allowed) if item else None)
        except ValueError as error:
            unit = "row" if path.suffix == ".parquet" else "line"
            raise InputError(f"{path}, {unit} {number}: {error}") from error
    if not any(rows):
        raise InputError(
            f"{path}: the file holds no rows; fill it, or put the data's own file there"
        )
    return rows if keep_blank else [row for row in rows if row]


def lines_of(path: AnyPath, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield a file's lines, numbered from 1, without line ends and byte order mark. A line of
    spaces is empty."""
    try:
        # reading a pipe would wait for its writer, and a device has no end
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no plain file; put the file itself there")
        raw = path.read_bytes() if isinstance(path, Path) else _unpack(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file; put it beside the task's other files"
        ) from error
    if raw.startswith(codecs.BOM_UTF8):
        raw, encoding = raw.removeprefix(codecs.BOM_UTF8), "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {number}: not {encoding}; save the file as {encoding}"
        ) from error
    # Not splitlines(): it also splits at characters that occur inside sentences, such as Latin-1's
    # 0x85.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        yield number, line if line.strip(" ") else ""


def _unpack(path: zipfile.Path) -> bytes:
    """Return the bytes of a file inside a zip, or refuse a file that is too large.

    A few bytes may unpack to gigabytes, and the size that the zip states may be wrong.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST_MEMBER + 1)
    if len(raw) > LARGEST_MEMBER:
        raise InputError(
            f"{path} unpacks to more than {LARGEST_MEMBER:,} bytes; it is not the data's own zip"
        )
    return raw


def two_parts(parts: tuple[str, str, str], expected: str) -> tuple[str, str]:
    """Return the first and the last of what `str.partition` made of a line, if it found the
    separator."""
    before, separator, after = parts
    if not separator:
        raise ValueError(f"{(before + after)[:40]!r}; expected {expected}")
    return before, after


def one_of(allowed: Collection, label: str) -> str:
    """Return the label if it is allowed."""
    if label not in allowed:
        raise ValueError(f"unknown label {label[:40]!r}; expected one of {', '.join(allowed)}")
    return label


def text_of(text: object) -> str:
    """Return the token or sentence if it is a text as `is_text` defines it."""
    if not is_text(text):
        raise ValueError("an empty token or sentence; fill it, or remove what it belongs to")
    return text


def is_text(text: object) -> bool:
    """Return whether it is a string that is not blank and that UTF-8 can encode.

    JSON may contain half of a surrogate pair, which UTF-8 cannot encode.
    """
    return (
        isinstance(text, str)
        and bool(text.strip())
        and text == text.encode("utf-8", "ignore").decode()
    )
