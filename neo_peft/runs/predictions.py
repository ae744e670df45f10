"""A run's predictions for each row, in RUN/predictions/WHEN-SPLIT.jsonl. The run's scores can be
computed from them.

A line has the fields of the row, and `predicted`: a label, or a tag for each word. Where the model
generated text, the line also has the text as `generated`, and `predicted` is null where the text
starts with no label.
"""

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from neo_peft.errors import InputError
from neo_peft.runs.folder import check_unchanged, read_finished_run
from neo_peft.system.files import make_folders, write_text
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation

PREDICTIONS = "predictions"


class PredictionKind(NamedTuple):
    """Which predictions of a run."""

    # "before" or "after" tuning; "majority": the majority class; "baseline": see baselines.py;
    # "head_alone": see head_alone.py
    when: str
    generated: bool = False  # by free generation; else by a head or by scoring the labels

    @property
    def title(self) -> str:
        title = self.when.replace("_", " ")
        return f"{title}, generate" if self.generated else title

    def path(self, split: str) -> Path:
        """Return the path of their file, relative to the run's folder."""
        return Path(PREDICTIONS) / f"{self.when}{'-generate' * self.generated}-{split}.jsonl"

    def scores(self, record: dict) -> dict[str, dict]:
        """Return their scores for each split, from a run's record."""
        return record["generated" if self.generated else "scores"][self.when]


def prediction_kinds(record: dict) -> list[PredictionKind]:
    """Return the kinds of predictions that a run's record has scores for, in time order."""
    kinds = []
    for when in record["scores"]:
        kinds.append(PredictionKind(when))
        if when in record["generated"]:
            kinds.append(PredictionKind(when, generated=True))
    return kinds


def reported_split(splits: Container[str]) -> str:
    """Return the split whose scores are reported: test, or validation if there is no test."""
    return "test" if "test" in splits else "validation"


def write_predictions(
    folder: Path, kind: PredictionKind, split: str, rows: Sequence[dict], evaluation: "Evaluation"
) -> None:
    """Write the predictions for a split into a run's folder."""
    make_folders(folder / PREDICTIONS)
    write_rows(folder / kind.path(split), rows, evaluation.predicted, evaluation.generated)


def write_rows(
    path: Path, rows: Sequence[dict], predicted: Sequence, generated: Sequence[str] | None = None
) -> None:
    """Write rows with their predictions, one JSON object per line."""
    lines = []
    for index, (row, prediction) in enumerate(zip(rows, predicted, strict=True)):
        line = {**row, "predicted": prediction}
        line |= {"generated": generated[index]} if generated else {}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_predictions(folder: Path, kind: PredictionKind, split: str) -> list[dict]:
    """Return the rows of a split with a finished run's predictions.

    Raises InputError where their file is missing or was changed.
    """
    (record, task), path = read_finished_run(folder), folder / kind.path(split)
    if not path.is_file():
        files = ", ".join(name for name in record["files"] if name.startswith(PREDICTIONS))
        raise InputError(
            f"{path} is missing; the run has the predictions {files or 'none: train it again'}"
        )
    check_unchanged(folder, record, str(kind.path(split)))
    return read_rows(path, task)


def read_rows(path: Path, task: Task) -> list[dict]:
    """Return the rows of a file with predictions. Raise InputError for a wrong line."""
    rows = []
    # str.splitlines would also split at characters such as U+2028; that of bytes does not.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if not _has_prediction(task, rows[-1]):
            raise InputError(f"{path}, line {number}: no row of {task.name} with its prediction")
    return rows


def _has_prediction(task: Task, row: object) -> bool:
    """Return whether a value is a row of the task with a prediction, both with known labels."""
    fields = (*task.fields, "predicted")
    if not isinstance(row, dict) or not row.keys() >= {*fields}:
        return False
    *texts, gold, predicted = values = [row[field] for field in fields]
    if not task.is_tagging:
        return (
            all(isinstance(text, str) for text in texts)
            and gold in task.labels
            and predicted in (None, *task.labels)
        )
    return (
        all(isinstance(value, list) for value in values)
        and len(set(map(len, values))) == 1
        and all(isinstance(word, str) for value in values for word in value)
        and {*gold, *predicted} <= {*task.labels}
    )
