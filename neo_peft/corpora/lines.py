"""Read the lines of a data file, and check their values; all parsers use these functions.

A parser turns one line into a row, and raises ValueError for a wrong line. `read_rows` adds the
file and the line number to the message. Each corpus has its parsers in its own file.
"""

import codecs
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from neo_peft.errors import InputError
from neo_peft.progress import Progress, no_progress

AnyPath = Path | zipfile.Path  # a file inside a zip is read like any other file
NOT_WINDOWS = {b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d"}  # no characters in Windows-1252
BLOCK = 2**20  # bytes or characters to read at once
LARGEST_MEMBER = 2**24  # bytes of a file inside a zip; each of PhraseBank's has less than a million


class FileRows(NamedTuple):
    """The rows of a file of your own data, with the fields of the task. Texts are checked; tags
    have the scheme of the file; labels can be any text.

    name: the file, as messages name it.
    rows: the number of each row, and the row.
    origin: where each field comes from, such as `"body"` or `column 2`.
    notes: lines to print. A reader adds lines until its last row.
    unit: what the numbers count: lines or rows.
    word_lines: whether each word of a row has a line of its own; the number is that of the first.
    """

    name: str
    rows: Iterable[tuple[int, dict]]
    origin: dict[str, str]
    notes: list[str]
    unit: str = "line"
    word_lines: bool = False


def parse_items(
    name: object, parse: Callable, items: Iterable[tuple[int, Any]], unit: str = "line"
) -> Iterator[tuple[int, Any]]:
    """Yield the number of each item, and `parse(item)`. The InputError for a wrong item has the
    name of the file and the number."""
    for number, item in items:
        try:
            parsed = parse(item)
        except ValueError as error:
            raise InputError(f"{name}, {unit} {number}: {error}") from error
        yield number, parsed


def read_rows(
    path: AnyPath,
    parse: Callable,
    allowed: Collection,
    items: Iterable | None = None,
    keep_blank: bool = False,
) -> list:
    """Return `parse(line, allowed)` for each line of a file, without blank lines and None results.

    `items`: numbered items to parse, instead of the lines of the file.
    `keep_blank`: keep None in the list for a blank line, and for a line that `parse` returns None
    for.
    """
    unit = "row" if path.suffix == ".parquet" else "line"
    numbered = parse_items(
        path, lambda item: parse(item, allowed) if item else None, items or read_lines(path), unit
    )
    rows = [row for _, row in numbered]
    if not any(rows):
        raise InputError(f"{path}: the file has no rows; add rows, or use the original file")
    return rows if keep_blank else [row for row in rows if row]


def read_lines(path: AnyPath, or_encoding: str = "") -> Iterator[tuple[int, str]]:
    """Yield (number, line) for each line of a UTF-8 file; numbers start at 1.

    `or_encoding`: the encoding of a file that is not valid UTF-8. Latin-1 text with a letter
    outside ASCII is hardly ever valid UTF-8, so a file that was saved again as UTF-8 is recognised.
    A file that has letters in both encodings is refused.
    Line ends and the byte order mark are removed. A line of spaces becomes an empty line.
    """
    try:
        check_regular(path)
        raw = path.read_bytes() if isinstance(path, Path) else _unpack(path)
        _refuse_utf16(path, raw)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file; put it next to the task's other files"
        ) from error
    if raw.startswith(codecs.BOM_UTF8):
        raw, or_encoding = raw.removeprefix(codecs.BOM_UTF8), ""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if not or_encoding or _has_utf8_letters(raw):
            number = raw.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}, line {number}: not utf-8; save the file as utf-8") from error
        text = raw.decode(or_encoding)
    # splitlines() would also split at characters that occur inside sentences, such as Latin-1's
    # 0x85.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        yield number, line if line.strip(" ") else ""


def check_regular(path: AnyPath) -> None:
    """Raise InputError if a path is a pipe or a device: reading it would wait, or never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; put the file itself there")


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file of any size: "utf-8-sig" (with a mark or without); if it
    is not valid UTF-8, "latin-1", or "cp1252" if it has the quotes and dashes of Windows.

    Raises InputError for UTF-16, for NUL bytes, and for a file that has letters in both encodings.
    """
    check_regular(path)
    decoder, number, encoding = codecs.getincrementaldecoder("utf-8")(), 1, "utf-8-sig"
    controls = set()  # bytes that are control characters in Latin-1
    with open(path, "rb") as file:
        _refuse_utf16(path, file.read(2))
        file.seek(0)
        for block in chain(iter(partial(file.read, BLOCK), b""), [b""]):  # b"": the end
            if (nul := block.find(b"\0")) >= 0:
                number += block.count(b"\n", 0, nul)
                raise InputError(
                    f"{path}, line {number}: a NUL byte, so it is not a line of text; save the "
                    "file as utf-8 text"
                )
            number += block.count(b"\n")
            controls.update(re.findall(rb"[\x80-\x9f]", block))
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                encoding = "latin-1"
    if encoding == "latin-1":
        next(read_lines(path, "latin-1"))  # refuses a file with letters in both encodings
        if controls and not controls & NOT_WINDOWS:
            encoding = "cp1252"
    return encoding


