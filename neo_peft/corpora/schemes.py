"""How tags mark entities: recognise the scheme of a whole file, and convert it to BIO.

BIO: the first word of an entity is B-type, each other one I-type.
IOB1: each word is I-type; B-type only where an entity follows another one of its type.
BIOES, and BILOU, which has L for E and U for S: also the last word, E-type, and an entity of one
    word, S-type.
IO: each word has the type alone; neighbours with the same type are one entity.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SCHEMES = BIO, IOB1, BIOES, BILOU, IO = "BIO", "IOB1", "BIOES", "BILOU", "IO"
MARKED = re.compile("[BIESLU]-.+", re.DOTALL)
AS_BIOES = {"L": "E", "U": "S"}


class Wrong(NamedTuple):
    """A tag that breaks the rules of a scheme."""

    sequence: int  # the index of its sentence
    word: int  # the index of its word
    reason: str  # for the message


def find_scheme(sequences: Sequence[Sequence[str]]) -> str:
    """Return the scheme of the tags of a file: the first one whose rules they keep to; if there is
    none, the one with the fewest wrong tags."""
    wrong = {}
    for scheme in SCHEMES:
        wrong[scheme] = sum(1 for _ in wrong_tags(sequences, scheme))
        if not wrong[scheme]:
            break
    return min(wrong, key=wrong.get)


def wrong_tags(sequences: Sequence[Sequence[str]], scheme: str) -> Iterator[Wrong]:
    """Yield the tags that break the rules of a scheme."""
    for index, tags in enumerate(sequences):
        previous = "O"
        for word, tag in enumerate(tags):
            if reason := _reason(previous, tag, scheme):
                yield Wrong(index, word, reason)
            previous = tag
        if scheme in (BIOES, BILOU) and _is_open(previous):
            yield Wrong(index, len(tags) - 1, f"{previous!r}, and the sentence ends in its entity")


def to_bio(tags: Sequence[str], scheme: str) -> list[str]:
    """Return the BIO tags of a sentence whose tags keep to the rules of `scheme`."""
    if scheme == BIO:
        return list(tags)
    converted, previous = [], "O"
    for tag in tags:
        if tag == "O":
            converted.append(tag)
        elif scheme == IO:
            converted.append(f"{'I' if previous == tag else 'B'}-{tag}")
        else:
            starts = tag[0] in "BSU" or (scheme == IOB1 and previous[2:] != tag[2:])
            converted.append(f"{'B' if starts else 'I'}-{tag[2:]}")
        previous = tag
    return converted


def _reason(previous: str, tag: str, scheme: str) -> str:
    """Return why a tag is wrong after the previous one; "" if it is right."""
    if scheme == IO:
        is_marked = tag[1:2] == "-" and tag[0] in "BIESLU"
        return f"{tag!r}; expected 'O' or a type" if is_marked else ""
    allowed = "BI" if scheme in (BIO, IOB1) else scheme.replace("O", "")
    if tag != "O" and not (MARKED.fullmatch(tag) and tag[0] in allowed):
        forms = [f"'{mark}-type'" for mark in allowed]
        return f"{tag!r}; expected 'O', {', '.join(forms[:-1])} or {forms[-1]}"
    mark, kind = AS_BIOES.get(tag[0], tag[0]), tag[2:]
    continues = previous != "O" and previous[2:] == kind
    if scheme == IOB1:
        if mark == "B" and not continues:
            return f"{tag!r}, but no entity of that type comes before it; in IOB1 it is I-{kind}"
        return ""
    if scheme == BIO:
        if mark == "I" and not continues:
            return (
                f"{tag!r}, but no entity of that type comes before it; the first word of an entity "
                f"has B-{kind}"
            )
        return ""
    if _is_open(previous) != (mark in "IE") or (mark in "IE" and not continues):
        return f"{tag!r} after {previous!r}, which is not allowed"
    return ""


def _is_open(tag: str) -> bool:
    """Return whether an entity goes on after a tag of BIOES or BILOU."""
    return tag[0] in "BI" and tag != "O"
