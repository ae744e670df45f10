"""A finished run of a study, as the results see it."""

from dataclasses import dataclass
from pathlib import Path

from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.tasks import Task


@dataclass
class FinishedRun:
    """A finished run of a study."""

    value: object  # the swept value
    seed: int  # its seed
    folder: Path  # its folder
    record: dict  # run.json
    task: Task  # its task

    @property
    def scores(self) -> dict[str, dict]:
        """The scores as {when: {split: scores}}; see `PredictionKind`."""
        return self.record["scores"]

    @property
    def validation(self) -> float:
        """The score on validation by the task's metric."""
        return self.scores["after"]["validation"][self.task.metric]

    def predictions(self, kind: PredictionKind, split: str) -> list[dict]:
        """Return the rows of a split with predictions of the run."""
        return read_predictions(self.folder, kind, split)
