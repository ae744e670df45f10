"""What the runs of a study compute only once: the loaded base, and predictions without tuning.

Predictions without tuning are those of the untuned base, of the baselines and of the head alone.
Each is kept in a file, whose name is the hash of all that the predictions depend on. A single run
has such a folder too: if it is killed before its first checkpoint, the resumed run reads them.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neo_peft.encoding import Encoder
from neo_peft.errors import InputError
from neo_peft.formats.base import Base
from neo_peft.model import TunedModel
from neo_peft.runs.adapter_set import copy_sharing_matrices
from neo_peft.runs.loading import LoadedModel, load_base_for
from neo_peft.runs.too_large import refuse_too_large
from neo_peft.settings import Settings
from neo_peft.system import processes
from neo_peft.system.files import make_folders, read_checked_json, sha256_of, write_checked_json

SHARED = "shared"  # the folder's name, in a study's folder or among a run's checkpoints
# The version of what is computed. Raise it with each change of the code after which a model has
# other bits, for example of the order of sums, or a checkpoint has other fields: a run cannot be
# resumed with another version.
COMPUTATION = 3
VERSION = "version of neo_peft's computation"


class Shared:
    """The base that was loaded last, and the kept predictions in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._base: Base | None = None
        self._loaded_for: tuple = ()  # the settings that decided the base

    def base_for(self, settings: Settings) -> Base:
        """Return the base of a run, with a trunk of its own that shares the frozen matrices.

        A method that trains the base itself gets a newly loaded one. Only one base is kept, so that
        a study of several models never has two of them in memory.
        """
        refuse_too_large(settings, training=True)
        if settings.trains_base:
            return load_base_for(settings)
        wanted = settings.model, settings.precision, settings.quantize  # a study has one device
        if wanted != self._loaded_for:
            self._base, self._loaded_for = None, ()
            self._base, self._loaded_for = load_base_for(settings), wanted
        return dataclasses.replace(self._base, trunk=copy_sharing_matrices(self._base.trunk))

    def once(self, depends_on: dict, compute: Callable[[], Any]) -> Any:
        """Return a value of JSON: the kept one if there is one, else a computed one.

        depends_on: all that decides the value, as JSON. Several processes call this together.
        """
        path = self.folder / f"{sha256_of(depends_on)}.json"
        if (kept := processes.on_first_process(lambda: read_kept(path))) is not None:
            return kept["value"]
        value = compute()
        processes.on_first_process(lambda: keep(path, value))
        return value


def read_kept(path: Path) -> dict | None:
    """Return what a file keeps, or None if there is none. A damaged one is computed again."""
    try:
        return read_checked_json(path)
    except InputError:
        return None


def keep(path: Path, value: Any) -> None:
    make_folders(path.parent)
    write_checked_json(path, {"value": value})


# ---- What decides the bits of a model's predictions


def base_conditions(tuned: LoadedModel) -> dict:
    """Return what decides a base's outputs: its weights, and values of its config and tokenizer."""
    values = {f"base model's {name}": value for name, value in tuned.base.computed().items()}
    return {"base model": tuned.base.fingerprint, **values}


def computing_conditions(tuned: LoadedModel) -> dict:
    """Return where and how a model is computed."""
    return {
        VERSION: COMPUTATION,
        "device": tuned.model.device.type,
        "precision": tuned.precision,
        "quantisation of the base": tuned.base.quantize,
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "version of torch": str(torch.__version__),
        # Weights that are trained are multiplied by other products: see kernels/linear.py.
        "the base is trained": tuned.settings.trains_base,
    }


def label_conditions(encoder: Encoder) -> dict:
    """Return the labels, their texts, and how the best tags are chosen."""
    labels = [] if encoder.task.is_tagging else encoder.task.labels
    texts = [encoder.task.label_text(label, encoder.source_text) for label in labels]
    viterbi = encoder.viterbi
    return {"labels": encoder.task.labels, "label texts": texts, "viterbi": viterbi}


def head_digest(model: TunedModel) -> str | None:
    """Return a hash of the weights of a model's head; None without a head."""
    if model.head is None:
        return None
    tensors = [tensor.cpu().numpy().tobytes() for tensor in model.head.state_dict().values()]
    return hashlib.sha256(b"".join(tensors)).hexdigest()
