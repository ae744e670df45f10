"""What predict prints for an example: its row with the prediction, as JSON or in colour."""

import json
import math
import sys
from typing import TYPE_CHECKING, NamedTuple

from neo_peft.metrics import entities
from neo_peft.runs import tables
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.runs.texts import Used


class Example(NamedTuple):
    """An example of the input."""

    number: int  # of its line, from 1
    row: dict  # the row of the line
    starts: list[int] | None  # where each word starts in the row's text; None without a text


def with_prediction(
    task: Task,
    example: Example,
    predicted: str | list[str | None],
    probabilities: list[float],
    used: "Used | None",
) -> dict:
    """Return a row with its prediction and the probabilities; with `used` as `cut` if its text was
    cut."""
    row = example.row
    # A row's own field with this name would look as if its text had been cut.
    cut = {"cut": used} if used is not None or "cut" in row else {}
    if not task.is_tagging:
        by_label = {label: round(p, 4) for label, p in zip(task.labels, probabilities)}
        return row | {"predicted": predicted, "probabilities": by_label} | cut
    tagged = predicted[: len(probabilities)]  # the words that were used
    found = spans(row, tagged, probabilities, example.starts)
    return row | {"predicted": predicted, "spans": found} | cut


def spans(
    row: dict, tags: list[str], probabilities: list[float], starts: list[int] | None = None
) -> list[dict]:
    """Return the predicted entities as JSON objects. `starts` is where each word starts in the
    row's text, if the example is a text.

    type: the entity type.
    text: the text between `start` and `end` as it was given; of a JSON row the words, joined by
      spaces.
    first, last: the indices of the first and last word.
    start, end: the position in the text in characters, if the example is a text.
    probability: the product of the probabilities of its tags.
    """
    found = []
    for kind, first, last in entities(tags):
        words = row["tokens"][first : last + 1]
        span = {"type": kind, "text": " ".join(words), "first": first, "last": last}
        if starts:
            start, end = starts[first], starts[last] + len(words[-1])
            span |= {"text": row["text"][start:end], "start": start, "end": end}
        span["probability"] = round(math.prod(probabilities[first : last + 1]), 4)
        found.append(span)
    return found


def as_json(row: dict) -> str:
    """Return a row as one line of JSON. All characters outside ASCII are escaped if standard output
    cannot encode one of them, as half of a surrogate pair, or if one ends a line, as U+2028."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
        is_printable = len(text.splitlines()) == 1
    except UnicodeEncodeError:
        is_printable = False
    return text if is_printable else json.dumps(row)


def coloured(task: Task, row: dict) -> str:
    """Return a row for a terminal: with entities in colour, or with the label before the text."""
    if task.is_tagging:
        tags = [tag for tag in row["predicted"] if tag is not None]
        shown = tables.marked(row["tokens"][: len(tags)], tags, tables.entity_types(task))
        return shown + (" …" if len(tags) < len(row["tokens"]) else "")
    label = row["predicted"]
    shown = tables.paint(f"{label} {row['probabilities'][label]:.2f}", task.labels.index(label))
    return f"{shown}  " + " | ".join(row[field] for field in task.fields[:-1])
