"""What predict prints for an example: text, JSON, words in columns, or a line of a table."""

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from neo_peft.corpora.new_files import NewFile
from neo_peft.errors import InputError
from neo_peft.metrics import entities
from neo_peft.runs import tables
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.runs.texts import Used

FORMATS = ("text", "jsonl", "conll", "csv")


class Example(NamedTuple):
    """An example of the input."""

    number: int  # of its line, from 1
    row: dict  # the row of the line
    starts: list[int] | None  # where each word starts in the row's text; None without a text
    # The columns of its file: the values of a table's line, or a list for each word. [] without.
    given: list


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


class Writer:
    """Writes predictions in a format. Raises InputError if the format has no place for them."""

    def __init__(self, form: str, tasks: Sequence[Task], new_file: NewFile | None):
        self.form, self.header = form, []
        if form == "conll" and not all(task.is_tagging for task in tasks):
            raise InputError("--format conll has a tag for each word: it needs a tagging task")
        if form == "csv" and (len(tasks) > 1 or tasks[0].is_tagging):
            raise InputError("--format csv has a label for each text: it needs one run that labels")
        if form == "csv":
            fields = new_file.heading if new_file else tasks[0].fields[:-1]
            self.header = [*fields, "predicted", "probability"]

    def text(self, task: Task, example: Example, row: dict) -> str:
        """Return an example's text in the format; before the first line of a table its heading."""
        if self.form == "jsonl":
            return as_json(row)
        if self.form == "text":
            return as_text(task, row, in_colour=sys.stdout.isatty())
        if self.form == "conll":
            return as_columns(example, row)
        lines = [self.header] if self.header else []
        self.header = []
        label = row["predicted"]
        texts = example.given or [row[field] for field in task.fields[:-1]]
        return as_table([*lines, [*texts, label, row["probabilities"][label]]])


def as_columns(example: Example, row: dict) -> str:
    """Return the words of a sentence, one a line, with their given columns and the predicted tag;
    then a blank line. A word that was cut has the tag `_`."""
    has_columns = bool(example.given) and isinstance(example.given[0], list)
    words = example.given if has_columns else [[token] for token in row["tokens"]]
    tags = (tag or "_" for tag in row["predicted"])
    return "".join("\t".join([*cells, tag]) + "\n" for cells, tag in zip(words, tags, strict=True))


def as_table(rows: list[list]) -> str:
    """Return lines of a table, with quotes where a value needs them."""
    csv.writer(file := io.StringIO(), lineterminator="\n").writerows(rows)
    return file.getvalue().removesuffix("\n")


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


def as_text(task: Task, row: dict, in_colour: bool) -> str:
    """Return a row for a reader: with marked entities, or with the label before the text."""
    if task.is_tagging:
        tags = [tag for tag in row["predicted"] if tag is not None]
        kinds = tables.entity_types(task) if in_colour else ()
        shown = tables.marked(row["tokens"][: len(tags)], tags, kinds)
        return shown + (" …" if len(tags) < len(row["tokens"]) else "")
    label = row["predicted"]
    shown = f"{label} {row['probabilities'][label]:.2f}"
    shown = tables.paint(shown, task.labels.index(label)) if in_colour else shown
    return f"{shown}  " + " | ".join(row[field] for field in task.fields[:-1])
