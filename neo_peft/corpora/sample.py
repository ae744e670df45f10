"""The bundled sample: small files for three tasks, each in a plain format of its own."""

import re
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from neo_peft.corpora import lines
from neo_peft.corpora.splits import Request, Splits
from neo_peft.defaults import ASSETS

SAMPLE = ASSETS / "sample"


def load(request: Request) -> Splits:
    """Load a task's files, one for each split."""
    task = request.task
    parse = {"ner": parse_tagged, "sentiment": parse_labelled, "similarity": parse_pair}[task.name]

    def read(split: str) -> list[dict]:
        file = SAMPLE / task.name / f"{split}.txt"
        items = _blocks_of(file) if parse is parse_pair else None
        return lines.read_rows(file, parse, task.labels, items)

    return Splits(*map(read, ("train", "validation", "test")))


def parse_tagged(line: str, labels: Collection) -> dict:
    """Return the row of a marked sentence, such as `[protein NF-kappa B] binds the [DNA gene] .`"""
    pieces = list(re.finditer(r"\[(\w+) ([^][]+)\]|[^][ ]+", line))
    if " ".join(piece[0] for piece in pieces) != line:
        expected = "words split by single spaces, and marks such as [protein NF-kappa B]"
        raise ValueError(f"a stray bracket or space in {line[:40]!r}; expected {expected}")
    tokens, tags = [], []
    for piece in pieces:
        kind, words = piece[1], (piece[2] or piece[0]).split(" ")
        tokens += map(lines.text_of, words)
        first = lines.one_of(labels, f"B-{kind}") if kind else "O"
        tags += [first, *[f"I-{kind}"] * (len(words) - 1)]
    return {"tokens": tokens, "tags": tags}


def parse_labelled(line: str, labels: Collection) -> dict:
    """Return the row of a label, a tab and a sentence."""
    label, sentence = lines.two_parts(line.partition("\t"), "a label, a tab and a sentence")
    return {"sentence": lines.text_of(sentence), "label": lines.one_of(labels, label)}


def parse_pair(block: list[str], labels: Collection) -> dict:
    """Return the row of three lines: a label and two sentences."""
    if len(block) != 3:
        raise ValueError(
            f"a block of {len(block)} lines; expected a label, two sentences, a blank line"
        )
    label, first, second = block
    return {"sentence1": first, "sentence2": second, "label": lines.one_of(labels, label)}


def _blocks_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines between blank lines, with the number of the first."""
    for blank, block in groupby(lines.lines_of(path), key=lambda item: not item[1]):
        if not blank:
            numbers, texts = zip(*block, strict=True)
            yield numbers[0], list(texts)
