"""A finished run, loaded to look into it: its model, its untuned base, and the rows to score."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from neo_peft.corpora.splits import limit_rows
from neo_peft.encoding import Examples
from neo_peft.errors import InputError
from neo_peft.formats.base import Base
from neo_peft.look.ablations import Ablation, ablations
from neo_peft.look.spectra import WeightChange, weight_changes
from neo_peft.model import TunedModel
from neo_peft.runs.adapter_set import copy_sharing_matrices
from neo_peft.runs.folder import RUN, read_finished_run, refuse_unfinished
from neo_peft.runs.loading import LoadedModel, load, load_base_for
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.settings import Settings
from neo_peft.tasks import Task

# By default so many rows are scored that tokens · parameters of all passes is at most WORK: on
# neo-mini 220,000 tokens, which take seconds. But no fewer rows than LEAST_ROWS.
WORK, LEAST_ROWS = 1.2e12, 100
AFTER = PredictionKind("after")


@dataclass(frozen=True)
class Subject:
    """A loaded run."""

    folder: Path  # its folder
    record: dict  # run.json
    task: Task  # with its labels
    tuned: LoadedModel  # the tuned model, with its encoder
    base: Base  # its base; the trunk is untuned
    changes: dict[str, WeightChange]  # of its linear layers
    parts: list[Ablation]  # of its adapter, which can be switched off
    split: str  # the split that is scored
    rows: list[dict]  # of the split, those that are scored
    examples: Examples  # the same rows, encoded

    @property
    def model(self) -> TunedModel:
        return self.tuned.model


def load_subject(folder: Path, settings: Settings, limit: int | None) -> Subject:
    """Load a run, its untuned base, and the rows that are scored."""
    record, task = read_record_of_run(folder)
    tuned, base = load_both(folder, settings)
    changes = weight_changes(tuned.model.transformer, base.trunk)
    parts = ablations(tuned.model, base.trunk, changes)
    if not parts:
        raise InputError(
            f"{folder} has no adapter to look into: it trained a head alone; name a run of another "
            "method"
        )
    split = reported_split(AFTER.scores(record))
    rows = read_predictions(folder, AFTER, split)
    rows = limit_rows(rows, limit or affordable_rows(tuned, rows, len(parts) + 1))
    examples = tuned.encoder(rows)
    return Subject(folder, record, task, tuned, base, changes, parts, split, rows, examples)


def affordable_rows(tuned: LoadedModel, rows: list[dict], passes: int) -> int:
    """Return the number of rows that are scored by default, in so many passes over them."""
    tokens_of_row = tuned.encoder(rows).lengths.sum() / len(rows)
    work_of_row = passes * tokens_of_row * tuned.total
    return max(LEAST_ROWS, int(WORK / work_of_row))


def read_record_of_run(folder: Path) -> tuple[dict, Task]:
    """Return a run's record and task. Raise InputError for a folder without a finished run."""
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}")
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        runs_inside = sorted(folder.glob(f"*/{RUN}"))
        advice = f"; name a run inside it, such as {runs_inside[0].parent}" if runs_inside else ""
        raise InputError(
            f"{folder} has no {RUN}: only a finished run of train.py can be looked into{advice}"
        )
    record, task = read_finished_run(folder)
    for name in ("rows", "scores", "model"):
        if name not in record:
            raise InputError(f"{folder / RUN} has no {name}: train the run again")
    return record, task


def load_both(folder: Path, settings: Settings) -> tuple[LoadedModel, Base]:
    """Return the tuned model and the untuned base. They share their frozen matrices."""
    base = load_base_for(settings)
    trunk = copy.deepcopy if settings.trains_base else copy_sharing_matrices
    return load(folder, settings, replace(base, trunk=trunk(base.trunk))), base
