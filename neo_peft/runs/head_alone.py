"""The linear head alone, as a baseline: what it learns without the method.

Tags are predicted by a new linear head, and so are labels with `--readout head`. The head by itself
can learn much of a task. So it is trained a second time, on the untuned base, as `--method head`
does. The base stays frozen: its hidden states at the target positions are computed once and stored
in a temporary file, which is mapped into memory.
"""

import copy
import tempfile
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from neo_peft import loop
from neo_peft.decoding import Evaluation, evaluate, score
from neo_peft.encoding import Examples, collate
from neo_peft.methods import HEAD, untuned_model
from neo_peft.model import TunedModel
from neo_peft.packing import Packing
from neo_peft.progress import no_progress
from neo_peft.runs import selection
from neo_peft.runs.folder import flags_of
from neo_peft.runs.job import Job
from neo_peft.runs.shared import base_conditions, computing_conditions, head_digest
from neo_peft.settings import owners

LEARNING_RATE = HEAD.defaults["learning_rate"]
# It is scored by default if it costs less than this share of the run, and if its file is not large.
LARGEST_SHARE, LARGEST_FILE = 0.1, 2**31


def is_scored(job: Job) -> bool:
    """Return whether the run scores the head alone."""
    wanted = has_equal_training(job) and (job.settings.head_baseline or is_cheap(job))
    return has_head_beside_method(job) and wanted


def has_head_beside_method(job: Job) -> bool:
    """Return whether the run trains a head together with a method."""
    return job.tuned.model.head is not None and job.settings.parts != (HEAD,)


def has_equal_training(job: Job) -> bool:
    """Return whether the head alone is trained as long as the run's head.

    With `--adapter` the run's weights have been trained before.
    """
    return job.settings.adapter is None


def is_cheap(job: Job) -> bool:
    """Return whether the head alone costs little compared with the run, by numbers of tokens.

    A step goes forward and backward through the model, scoring only forward. The head alone needs
    each hidden state once; its own steps cost almost nothing.
    """
    tokens = {split: int(part.lengths.sum()) for split, part in job.examples.items()}
    settings, train, validation = job.settings, tokens["train"], tokens["validation"]
    steps = selection.total_steps(job.examples["train"], settings)
    epochs = steps / selection.steps_per_epoch(job.examples["train"], settings)
    scored = sum(tokens.values()) - train
    run = epochs * (2 * train + validation) + 2 * scored
    states = sum(len(part.targets) for part in job.examples.values())
    file_size = 4 * states * job.tuned.model.transformer.config.hidden_size
    return train + scored < LARGEST_SHARE * run and file_size <= LARGEST_FILE


def predict_with_head_alone(job: Job) -> dict[str, list]:
    """Train the head alone. Return its predictions for the rows of each split but train.

    It has the run's settings, except the method and the learning rate, which is that of `--method
    head`. So the runs of a study that differ in these alone share the predictions.
    """
    unused = ("method", "learning_rate")
    flags = {
        name: value
        for name, value in flags_of(job.settings).items()
        if name not in unused and not owners(name)
    }
    depends_on = {
        "kind": "head_alone",
        "flags": flags,
        "learning_rate": LEARNING_RATE,
        **base_conditions(job.tuned),
        **computing_conditions(job.tuned),
        "head weights": head_digest(job.tuned.model),
        "base_dtype": str(job.tuned.model.transformer.wte.weight.dtype),
        "examples": {split: part.digest() for split, part in job.examples.items()},
    }
    return job.shared.once(depends_on, lambda: train_and_predict(job))


def train_and_predict(job: Job) -> dict[str, list]:
    """Return what `predict_with_head_alone` returns, computed now."""
    folder = job.output.folder  # on the disk of the first process, which others need not share
    with tempfile.TemporaryFile(dir=folder if folder.is_dir() else None) as file:
        states, examples = store_states(job, file)
        model = TunedModel(
            StoredStates(states, job.tuned.model.device),
            job.tuned.model.head_kind,
            copy.deepcopy(job.tuned.model.head),
            head_dropout=job.settings.head_dropout,
            compute_dtype=job.tuned.model.compute_dtype,
        )
        model.target_weights = job.tuned.model.target_weights
        train_head(job, model, examples)
        return {
            split: evaluation_of(job, model, examples[split]).predicted
            for split in job.scored_splits
        }


def evaluation_of(
    job: Job, model: TunedModel, examples: Examples, with_loss: bool = False
) -> Evaluation:
    """Return the predictions of the head for examples."""
    size = job.settings.batch_size
    return evaluate(model, job.tuned.encoder, examples, batch_size=size, with_loss=with_loss)


def train_head(job: Job, model: TunedModel, examples: dict[str, Examples]) -> None:
    """Train the head, and give it the weights that a run with these settings keeps."""
    settings = replace(job.settings, learning_rate=LEARNING_RATE)
    state, kept = loop.make_state(model, settings), selection.Kept()
    train = examples["train"]
    for event in selection.steps(model, train, settings, state, kept, no_progress):
        if not isinstance(event, selection.Scoring):
            continue
        with_loss = settings.metric == selection.LOSS
        validation = evaluation_of(job, model, examples["validation"], with_loss)
        scores = score(job.task, job.rows["validation"], validation.predicted)
        value = selection.epoch_score(job.task, settings, scores, validation.loss)
        if kept.add(event, value, settings.keep):
            kept.weights = copy.deepcopy(model.head.state_dict())
    model.head.load_state_dict(kept.weights)


# ---- The stored hidden states


class StoredStates(nn.Module):
    """Stands in for the trunk. A token id is the index of a stored hidden state."""

    def __init__(self, states: Tensor, device: torch.device):
        super().__init__()
        self.states = states  # (all targets, H), in a file
        self.wte = nn.Embedding(0, states.shape[1], device=device).requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.states[ids.cpu()].to(ids.device)

    def forward(self, x: Tensor, packing: Packing, prefix: None, target_indices: Tensor) -> Tensor:
        return x[target_indices]


@torch.inference_mode()
def store_states(job: Job, file: BinaryIO) -> tuple[Tensor, dict[str, Examples]]:
    """Compute the untuned base's hidden states at all target positions.

    Returns them (all targets, H), mapped from the file, and the examples of each split, whose
    tokens are now the indices of these hidden states.
    """
    model = untuned_model(job.tuned.model).eval()
    size, chosen, examples, count = job.settings.batch_size, [], {}, 0
    for split, part in job.examples.items():
        examples[split], count = as_states(part, count), count + len(part.targets)
        order = range(len(part))
        chosen += [(part, order[start : start + size]) for start in order[::size]]
    tokens = [int(part.lengths[indices].sum()) for part, indices in chosen]
    progress = job.output.counting()
    for part, indices in progress(chosen, "head alone", sum(tokens), tokens):
        hidden = model(collate(part, indices).to(model.device))
        file.write(hidden.float().cpu().numpy().tobytes())
    file.flush()
    shape = count, model.transformer.config.hidden_size
    return torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape)), examples


def as_states(examples: Examples, first: int) -> Examples:
    """Return the examples with one token for each target: the index of its hidden state, counted
    from `first`."""
    starts = examples.target_starts
    indices = np.arange(len(examples.targets))
    within = indices - np.repeat(starts[:-1], np.diff(starts))
    return replace(examples, ids=first + indices, starts=starts, target_indices=within)