def encoding_notes(path: Path, encoding: str) -> list[str]:
    """Return a note on a file that is not UTF-8, or []."""
    name = {"latin-1": "Latin-1", "cp1252": "Windows-1252"}.get(encoding)
    return [f"{path.name}: not utf-8, so it was read as {name}"] if name else []


def stream_lines(path: Path, encoding: str, progress: Progress = no_progress) -> Iterator[str]:
    """Yield the lines of a text file, each with its line end (LF, CRLF or CR), with a bar. Only a
    small part of the file is in memory."""
    blocks = math.ceil(path.stat().st_size / BLOCK)
    with open(path, encoding=encoding, newline="") as file:
        for _ in progress(range(blocks), f"read {path.name}", blocks):
            yield from file.readlines(BLOCK)  # counts characters: at least one byte each


def _refuse_utf16(path: AnyPath, raw: bytes) -> None:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path} is a file in UTF-16; save it as utf-8")


def _has_utf8_letters(raw: bytes) -> bool:
    """Return whether some bytes outside ASCII are letters in UTF-8."""
    text = raw.decode("utf-8", errors="ignore")  # without the bytes that are not UTF-8
    return not text.isascii()


def _unpack(path: zipfile.Path) -> bytes:
    """Return the bytes of a file inside a zip. Raises InputError if it is too large.

    A few bytes can unpack to gigabytes, and the size in the zip's directory can be wrong.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST_MEMBER + 1)
    if len(raw) > LARGEST_MEMBER:
        raise InputError(
            f"{path} unpacks to more than {LARGEST_MEMBER:,} bytes; use the original zip file"
        )
    return raw


def two_parts(parts: tuple[str, str, str], expected: str) -> tuple[str, str]:
    """Return the text before and after the separator, from the result of `str.partition`.

    Raises ValueError with the `expected` format if the line has no separator.
    """
    before, separator, after = parts
    if not separator:
        raise ValueError(f"{(before + after)[:40]!r}; expected {expected}")
    return before, after


def parse_json(text: str) -> Any:
    """Return the value of a line of JSON. Raises ValueError for a line that is not JSON, and for an
    object with two fields of the same name, of which Python would silently take the last one."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:  # not its own message, where the line number is always 1
        reason = error.msg.removesuffix(" at")  # "Invalid control character at": a tab in a text
        raise ValueError(
            f"not JSON: {reason} at character {error.colno}; expected a JSON object"
        ) from None
    except RecursionError as error:
        raise ValueError(f"not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it has a field twice."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the JSON object has the field {twice[0][:40]!r} twice; keep one of them")
    return dict(pairs)


def check_label(allowed: Collection, label: str) -> str:
    """Return the label. Raises ValueError if it is not allowed."""
    if label not in allowed:
        raise ValueError(f"unknown label {label[:40]!r}; expected one of {', '.join(allowed)}")
    return label


def check_text(text: object) -> str:
    """Return the token or sentence. Raises ValueError if `is_text` is false for it."""
    if not is_text(text):
        raise ValueError(
            f"a token or sentence is {_start(text)}, empty or not valid text; correct or remove it"
        )
    return text


def wrong_text(field: str, value: str | list) -> str:
    """Return what is wrong with a sentence, or with the first wrong token of a list: its name or
    number, and its value. Return "" if nothing is wrong."""
    named = [(repr(field), value)]
    if isinstance(value, list):
        named = [(f"token {number}", token) for number, token in enumerate(value, start=1)]
    for name, text in named:
        if not is_text(text):
            return f"{name} is {_start(text)}, empty or not valid text"
    return ""


def _start(value: object) -> str:
    """Return the start of a wrong value as Python writes it, which shows spaces of all kinds."""
    return repr(value[:40] if isinstance(value, str) else value)[:80]


def is_text(text: object) -> bool:
    """Return whether a value is a string that is not blank and that UTF-8 can encode.

    JSON can contain half of a surrogate pair, which UTF-8 cannot encode.
    """
    return (
        isinstance(text, str)
        and bool(text.strip())
        and text == text.encode("utf-8", "ignore").decode()
    )
