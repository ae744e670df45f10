"""The memory and the disk that a run needs, before it starts, from its tensors' shapes.

    base         the weights of the base as they are stored in memory
    optimizer    AdamW's two averages for each trained number
    activations  what autograd keeps from a forward pass (activations.py)
    logits       a part of them
    step         the peak of a training step, of the whole process
    scoring      the peak while predictions are computed

The batches are the run's own: the one with the most tokens in its first epoch, and in scoring the
one with the longest texts. pace.py measures the time.
"""

from dataclasses import dataclass

import numpy as np
import torch

from neo_peft import loop
from neo_peft.encoding import Examples
from neo_peft.gptneo import Config
from neo_peft.model import TunedModel
from neo_peft.runs.activations import FP32, INDEX, Kept, kept_in_step, prompt_tokens
from neo_peft.runs.checkpoints import MAX_CHECKPOINTS
from neo_peft.runs.too_large import LIBRARIES, base_bytes
from neo_peft.settings import Settings

# The memory that a process has on a CPU over the bytes of its tensors, measured: the C library
# keeps freed blocks between those in use. They are more where layers are computed again.
FRAGMENTED, FRAGMENTED_AGAIN = 1.3, 1.7


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs."""

    base: int  # the base's weights
    optimizer: int  # AdamW's averages
    activations: int  # kept for the backward pass of the largest batch
    logits: int  # of that batch
    step: int  # the peak of a training step
    scoring: int  # the peak while predictions are computed

    @property
    def peak(self) -> int:
        return max(self.step, self.scoring)


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's folder."""

    kept: int  # two checkpoints, each with the best weights, and the saved adapter
    most: int  # while a third checkpoint is written


def working_weight(config: Config, settings: Settings, dtype: torch.dtype) -> int:
    """Return the bytes of the memory in which quantised layers compute their weights."""
    if settings.quantize == "none":
        return 0
    return dtype.itemsize * config.hidden_size * max(config.hidden_size, config.intermediate_size)


def disk(model: TunedModel) -> Disk:
    """Return the bytes on disk of a run's checkpoints and of its adapter (see checkpoints.py)."""
    weights = sum(parameter.nbytes for parameter in model.trainable().values())
    checkpoint = 3 * weights + weights  # with AdamW's averages; the best epoch's weights
    kept = MAX_CHECKPOINTS * checkpoint + weights
    return Disk(kept, (MAX_CHECKPOINTS + 1) * checkpoint)


# ---- Batches


def step_batches(examples: Examples, settings: Settings) -> list[np.ndarray]:
    """Return the batches of the first epoch, as indices of examples."""
    order = loop.epoch_order(len(examples), settings.seed, epoch=1)
    steps = loop.split_into_steps(order, settings)
    batches = [batch for step in steps for batch in step.batches if len(batch)]
    return batches or [np.array([0])]  # of several processes, one can have no examples


def tokens_of(examples: Examples, batch: np.ndarray) -> int:
    return int(examples.lengths[batch].sum())


def largest(examples: Examples, batches: list[np.ndarray]) -> np.ndarray:
    """Return the batch with the most tokens."""
    return max(batches, key=lambda batch: tokens_of(examples, batch))


def longest_texts(examples: Examples, size: int) -> np.ndarray:
    """Return the batch of the longest texts, which is scored first."""
    return np.argsort(examples.lengths, kind="stable")[-size:]


# ---- Memory


def memory_of(model: TunedModel, examples: dict[str, Examples], settings: Settings) -> Memory:
    """Return the memory of a run with these settings. The model can be on the meta device."""
    config = model.transformer.config
    dtype = torch.float32 if settings.trains_base else model.compute_dtype
    base = base_bytes(config, settings, dtype)
    trained = sum(parameter.nbytes for parameter in model.trainable().values())
    adapter = 0 if settings.trains_base else trained
    always = base + adapter + 2 * trained + working_weight(config, settings, dtype)
    outside, factor = LIBRARIES, FRAGMENTED
    if model.device.type not in ("cpu", "meta"):
        outside, factor = 0, 1
    elif settings.checkpoint_activations:
        factor = FRAGMENTED_AGAIN
    train = examples["train"]
    batch = largest(train, step_batches(train, settings))
    targets = int(np.diff(train.target_starts)[batch].sum())
    kept = kept_in_step(model, train.lengths[batch].tolist(), targets)
    peaks = Peaks(model, settings, tokens_of(train, batch) + prompt_tokens(model), targets)
    kept_bytes = peaks.kept_after_forward(kept)
    scored = [part for name, part in examples.items() if name != "train"]
    return Memory(
        base,
        2 * trained,
        kept_bytes,
        kept.logits,
        int(outside + always + peaks.step(kept, factor)),
        int(outside + always + factor * max(map(peaks.scoring, scored), default=0)),
    )


