"""`--class-weights`: the loss of a label's targets is multiplied by the label's weight.

A step's loss is the sum of the weighted losses, divided by the sum of the weights, as in torch's
weighted cross-entropy. The loss on validation has no weights.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from neo_peft.encoding import Encoder, Examples
from neo_peft.errors import InputError
from neo_peft.model import NO_LABEL, Batch, TunedModel
from neo_peft.settings import BALANCED
from neo_peft.tasks import Task


@dataclass(frozen=True)
class WeightedExamples(Examples):
    """Examples with a weight for each target."""

    weights: np.ndarray | None = None  # (targets,)

    @cached_property
    def labelled(self) -> np.ndarray:
        """The sum of the weights of each example's known targets (n,), in place of their number."""
        known = np.where(self.targets == NO_LABEL, 0.0, self.weights)
        parts = np.split(known, self.target_starts[1:-1])
        return np.array([math.fsum(part) for part in parts])

    def digest(self) -> str:
        return hashlib.sha256(super().digest().encode() + self.weights.tobytes()).hexdigest()


def label_weights(task: Task, rows: Sequence[dict], given: Sequence[str]) -> dict[str, float]:
    """Return the weight of each label. In a tagging task the labels are the tags.

    given: ("balanced",), or texts such as `A=2`; a label that is not named has the weight 1. For
    tags an entity type stands for its B- and its I-. A balanced weight is n / (K · count), for n
    targets in the training rows and K labels that they have.
    """
    if tuple(given) == (BALANCED,):
        counts = Counter(label for row in rows for label in task.labels_of(row) if label)
        total = counts.total() / len(counts)
        return {label: total / counts[label] if counts[label] else 1.0 for label in task.labels}
    weights = dict.fromkeys(task.labels, 1.0)
    pairs = [(name.strip(), value) for name, _, value in (text.rpartition("=") for text in given)]
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise InputError(f"--class-weights has {twice[0]} twice; give it one weight")
    for name, value in sorted(pairs, key=lambda pair: pair[0] in weights):  # types, then tags
        labels = [name] if name in weights else [f"{side}-{name}" for side in "BI"]
        labels = [label for label in labels if label in weights]
        if not labels:
            raise InputError(
                f"--class-weights {name}={value}: there is no label {name}; the labels are "
                f"{', '.join(task.labels)}"
            )
        weights |= dict.fromkeys(labels, float(value))
    return weights


def weigh(
    model: TunedModel, encoder: Encoder, examples: Examples, weights: dict[str, float]
) -> WeightedExamples:
    """Give a model the weights for its training, and return the examples with them."""
    values = np.array([weights[label] for label in encoder.task.labels], dtype=np.float32)
    if model.head is not None:
        by_target = np.append(values, np.float32(0))  # NO_LABEL is -1, the last entry
        model.target_weights = partial(of_classes, torch.from_numpy(by_target))
        of_targets = by_target[examples.targets]
    else:
        tokens = [tuple(encoder.label_tokens[label]) for label in encoder.task.labels]
        by_tokens = dict(zip(tokens, values.tolist(), strict=True))
        model.target_weights = partial(of_label_tokens, by_tokens)
        counts = np.diff(examples.target_starts)
        texts = np.split(examples.targets, examples.target_starts[1:-1])
        each = [by_tokens[tuple(text.tolist())] for text in texts]
        of_targets = np.repeat(np.array(each, dtype=np.float32), counts)
    fields = {name: getattr(examples, name) for name in Examples.__dataclass_fields__}
    return WeightedExamples(**fields, weights=of_targets.astype(np.float64))


def of_classes(by_target: Tensor, batch: Batch) -> Tensor:
    """Return the weight of each target of a batch (M,), which is a class."""
    return by_target.to(batch.targets.device)[batch.targets]


def of_label_tokens(by_tokens: dict[tuple[int, ...], float], batch: Batch) -> Tensor:
    """Return the weight of each target of a batch (M,), which is a token of its text's label."""
    texts = batch.targets.split(batch.target_counts.tolist())
    weights = torch.tensor([by_tokens[tuple(text.tolist())] for text in texts])
    return weights.repeat_interleave(batch.target_counts).to(batch.targets.device)


def note(weights: dict[str, float]) -> str:
    """Return the line that a run prints."""
    shown = ", ".join(f"{label} {weight:.3g}" for label, weight in weights.items())
    return f"class weights of the training loss: {shown}"
