"""A run's answers, row by row: RUN/predictions/WHEN-SPLIT.jsonl, from which its scores can be made
again.

A line is the row itself with what was `predicted`: a label, null where an answer names none, or a
tag for each word; and with what was `said`, where text was generated.
"""

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from neo_peft.errors import InputError
from neo_peft.runs.folder import finished, unchanged
from neo_peft.system.files import make_folders, write_text
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation

PREDICTIONS = "predictions"


class PredictionKind(NamedTuple):
    """Which answers of a run: "before" or "after" tuning ("majority": the majority class's), and
    whether they were chosen among the labels or generated freely."""

    when: str
    generated: bool = False

    @property
    def title(self) -> str:
        return f"{self.when}, generate" if self.generated else self.when

    def path(self, split: str) -> Path:
        """Return their file in the run's folder."""
        return Path(PREDICTIONS) / f"{self.when}{'-generate' * self.generated}-{split}.jsonl"

    def scores(self, record: dict) -> dict[str, dict]:
        """Return their scores by split, from a run's record."""
        return record["generated" if self.generated else "scores"][self.when]


def prediction_kinds(record: dict) -> list[PredictionKind]:
    """Return the kinds of answers that a run's record has scores of, in the order of time."""
    found = []
    for when in record["scores"]:
        found.append(PredictionKind(when))
        if when in record["generated"]:
            found.append(PredictionKind(when, generated=True))
    return found


def reported_split(splits: Container[str]) -> str:
    """Return the split whose scores are reported: test, or validation where there is no test."""
    return "test" if "test" in splits else "validation"


def write_predictions(
    folder: Path, answers: PredictionKind, split: str, rows: Sequence[dict], found: "Evaluation"
) -> None:
    """Leave what a run answered in its folder."""
    make_folders(folder / PREDICTIONS)
    write_rows(folder / answers.path(split), rows, found.predicted, found.generated)


def write_rows(
    path: Path, rows: Sequence[dict], predicted: Sequence, generated: Sequence[str] | None = None
) -> None:
    """Write rows with their answers, one JSON object a line."""
    lines = []
    for index, (row, answer) in enumerate(zip(rows, predicted, strict=True)):
        line = {**row, "predicted": answer} | ({"generated": generated[index]} if generated else {})
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_predictions(folder: Path, answers: PredictionKind, split: str) -> list[dict]:
    """Return what a finished run answered on a split. Raise InputError where it is missing or was
    changed."""
    (record, task), path = finished(folder), folder / answers.path(split)
    if not path.is_file():
        there = ", ".join(name for name in record["files"] if name.startswith(PREDICTIONS))
        raise InputError(
            f"{path} is missing: of its answers the run left {there or 'none; train it again'}"
        )
    unchanged(folder, record, str(answers.path(split)))
    rows = []
    # Bytes, whose lines end at a newline alone: text's also end at characters such as U+2028.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if not _is_answered(task, rows[-1]):
            raise InputError(f"{path}, line {number}: no row of {task.name} with its answer")
    return rows


def _is_answered(task: Task, row: object) -> bool:
    """Say whether a value is a row of the task with labels that the task has, and an answer of the
    same kind."""
    fields = (*task.fields, "predicted")
    if not isinstance(row, dict) or not row.keys() >= {*fields}:
        return False
    *texts, gold, answer = values = [row[field] for field in fields]
    if not task.tags_words:
        return (
            all(isinstance(text, str) for text in texts)
            and gold in task.labels
            and answer in (None, *task.labels)
        )
    return (
        all(isinstance(one, list) for one in values)
        and len(set(map(len, values))) == 1
        and all(isinstance(word, str) for one in values for word in one)
        and {*gold, *answer} <= {*task.labels}
    )
