"""Checkpoints: save an unfinished run, and restore it so that it ends with identical bits.

The folder of a checkpoint is RUN/checkpoints/step-N/, with the files

    tensors.safetensors   the trainable weights, AdamW's moments, the random generators' states
    best.safetensors      the kept weights, once validation was scored (see `Kept`)
    state.json            the training state, the scores before tuning, the conditions that a
                          resumed run must keep, the lengths of the logs, the files' checksums

A checkpoint is written under a temporary name and then renamed, so that it is always complete. The
last two are kept. If a file of the newest one was changed, the one before it is used.

RUN/checkpoints/shared/ has the predictions without tuning, until the run is finished (shared.py).
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.adapter import copy_into
from neo_peft.loop import State
from neo_peft.model import TunedModel
from neo_peft.runs.folder import CHECKPOINTS, check_unchanged
from neo_peft.runs.job import Job, Scores
from neo_peft.runs.selection import Kept
from neo_peft.runs.shared import COMPUTATION, VERSION
from neo_peft.system import processes
from neo_peft.system.files import (
    make_folders,
    read_checked_json,
    read_tensors,
    remove_folder,
    require_space,
    sha256,
    write_checked_json,
    write_folder,
    write_tensors,
)

STATE = "state.json"
TENSORS, BEST = "tensors.safetensors", "best.safetensors"
MAX_CHECKPOINTS = 2
# The numbers of the training state: {name: int or float}.
STATE_NUMBERS = {item.name: item.type for item in fields(State) if item.type in (int, float)}
KEPT_NUMBERS = {item.name: item.type for item in fields(Kept) if item.type in (int, float)}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each parameter


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, and whose checksums are right."""

    folder: Path  # where its files are
    record: dict  # the content of its state.json

    @property
    def kept(self) -> Kept:
        kept = {name: self.record["kept"][name] for name in KEPT_NUMBERS}
        return Kept(**kept, file=self.folder / BEST if kept["epoch"] else None)

    @property
    def scores(self) -> Scores:
        return {name: self.record.get(name) for name in ("scores", "generated")}


def save(job: Job, state: State, kept: Kept, **record: object) -> None:
    """Write the checkpoint of this step, then remove all but the last two.

    record: more fields of state.json.
    """
    folder, tensors = job.output.folder / CHECKPOINTS / f"step-{state.step}", {}
    for name, parameter in job.tuned.model.trainable().items():
        tensors[f"weight {name}"] = parameter
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment} {name}"] = value
    for index, generators in enumerate(processes.gather(_random_states())):
        tensors |= {f"random {device} {index}": value for device, value in generators.items()}

    def fill(temporary: Path) -> None:
        write_tensors(temporary / TENSORS, tensors)
        if kept.weights:
            write_tensors(temporary / BEST, kept.weights)
        elif kept.file:
            link_or_copy(kept.file, temporary / BEST)
        content = {
            **{name: getattr(state, name) for name in STATE_NUMBERS},
            "scaler": state.scaler.state_dict(),
            **record,
            "seconds": job.output.seconds(),
            "kept": {name: getattr(kept, name) for name in KEPT_NUMBERS},
            "files": {path.name: sha256(path) for path in sorted(temporary.iterdir())},
        }
        write_checked_json(temporary / STATE, content)

    def write() -> None:
        make_folders(folder.parent)
        new = [*tensors.values(), *(kept.weights or {}).values()]
        require_space(folder.parent, sum(tensor.nbytes for tensor in new), "a checkpoint")
        # A checkpoint of this step can exist: damaged, or from before its epoch was scored.
        write_folder(folder, fill, overwrite=True)
        for old in list_checkpoints(folder.parent)[:-MAX_CHECKPOINTS]:
            remove_folder(old)

    processes.on_first_process(write)
    if kept.epoch:
        kept.weights, kept.file = None, folder / BEST


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, which is never written again, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _random_states() -> dict[str, Tensor]:
    """Return the states of the random generators that dropout uses, by device."""
    states = {"cpu": torch.get_rng_state()}
    return states | {name: device.get_rng_state() for name, device in _accelerators().items()}


def _accelerators() -> dict[str, ModuleType]:
    """Return torch's modules of the devices that are there and have generators of their own."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return {name: getattr(torch, name) for name, available in there.items() if available}


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last."""
    paths = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(
    run: Path, print_line: Callable[[str], None] = lambda line: None
) -> Checkpoint | None:
    """Return the newest checkpoint that is not damaged, or None where the run has no checkpoint.

    Raises InputError where all checkpoints are damaged: the user must decide to start again.
    """
    first_error = None
    for folder in reversed(list_checkpoints(run / CHECKPOINTS)):
        try:
            return _read_checkpoint(folder)
        except InputError as error:
            first_error = first_error or error
            print_line(f"note    {error}; trying the checkpoint before it")
    if first_error:
        raise first_error
    return None


