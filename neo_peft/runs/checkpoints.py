"""Checkpoints: all that an unfinished run needs to go on to the same bits, in
RUN/checkpoints/step-N/.

    tensors.safetensors   the weights that train, AdamW's moments, the random generators' states
    best.safetensors      the weights of the best epoch so far, once there is one
    state.json            all numbers: where training stands, scores, what the run computes with,
                          checksums

A checkpoint appears in one step, whole, and the last two are kept. One that does not fit its
checksums is passed over for the one before it.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from neo_peft import processes
from neo_peft.errors import InputError
from neo_peft.formats.adapter import copy_into
from neo_peft.loop import State
from neo_peft.model import TunedModel
from neo_peft.runs.folder import unchanged
from neo_peft.runs.job import Job, Scores
from neo_peft.system.files import (
    read_checked_json,
    read_tensors,
    remove_folder,
    sha256,
    write_checked_json,
    write_folder,
    write_tensors,
)

CHECKPOINTS, STATE = "checkpoints", "state.json"
TENSORS, BEST = "tensors.safetensors", "best.safetensors"
KEPT = 2
NUMBERS = {item.name: item.type for item in fields(State) if item.type in (int, float)}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, of each parameter


@dataclass
class Best:
    """The best epoch so far.

    epoch: its number, from 1; 0 before there is one.
    score: its score on validation.
    weights: copies of what trains, until a checkpoint has written them.
    file: the checkpoint's file that holds them from then on.
    """

    epoch: int = 0
    score: float = -1.0
    weights: dict[str, Tensor] | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and fits its checksums; `record` is its state.json."""

    folder: Path
    record: dict

    @property
    def best(self) -> Best:
        best = self.record["best"]
        file = self.folder / BEST if best["epoch"] else None
        return Best(best["epoch"], best["score"], file=file)

    @property
    def scores(self) -> Scores:
        return {name: self.record.get(name) for name in ("scores", "generated")}


def save(job: Job, state: State, best: Best, **record: object) -> None:
    """Write the checkpoint of this step, then drop the oldest. What `record` names goes into
    state.json."""
    folder, tensors = job.output.folder / CHECKPOINTS / f"step-{state.step}", {}
    for name, parameter in job.tuned.model.trainable().items():
        tensors[f"weight {name}"] = parameter
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment} {name}"] = value
    for index, generators in enumerate(processes.gather(_generators())):
        tensors |= {f"random {kind} {index}": value for kind, value in generators.items()}

    def fill(temporary: Path) -> None:
        write_tensors(temporary / TENSORS, tensors)
        if best.weights:
            write_tensors(temporary / BEST, best.weights)
        elif best.file:
            link_or_copy(best.file, temporary / BEST)
        whole = {
            **{name: getattr(state, name) for name in NUMBERS},
            "scaler": state.scaler.state_dict(),
            **record,
            "seconds": job.output.seconds(),
            "best": {"epoch": best.epoch, "score": best.score},
            "files": {path.name: sha256(path) for path in sorted(temporary.iterdir())},
        }
        write_checked_json(temporary / STATE, whole)

    def write() -> None:
        # One of the same step may be there, from before its epoch was scored, or damaged.
        write_folder(folder, fill, overwrite=True)
        for old in list_checkpoints(folder.parent)[:-KEPT]:
            remove_folder(old)

    processes.on_first_process(write)
    if best.epoch:
        best.weights, best.file = None, folder / BEST


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never written again a second name; copy it where the file system
    cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _generators() -> dict[str, Tensor]:
    """Take the state of the random generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def list_checkpoints(folder: Path) -> list[Path]:
    """List a run's checkpoints, the newest last."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(
    run: Path, print_line: Callable[[str], None] = lambda line: None
) -> Checkpoint | None:
    """Find the newest checkpoint that fits its checksums; None where there is none at all.

    Raises InputError where there are some, and none fits: a run is never begun anew in silence.
    """
    problem = None
    for folder in reversed(list_checkpoints(run / CHECKPOINTS)):
        try:
            return _read(folder)
        except InputError as error:
            problem = problem or error
            print_line(f"note    {error}; the checkpoint before it is taken")
    if problem:
        raise problem
    return None


def _read(folder: Path) -> Checkpoint:
    record = read_checked_json(folder / STATE)
    try:
        best, log = record["best"], record["log"]
        numbers = [(name, record[name], kind) for name, kind in NUMBERS.items()] + [
            ("best epoch", best["epoch"], int),
            ("seconds", record["seconds"], float),
            ("threads", record["computed"]["threads"], int),
            ("bytes of logs", log["bytes"], int),
            ("timings of logs", log["timings"], int),
        ]
        for name, value, kind in numbers:
            if type(value) is not kind or not 0 <= value < 2**53:
                raise ValueError(f"{name} is {value!r}")
        if type(best["score"]) is not float:
            raise ValueError(f"the best score is {best['score']!r}")
        if record["files"].keys() != ({TENSORS, BEST} if best["epoch"] else {TENSORS}):
            raise ValueError(f"it names the files {sorted(record['files'])}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / STATE} is no checkpoint's: {type(error).__name__}: {error}"
        ) from None
    for name in record["files"]:
        unchanged(folder, record, name)
    return Checkpoint(folder, record)


def restore(checkpoint: Checkpoint, model: TunedModel, state: State) -> None:
    """Put a checkpoint into a model and a state that were made for its run. Raise InputError where
    it does not fit."""
    path, weights = checkpoint.folder / TENSORS, model.trainable()
    tensors = read_tensors(path)
    load_weights(path, {name: tensors.pop(f"weight {name}", None) for name in weights}, model)
    for name, parameter in weights.items():
        moments = {moment: tensors.pop(f"{moment} {name}", None) for moment in MOMENTS}
        if all(value is None for value in moments.values()):
            continue  # it never had a gradient
        for moment, value in moments.items():
            counts = moment == "step"
            _require_fit(value, () if counts else parameter.shape, f"{path}: {moment} of {name}")
            moments[moment] = value if counts else value.to(parameter.device)
        state.optimizer.state[parameter] = moments
    for name in NUMBERS:
        setattr(state, name, checkpoint.record[name])
    try:
        state.scaler.load_state_dict(checkpoint.record["scaler"])
        torch.set_rng_state(tensors[f"random cpu {processes.process_index}"])
        on_cuda = tensors.get(f"random cuda {processes.process_index}")
        if torch.cuda.is_available() and on_cuda is not None:
            torch.cuda.set_rng_state(on_cuda)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint.folder} does not fit this run: {type(error).__name__}: {error}"
        ) from None
    if lost := [name for name in tensors if not name.startswith("random ")]:
        raise InputError(f"{path} also holds {len(lost)} tensors, the first is {min(lost)}")


def load_weights(path: Path, tensors: dict[str, Tensor | None], model: TunedModel) -> None:
    """Put the weights of a checkpoint's file into the model."""
    weights = model.trainable()
    for name in weights.keys() | tensors.keys():
        shape = weights[name].shape if name in weights else None
        _require_fit(tensors.get(name), shape, f"{path}: {name}")
    copy_into(model, tensors)


def _require_fit(tensor: Tensor | None, shape: tuple | None, what: str) -> None:
    """Refuse a tensor that the run cannot have, or one that it lacks (None); `shape` is None for
    one that it does not know."""
    fits = tensor is not None and tensor.shape == shape and tensor.dtype == torch.float32
    if not fits or not tensor.isfinite().all():
        raise InputError(f"{what} is missing, has another shape than the run's, or is not finite")