class Peaks:
    """The peaks of a training step and of scoring, without the weights, in bytes of tensors."""

    def __init__(self, model: TunedModel, settings: Settings, tokens: int, targets: int):
        self.model, self.config, self.settings = model, model.transformer.config, settings
        self.tokens, self.targets = tokens, targets
        self.width = model.compute_dtype.itemsize

    def kept_after_forward(self, kept: Kept) -> int:
        """Return the bytes that are kept. With `--checkpoint-activations` these are the inputs of
        the layers."""
        if not self.settings.checkpoint_activations:
            return kept.total
        inputs = len(kept.layers) * FP32 * self.tokens * self.config.hidden_size
        return inputs + INDEX * self.targets + kept.inputs + kept.head

    def step(self, kept: Kept, factor: float = 1.0) -> int:
        """Return the peak of a step, with `factor` for all but gradients. It is the largest of
        these:

        - all that is kept, and the two gradients of the logits
        - when the backward pass reaches a layer: what the layers up to it keep, the gradients of
          the layers after it, and its own temporary tensors
        - when all gradients are there: AdamW's temporary tensor is as large as they are
        """
        gradients, checkpointed = self.gradients(), self.settings.checkpoint_activations
        peaks = [(self.kept_after_forward(kept) + 2 * kept.logits, 0), (0, 2 * sum(gradients))]
        one_input = FP32 * self.tokens * self.config.hidden_size
        last = len(kept.layers) - 1
        for layer in range(last + 1):
            before = kept.inputs + sum(kept.layers[: layer + 1])
            if checkpointed:  # inputs of the layers, and what this layer computes again
                before = kept.inputs + (layer + 1) * one_input + kept.layers[layer]
            rows = self.targets if layer == last else self.tokens
            peaks.append((before + self.temporary(rows), sum(gradients[layer:])))
        if checkpointed:  # the forward pass keeps all keys and values until its end
            inputs = (last + 1) * one_input
            peaks.append((inputs + self.keys_values(self.tokens) + self.temporary(self.tokens), 0))
        return int(max(factor * activations + other for activations, other in peaks))

    def gradients(self) -> list[int]:
        """Return the bytes of the gradients of each layer; of the head's with the last one."""
        layers = [
            sum(p.nbytes for p in block.parameters() if p.requires_grad)
            for block in self.model.transformer.h
        ]
        every = sum(parameter.nbytes for parameter in self.model.trainable().values())
        return [*layers, every - sum(layers)]

    def keys_values(self, tokens: int) -> int:
        return 2 * self.config.num_layers * self.width * tokens * self.config.hidden_size

    def temporary(self, rows: int) -> int:
        """Return the bytes of the tensors that a layer computes and does not keep, at its MLP."""
        config = self.config
        return rows * (self.width * config.intermediate_size + 4 * FP32 * config.hidden_size)

    def scoring(self, examples: Examples) -> int:
        """Return the peak of scoring: keys and values of all layers, and a layer's tensors; for the
        loss the logits, twice."""
        batch = longest_texts(examples, self.settings.batch_size)
        tokens = tokens_of(examples, batch) + self.settings.prefix_length
        targets = int(np.diff(examples.target_starts)[batch].sum())
        head, config = self.model.head, self.config
        classes = config.vocab_size if head is None else head.out_features
        layer = self.keys_values(tokens) + self.temporary(tokens)
        return max(layer, 2 * FP32 * targets * classes)
