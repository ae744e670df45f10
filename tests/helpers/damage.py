"""How the fuzz tests damage a file: bytes, JSON values, safetensors headers, lines; and what one
case may cost."""

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

import torch

from neo_peft.model import Batch, TunedModel

CASES = int(os.environ.get("NEO_PEFT_CASES", 300))  # of each kind of file
SECONDS, GIGABYTES = 10, 4  # what one case may take, beyond what the process holds already

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
    """Change some bytes, within the first `reach` if it is given: one to three times, each in one
    of seven ways."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        end = min(reach or len(whole), len(whole))
        start = draw.randrange(end + 1)
        size = draw.choice((1, 1, 2, 8, 40))
        behind, other = whole[start + size :], draw.randrange(end + 1)
        piece, elsewhere = whole[start : start + size], whole[other : other + size]
        odd = bytes(draw.choice(ODD_BYTES) for _ in range(size))
        ways = (
            bytes(byte ^ 1 << draw.randrange(8) for byte in piece) + behind,  # bits flipped
            behind,  # cut out
            b"" if draw.random() < 0.3 else piece[: size // 2] + behind,  # cut off, or short
            elsewhere + behind,  # another place's bytes over these
            elsewhere + piece + behind,  # and between these
            odd + piece + behind,
            odd[:4] * len(piece) + behind,
        )
        whole = whole[:start] + draw.choice(ways)
    return whole


def damaged_json(whole: bytes, draw: random.Random) -> bytes:
    """Change one to three values of a JSON text, at any depth: dropped, retyped, out of range,
    nested, twice."""
    root = [json.loads(whole)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(root))[1:] or [(root, 0)]
        holder, key = draw.choice(places)
        value, way = holder[key], draw.randrange(9)
        if way == 0:
            del holder[key]
        elif way == 1:
            holder[key] = draw.choice(ODD_NUMBERS)
        elif way == 2:
            holder[key] = draw.choice(ODD_TEXTS)
        elif way == 3:
            holder[key] = draw.choice(
                (None, True, False, [], {}, [value], {"": value}, [value, value])
            )
        elif way == 4:
            holder[key] = _nested(draw.choice((5, 40)), value)
        elif way == 5 and isinstance(value, int | float):
            holder[key] = draw.choice(
                (-value, value + 1, value * 2, value / 3, str(value), float(value))
            )
        elif way == 6 and isinstance(holder, dict):
            holder[draw.choice(ODD_TEXTS)] = holder.pop(key)
        elif way == 7:
            other, at = draw.choice(places)
            holder[key] = copy.deepcopy(other[at])  # which may be around it
        elif isinstance(value, str):
            holder[key] = draw.choice(
                (value + " ", value.upper(), value[1:], value + draw.choice(ODD_TEXTS))
            )
    text = json.dumps(root[0] if root else None).encode()
    if draw.random() < 0.05:  # deeper than Python's own stack
        text = text[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    if draw.random() < 0.05:
        text = text[:-1] + b", " + text[1:]  # every name twice
    return text


def _places(value: object) -> Iterator[tuple]:
    """Walk over all places of a JSON value that can hold another: (list or dict, index or name)."""
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
    """Change a safetensors file where it says what it holds: lying names, dtypes, shapes, offsets,
    lengths."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length], whole[8 + length :]
    way = draw.randrange(4)
    # one tensor as another dtype of the same size, or as another shape of as many numbers
    if way == 0:
        tensors = json.loads(header)
        entry = tensors[draw.choice([name for name in tensors if name != "__metadata__"])]
        entry["dtype"] = draw.choice(
            ("I32", "U32", "F32", "F8_E4M3", "C64", "F4", "BOOL", "F16", "BF16", "I64")
        )
        begin, end = entry["data_offsets"]
        bits = int(re.sub(r"\D.*", "", entry["dtype"][1:]) or 8)
        if draw.random() < 0.8:
            entry["shape"] = [
                *entry["shape"][:-1],
                (end - begin) * 8 // bits // max(1, math.prod(entry["shape"][:-1])),
            ]
        header = json.dumps(tensors).encode()
    elif way == 1:
        header = damaged_json(header, draw)
    elif way == 2:
        header = damaged(header, draw)
    stated = (
        draw.choice((length, 2**63, 2**64 - 1, 0, len(whole), 10**8)) if way == 3 else len(header)
    )
    return struct.pack("<Q", stated) + header + data


def damaged_lines(whole: bytes, draw: random.Random, damage: Callable | None = None) -> bytes:
    """Change one line: its fields dropped, swapped or doubled, the line twice, away or glued to the
    next; or, by `damage`, what stands in it."""
    lines = whole.split(b"\n")
    at = draw.randrange(len(lines) - 1)
    if damage:
        return b"\n".join([*lines[:at], damage(lines[at], draw), *lines[at + 1 :]])
    fields = re.split(rb"(\t|@)", lines[at])
    other = draw.randrange(len(fields))
    ways = (
        [b"".join(fields[:other] + fields[other + 1 :])],
        [b"".join(draw.sample(fields, len(fields)))],
        [lines[at] + b"".join(fields[other:])],
        [lines[at]] * 2,
        [],
        [lines[at] + lines.pop(at + 1)],
        [lines[at].upper()],
    )
    return b"\n".join([*lines[:at], *draw.choice(ways), *lines[at + 1 :]])


def mixed(*ways: Callable) -> Callable:
    return lambda whole, draw: draw.choice(ways)(whole, draw)


# ---- What holds


class Late(BaseException):
    """A case that takes too long; no `except Exception` may swallow it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Stop what hangs, and refuse memory that a small file cannot need."""

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    limits = None
    if sys.platform == "linux":
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + GIGABYTES * 2**30, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def has_header(content: bytes) -> bool:
    """Say whether a safetensors file's first bytes state the length of a header that is JSON."""
    return len(content) > 8 and is_json(content[8 : 8 + int.from_bytes(content[:8], "little")])


# ---- What comes of it

# longer than a window
IDS = torch.tensor([5, 300, 31, 7, 44, 60, 299, 12, 13, 14, 15, 16, 17, 77, 9, 8, 0])


def loss_of(model: TunedModel) -> float:
    """Compute the loss of two texts, each of whose tokens is said to be followed by itself."""
    lengths = torch.tensor([len(IDS) - 1, 1])
    batch = Batch(IDS, lengths, torch.arange(len(IDS)), IDS, lengths)
    with torch.no_grad():
        loss = model.loss(batch, model.prefix()).item()
        assert model(batch).isfinite().all() or not math.isfinite(loss)
    return loss
