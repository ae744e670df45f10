"""The bundled sample: small files for three tasks, with a plain text format for each task."""

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
        if not request.wants(split):
            return []
        file = SAMPLE / task.name / f"{split}.txt"
        items = _read_blocks(file) if parse is parse_pair else None
        return lines.read_rows(file, parse, task.labels, items)

    return Splits(*map(read, ("train", "validation", "test")))


def parse_tagged(line: str, labels: Collection) -> dict:
    """Return the row of a sentence with marked entities, such as
    `[protein NF-kappa B] binds the [DNA gene] .`"""
    pieces = list(re.finditer(r"\[(\w+) ([^][]+)\]|[^][ ]+", line))
    if " ".join(piece[0] for piece in pieces) != line:
        expected = "words separated by one space, and marks such as [protein NF-kappa B]"
        raise ValueError(f"a wrong bracket or space in {line[:40]!r}; expected {expected}")
    tokens, tags = [], []
    for piece in pieces:
        kind, words = piece[1], (piece[2] or piece[0]).split(" ")
        tokens += map(lines.check_text, words)
        first = lines.check_label(labels, f"B-{kind}") if kind else "O"
        tags += [first, *[f"I-{kind}"] * (len(words) - 1)]
    return {"tokens": tokens, "tags": tags}


def parse_labelled(line: str, labels: Collection) -> dict:
    """Return the row of a label, a tab and a sentence."""
    label, sentence = lines.two_parts(line.partition("\t"), "a label, a tab and a sentence")
    return {"sentence": lines.check_text(sentence), "label": lines.check_label(labels, label)}


def parse_pair(block: list[str], labels: Collection) -> dict:
    """Return the row of three lines: a label and two sentences."""
    if len(block) != 3:
        raise ValueError(
            f"a block of {len(block)} lines; expected a label, two sentences, a blank line"
        )
    label, first, second = block
    return {"sentence1": first, "sentence2": second, "label": lines.check_label(labels, label)}


def _read_blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of each block, with the number of its first line. Blank lines separate
    blocks."""
    for blank, block in groupby(lines.read_lines(path), key=lambda item: not item[1]):
        if not blank:
            numbers, texts = zip(*block, strict=True)
            yield numbers[0], list(texts)
