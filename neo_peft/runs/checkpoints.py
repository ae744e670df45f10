"""Checkpoints: all that an unfinished run needs to go on to the same bits, in
RUN/checkpoints/step-N/.

    tensors.safetensors   the weights that train, AdamW's moments, the state of each random
    generator
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
from neo_peft.loop import State
from neo_peft.model import TunedModel
from neo_peft.runs.job import Scores
from neo_peft.system.files import (
    read_sealed,
    read_tensors,
    remove_folder,
    sha256,
    write_folder,
    write_sealed,
    write_tensors,
)

FOLDER, STATE, TENSORS, BEST = (
    "checkpoints",
    "state.json",
    "tensors.safetensors",
    "best.safetensors",
)
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

    @classmethod
    def of(cls, epoch: int, score: float, model: TunedModel) -> "Best":
        """Copy the weights of a model at the end of an epoch."""
        copies = {name: tensor.detach().clone() for name, tensor in model.trainable().items()}
        return cls(epoch, score, copies)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and fits its checksums; `record` is its state.json."""

    folder: Path
    record: dict

    @property
    def best(self) -> Best:
        kept = self.record["kept"]
        file = self.folder / BEST if kept["epoch"] else None
        return Best(kept["epoch"], kept["score"], file=file)

    @property
    def scores(self) -> Scores:
        return Scores(self.record["scores"], self.record["generated"])


def save(run: Path, model: TunedModel, state: State, best: Best, **record: object) -> None:
    """Write the checkpoint of this step, then drop the oldest. What `record` names goes into
    state.json."""
    generators = processes.gather(_generators())
    folder = run / FOLDER / f"step-{state.step}"
    record["kept"] = {"epoch": best.epoch, "score": best.score}
    processes.on_first_process(lambda: _write(folder, model, state, generators, best, record))
    if best.epoch:
        best.weights, best.file = None, folder / BEST


def _write(
    folder: Path,
    model: TunedModel,
    state: State,
    generators: list[dict[str, Tensor]],
    best: Best,
    record: dict,
) -> None:
    tensors = {f"weight {name}": parameter for name, parameter in model.trainable().items()}
    for name, parameter in model.trainable().items():
        tensors |= {
            f"{moment} {name}": value
            for moment, value in state.optimizer.state.get(parameter, {}).items()
        }
    for rank, of_rank in enumerate(generators):
        tensors |= {f"random {kind} {rank}": value for kind, value in of_rank.items()}

    def fill(temporary: Path) -> None:
        write_tensors(temporary / TENSORS, tensors)
        if best.weights:
            write_tensors(temporary / BEST, best.weights)
        elif best.file:
            link_or_copy(best.file, temporary / BEST)
        written = sorted(path.name for path in temporary.iterdir())
        write_sealed(
            temporary / STATE,
            {
                **{name: getattr(state, name) for name in NUMBERS},
                "scaler": state.scaler.state_dict(),
                **record,
                "files": {name: sha256(temporary / name) for name in written},
            },
        )

    # One of the same step may be there, from before its epoch was scored, or damaged.
    write_folder(folder, fill, anew=True)
    for old in numbered(folder.parent):
        if old not in numbered(folder.parent)[-KEPT:]:
            remove_folder(old)


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


def numbered(folder: Path) -> list[Path]:
    """List a run's checkpoints, the newest last."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest(run: Path, say: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """Find the newest checkpoint that fits its checksums; None where there is none at all.

    Raises InputError where there are some, and none fits: a run is never begun anew in silence.
    """
    problem = None
    for folder in reversed(numbered(run / FOLDER)):
        try:
            return _read(folder)
        except InputError as error:
            problem = problem or error
            say(f"note    {error}; the checkpoint before it is taken")
    if problem:
        raise problem
    return None


def _read(folder: Path) -> Checkpoint:
    record = read_sealed(folder / STATE)
    try:
        numbers = {name: (record[name], kind) for name, kind in NUMBERS.items()}
        numbers["kept epoch"], numbers["seconds"] = (
            (record["kept"]["epoch"], int),
            (record["seconds"], float),
        )
        numbers["threads"] = record["computed"]["threads"], int
        numbers |= {f"{name} of logs": (record["log"][name], int) for name in ("bytes", "timings")}
        for name, (value, kind) in numbers.items():
            if type(value) is not kind or not 0 <= value < 2**53:
                raise ValueError(f"{name} is {value!r}")
        sides = record["scores"], record["generated"]
        if type(record["kept"]["score"]) is not float or not all(
            isinstance(side, dict) for side in sides
        ):
            raise ValueError(
                f"the scores are {record['kept']['score']!r} and {str(record['scores'])[:40]}"
            )
        wanted = {TENSORS, BEST} if record["kept"]["epoch"] else {TENSORS}
        if record["files"].keys() != wanted:
            raise ValueError(f"it names the files {sorted(record['files'])}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / STATE} is no checkpoint's: {type(error).__name__}: {error}"
        ) from None
    for name, checksum in record["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != checksum:
            raise InputError(
                f"{folder / name} is missing, or was changed since it was written: its sha256 is "
                "another"
            )
    return Checkpoint(folder, record)


def restore(checkpoint: Checkpoint, model: TunedModel, state: State) -> None:
    """Put a checkpoint into a model and a state that were made for its run. Raise InputError where
    it does not fit."""
    path, weights = checkpoint.folder / TENSORS, model.trainable()
    tensors = read_tensors(path)
    put(path, {name: tensors.pop(f"weight {name}", None) for name in weights}, model)
    for name, parameter in weights.items():
        moments = {moment: tensors.pop(f"{moment} {name}", None) for moment in MOMENTS}
        if all(value is None for value in moments.values()):
            continue  # it never had a gradient
        for moment, value in moments.items():
            shape = () if moment == "step" else parameter.shape
            if value is None or not _fits(value, shape):
                raise InputError(
                    f"{path}: {moment} of {name} is missing, has another shape, or is not finite"
                )
        moments |= {moment: moments[moment].to(parameter.device) for moment in MOMENTS[1:]}
        state.optimizer.state[parameter] = moments
    for name in NUMBERS:
        setattr(state, name, checkpoint.record[name])
    try:
        state.scaler.load_state_dict(checkpoint.record["scaler"])
        torch.set_rng_state(tensors.pop(f"random cpu {processes.process_index}"))
        if (
            torch.cuda.is_available()
            and (device := tensors.pop(f"random cuda {processes.process_index}", None)) is not None
        ):
            torch.cuda.set_rng_state(device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint.folder} does not fit this run: {type(error).__name__}: {error}"
        ) from None
    if lost := [name for name in tensors if not name.startswith("random ")]:
        raise InputError(f"{path} also holds {len(lost)} tensors, the first is {min(lost)}")


def put_best(path: Path, model: TunedModel) -> None:
    """Put the best epoch's weights into the model."""
    put(path, read_tensors(path), model)


def put(path: Path, tensors: dict[str, Tensor | None], model: TunedModel) -> None:
    weights = model.trainable()
    for name in weights.keys() | tensors.keys():
        tensor = tensors.get(name)
        if name not in weights or tensor is None or not _fits(tensor, weights[name].shape):
            raise InputError(
                f"{path}: {name} is missing, has another shape than the run's, or is not finite"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def _fits(tensor: Tensor, shape: torch.Size | tuple) -> bool:
    return tensor.shape == shape and tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
