"""Rows that the encoder refuses: find the first one of many, and name it."""

from collections.abc import Callable, Sequence

from neo_peft.encoding import Encoder, Examples
from neo_peft.errors import InputError

Encode = Callable[[Sequence[dict]], Examples]  # raises InputError for a row that it refuses


def encode_split(encoder: Encoder, rows: Sequence[dict], name: str, split: list[dict]) -> Examples:
    """Encode rows of a split. An InputError names the split `name`, and the row by its number in
    `split`, from 1, and its start."""
    try:
        return encoder(rows)
    except InputError as error:
        row = rows[first_refused(encoder, rows)]
        number = next(n for n, other in enumerate(split, start=1) if other is row)
        text = row[encoder.task.fields[0]]
        start = (" ".join(text) if encoder.task.is_tagging else text)[:40]
        raise InputError(f"{name}, row {number}, {start!r}: {refusal(encoder, row)}") from error


def first_refused(encode: Encode, rows: Sequence[dict]) -> int:
    """Return the index of the first row that is refused; one of them must be."""
    accepted, tried = 0, len(rows)  # rows[:accepted] are accepted, rows[:tried] are not
    while tried - accepted > 1:
        middle = (accepted + tried) // 2
        try:
            encode(rows[accepted:middle])
            accepted = middle
        except InputError:
            tried = middle
    return accepted


def refusal(encode: Encode, row: dict) -> str:
    """Return why a row is refused; "" if it is not."""
    try:
        encode([row])
    except InputError as error:
        return str(error)
    return ""
