"""Damage files for the fuzz tests: bytes, JSON values, safetensors headers, lines. Each case has
limits of time and memory."""

import copy
import json
import math
import os
import random
import re
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from neo_peft.model import Batch, TunedModel

CASES = int(os.environ.get("NEO_PEFT_CASES", 180))  # number of damaged files of each kind
# The numbers of the cases in two parts: the first 50, and the others, which are slow.
PARTS = [
    pytest.param(range(50), id="first"),
    pytest.param(range(50, CASES), id="others", marks=pytest.mark.slow),
]
# Limits of one case: CPU time, which other programs do not change, and memory besides what the
# process already uses.
SECONDS, GIGABYTES = 10, 4

# ---- How to damage

ODD_BYTES = b'\x00\xff\x80\x7f\r\n\t"{}[]@,:\\-0 9'
ODD_TEXTS = (
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\u200b",
    "..",
    "../x",
    "/",
    "\\",
    "a" * 5000,
    "NaN",
    "1e999",
    "é\u0301",
)
ODD_NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, 1e-300, -1e300)
ODD_NUMBERS += (math.inf, -math.inf, math.nan)


def damaged(whole: bytes, draw: random.Random, reach: int | None = None) -> bytes:
    """Return the bytes with one to three random changes, only in the first `reach` if given."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        end = min(reach or len(whole), len(whole))
        start = draw.randrange(end + 1)
        size = draw.choice((1, 1, 2, 8, 40))
        rest, other = whole[start + size :], draw.randrange(end + 1)
        piece, copied = whole[start : start + size], whole[other : other + size]
        odd = bytes(draw.choice(ODD_BYTES) for _ in range(size))
        ends = (
            bytes(byte ^ 1 << draw.randrange(8) for byte in piece) + rest,  # flip bits
            rest,  # remove bytes
            b"" if draw.random() < 0.3 else piece[: size // 2] + rest,  # cut the file, or shorten
            copied + rest,  # overwrite bytes with those of another place
            copied + piece + rest,  # insert the bytes of another place
            odd + piece + rest,  # insert odd bytes
            odd[:4] * len(piece) + rest,  # overwrite bytes with odd ones, and more of them
        )
        whole = whole[:start] + draw.choice(ends)
    return whole


def damaged_json(whole: bytes, draw: random.Random) -> bytes:
    """Return a JSON text with one to three changed values, at any depth: removed, of another type,
    out of range, nested, or repeated."""
    root = [json.loads(whole)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(root))[1:] or [(root, 0)]
        parent, key = draw.choice(places)
        value, change = parent[key], draw.randrange(9)
        if change == 0:
            del parent[key]
        elif change == 1:
            parent[key] = draw.choice(ODD_NUMBERS)
        elif change == 2:
            parent[key] = draw.choice(ODD_TEXTS)
        elif change == 3:
            parent[key] = draw.choice(
                (None, True, False, [], {}, [value], {"": value}, [value, value])
            )
        elif change == 4:
            parent[key] = _nested(draw.choice((5, 40)), value)
        elif change == 5 and isinstance(value, int | float):
            parent[key] = draw.choice(
                (-value, value + 1, value * 2, value / 3, str(value), float(value))
            )
        elif change == 6 and isinstance(parent, dict):
            parent[draw.choice(ODD_TEXTS)] = parent.pop(key)
        elif change == 7:
            other, other_key = draw.choice(places)
            # the copied value can contain the changed one
            parent[key] = copy.deepcopy(other[other_key])
        elif isinstance(value, str):
            parent[key] = draw.choice(
                (value + " ", value.upper(), value[1:], value + draw.choice(ODD_TEXTS))
            )
    text = json.dumps(root[0] if root else None).encode()
    if draw.random() < 0.05:  # deeper than Python's recursion limit
        text = text[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    if draw.random() < 0.05:
        text = text[:-1] + b", " + text[1:]  # repeat every name
    return text


def _places(value: object) -> Iterator[tuple]:
    """Yield (list or dict, index or name) for each value inside a JSON value, at any depth."""
    items = (
        enumerate(value)
        if isinstance(value, list)
        else value.items()
        if isinstance(value, dict)
        else ()
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _nested(depth: int, value: object) -> object:
    for _ in range(depth):
        value = [value]
    return value


def damaged_header(whole: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file with a damaged header: wrong names, dtypes, shapes, offsets or
    length."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length], whole[8 + length :]
    change = draw.randrange(4)
    # another dtype for one tensor, often with a shape that fits its number of bytes
    if change == 0:
        tensors = json.loads(header)
        entry = tensors[draw.choice([name for name in tensors if name != "__metadata__"])]
        entry["dtype"] = draw.choice(
            ("I32", "U32", "F32", "F8_E4M3", "C64", "F4", "BOOL", "F16", "BF16", "I64")
        )
        start, end = entry["data_offsets"]
        bits = int(re.sub(r"\D.*", "", entry["dtype"][1:]) or 8)
        if draw.random() < 0.8:
            entry["shape"] = [
                *entry["shape"][:-1],
                (end - start) * 8 // bits // max(1, math.prod(entry["shape"][:-1])),
            ]
        header = json.dumps(tensors).encode()
    elif change == 1:
        header = damaged_json(header, draw)
    elif change == 2:
        header = damaged(header, draw)
    stated_length = (
        draw.choice((length, 2**63, 2**64 - 1, 0, len(whole), 10**8))
        if change == 3
        else len(header)
    )
    return struct.pack("<Q", stated_length) + header + data


def damaged_lines(whole: bytes, draw: random.Random, damage: Callable | None = None) -> bytes:
    """Return the text with one damaged line.

    Its fields are removed, shuffled or repeated, or the line is repeated, removed, joined to the
    next one or changed to upper case. A function `damage` changes the line instead.
    """
    lines = whole.split(b"\n")
    index = draw.randrange(len(lines) - 1)
    if damage:
        return b"\n".join([*lines[:index], damage(lines[index], draw), *lines[index + 1 :]])
    fields = re.split(rb"(\t|@)", lines[index])
    other = draw.randrange(len(fields))
    replacements = (
        [b"".join(fields[:other] + fields[other + 1 :])],
        [b"".join(draw.sample(fields, len(fields)))],
        [lines[index] + b"".join(fields[other:])],
        [lines[index]] * 2,
        [],
        [lines[index] + lines.pop(index + 1)],
        [lines[index].upper()],
    )
    return b"\n".join([*lines[:index], *draw.choice(replacements), *lines[index + 1 :]])


def mixed(*damages: Callable) -> Callable:
    """Return a function that applies one of these functions, chosen at random."""
    return lambda whole, draw: draw.choice(damages)(whole, draw)


# ---- Limits


class Late(BaseException):
    """Raised if a case takes too long; a BaseException, so `except Exception` does not catch it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise Late if the block takes too long, and MemoryError if it takes too much memory."""

    def stop(*_):
        raise Late

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    limits = None
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def is_json(content: bytes) -> bool:
    """Return whether a text is a JSON object."""
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def has_header(content: bytes) -> bool:
    """Return whether a safetensors file starts with the length of a JSON header and the header."""
    return len(content) > 8 and is_json(content[8 : 8 + int.from_bytes(content[:8], "little")])


# ---- The loss of a loaded model

# more tokens than the window
IDS = torch.tensor([5, 300, 31, 7, 44, 60, 299, 12, 13, 14, 15, 16, 17, 77, 9, 8, 0])


def loss_of(model: TunedModel) -> float:
    """Return the loss of two texts. The target at each token is the token itself."""
    lengths = torch.tensor([len(IDS) - 1, 1])
    batch = Batch(IDS, lengths, torch.arange(len(IDS)), IDS, lengths)
    with torch.no_grad():
        loss = model.loss(batch, model.prompt_past()).item()
        assert model(batch).isfinite().all() or not math.isfinite(loss)
    return loss