def _read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder. Raise InputError where a file or a number is wrong."""
    record = read_checked_json(folder / STATE)
    _check_version(folder, record.get("computed"))
    try:
        kept, log = record["kept"], record["log"]
        counts = [name for name in KEPT_NUMBERS if name != "score"]
        numbers = [(name, record[name], kind) for name, kind in STATE_NUMBERS.items()] + [
            *((f"kept {name}", kept[name], int) for name in counts),
            ("seconds", record["seconds"], float),
            ("threads", record["computed"]["threads"], int),
            ("bytes of logs", log["bytes"], int),
            ("timings of logs", log["timings"], int),
        ]
        for name, value, kind in numbers:
            most = 1024 if name == "threads" else 2**53  # the limit of --threads
            if type(value) is not kind or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}")
        if type(kept["score"]) is not float:
            raise ValueError(f"the kept score is {kept['score']!r}")
        if record["files"].keys() != ({TENSORS, BEST} if kept["epoch"] else {TENSORS}):
            raise ValueError(f"its files are {sorted(record['files'])}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / STATE} is not the state of a checkpoint: {type(error).__name__}: {error}"
        ) from None
    for name in record["files"]:
        check_unchanged(folder, record, name)
    return Checkpoint(folder, record)


def _check_version(folder: Path, computed: object) -> None:
    """Raise InputError if the checkpoint was written by code that computes something else."""
    if isinstance(computed, dict) and (version := computed.get(VERSION)) != COMPUTATION:
        raise InputError(
            f"{folder} was written by another version of neo_peft: its computation has the number "
            f"{version or 1}, here it is {COMPUTATION}; finish the run with that version, or start "
            "anew"
        )


def restore(checkpoint: Checkpoint, model: TunedModel, state: State) -> None:
    """Load a checkpoint into a model and a training state. Raise InputError if it does not fit."""
    path, weights = checkpoint.folder / TENSORS, model.trainable()
    tensors = read_tensors(path)
    load_weights(path, {name: tensors.pop(f"weight {name}", None) for name in weights}, model)
    for name, parameter in weights.items():
        moments = {moment: tensors.pop(f"{moment} {name}", None) for moment in MOMENTS}
        if all(value is None for value in moments.values()):
            continue  # the parameter has had no gradient so far
        for moment, value in moments.items():
            is_count = moment == "step"
            shape = () if is_count else parameter.shape
            _check_tensor(value, shape, f"{path}: {moment} of {name}")
            moments[moment] = value if is_count else value.to(parameter.device)
        state.optimizer.state[parameter] = moments
    for name in STATE_NUMBERS:
        setattr(state, name, checkpoint.record[name])
    try:
        state.scaler.load_state_dict(checkpoint.record["scaler"])
        torch.set_rng_state(tensors[f"random cpu {processes.process_index}"])
        for name, device in _accelerators().items():
            random_state = tensors.get(f"random {name} {processes.process_index}")
            if random_state is not None:
                device.set_rng_state(random_state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint.folder} does not fit this run: {type(error).__name__}: {error}"
        ) from None
    if unexpected := [name for name in tensors if not name.startswith("random ")]:
        raise InputError(
            f"{path} has {len(unexpected)} unexpected tensors, the first is {min(unexpected)}"
        )


def load_weights(path: Path, tensors: dict[str, Tensor | None], model: TunedModel) -> None:
    """Load the weights from a checkpoint's file into the model.

    tensors: by parameter name; None for a missing one.
    """
    weights = model.trainable()
    for name in weights.keys() | tensors.keys():
        shape = weights[name].shape if name in weights else None
        _check_tensor(tensors.get(name), shape, f"{path}: {name}")
    copy_into(model, tensors)


def _check_tensor(tensor: Tensor | None, shape: tuple | None, what: str) -> None:
    """Raise InputError unless a tensor is finite, in fp32, and has the run's shape.

    tensor: None for a missing one.
    shape: None where the run has no such tensor.
    """
    fits = tensor is not None and tensor.shape == shape and tensor.dtype == torch.float32
    if not fits or not tensor.isfinite().all():
        raise InputError(f"{what} is missing, has another shape than the run's, or is not finite")
