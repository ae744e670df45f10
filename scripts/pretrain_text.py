"""The text of scripts/pretrain.py: documents drawn from files, their windows, and repeated text."""

import lzma
import re

import numpy as np

from neo_peft.errors import InputError

# punctuation, but not the marks in 1,000, 0.5 and IL-2
PUNCTUATION = re.compile(r"""([()\[\];:!?"]|,(?!\d)|\.(?=\s|$)|'s\b)""")


def read_documents(file: str) -> tuple[list[str], float]:
    """Return the documents and the weight of FILE or FILE:WEIGHT; the weight defaults to 1."""
    path, _, weight = file.partition(":")
    try:
        with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8") as lines:
            return [line.strip() for line in lines if line.strip()], float(weight or 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise InputError(
            f"{file} is not FILE or FILE:WEIGHT, UTF-8 text, plain or .xz: {error}"
        ) from None


def choose_documents(files: list[str], spaced: float, seed: int) -> list[str]:
    """Return documents of all files, drawn by the files' weights and shuffled. A share `spaced` of
    them has spaces around the punctuation."""
    random, chosen = np.random.default_rng(seed), []
    for documents, weight in map(read_documents, files):
        order = random.permutation(len(documents))
        chosen += [documents[order[i % len(order)]] for i in range(round(weight * len(order)))]
    for i, document in enumerate(chosen):
        if random.random() < spaced:
            chosen[i] = " ".join(PUNCTUATION.sub(r" \1 ", document).split())
    return [chosen[i] for i in random.permutation(len(chosen))]


class Windows:
    """The tokens of all documents as windows of `size` + 1 tokens: a window's last token is the
    next one's first. The end token stands before each document."""

    def __init__(self, documents: list[list[int]], end: int, size: int):
        self.stream = np.array([i for ids in documents for i in (end, *ids)], dtype=np.int32)
        self.end, self.size = end, size

    def batch(self, step: int, count: int, copies: float, seed: int) -> np.ndarray:
        """Return the `count` windows of a step (count, size + 1). Each epoch has its own order. A
        share `copies` of them, by chance, is replaced by repeated text."""
        number = (len(self.stream) - 1) // self.size
        epoch, first = divmod(step * count, number // count * count)
        chosen = np.random.default_rng((seed, epoch)).permutation(number)[first : first + count]
        tokens = self.stream[chosen[:, None] * self.size + np.arange(self.size + 1)]
        random = np.random.default_rng((seed, step, 1))
        for row in np.flatnonzero(random.random(count) < copies):
            tokens[row] = self.repeated(random)
        return tokens.astype(np.int64)

    def repeated(self, random: np.random.Generator) -> np.ndarray:
        """Return a window (size + 1,) of segments of the text, each followed by a copy. Half of the
        copies are exact. The others lack tokens, have other tokens in places, or begin with the
        segment's second half."""
        ids = []
        while len(ids) <= self.size:
            start = random.integers(max(1, len(self.stream) - 100))
            segment = self.stream[start : start + random.integers(15, 100)]
            copy = segment = segment[segment != self.end]
            changed = random.random(len(segment)) < 0.15
            match random.integers(6):
                case 3:
                    copy = segment[~changed]
                case 4:
                    others = self.stream[random.integers(len(self.stream), size=len(segment))]
                    copy = np.where(changed & (others != self.end), others, segment)
                case 5:
                    copy = np.roll(segment, random.integers(len(segment) + 1))
            ids += [self.end, *segment, *copy]
        return np.array(ids[: self.size + 1])
