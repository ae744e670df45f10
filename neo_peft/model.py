"""The model that is trained and evaluated: trunk, method and head.

A tuned model is a GPT-Neo with a head. It can have LoRA in its layers and a soft prompt before the
text, or train all its weights. The head is a new linear layer, or the language model head, whose
weights are those of `wte`. Logits are computed at the target positions only. The adapter is exactly
the parameters that require a gradient.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.gptneo import GPTNeo, Past
from neo_peft.kernels.linear import linear
from neo_peft.packing import Packing

NO_LABEL = -1  # the target if a row has no label


@dataclass(frozen=True)
class Batch:
    """B packed examples with M target positions."""

    ids: Tensor  # token ids (N,)
    lengths: Tensor  # number of tokens of each example (B,); on the CPU, where packings are made
    target_indices: Tensor  # the target positions, as indices into `ids` (M,)
    targets: Tensor  # the class or token to predict at each of them (M,), or NO_LABEL
    target_counts: Tensor  # number of target positions of each example (B,)

    @property
    def labelled(self) -> int:
        """The number of known targets."""
        return int((self.targets != NO_LABEL).sum())

    def to(self, device: torch.device) -> "Batch":
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids", "target_indices", "targets")
        }
        return dataclasses.replace(self, **moved)


class HeadKind(StrEnum):
    """The kinds of head, with their names in transformers' models."""

    CLASSIFIER = "classifier"  # a linear layer that predicts a tag for each word
    SCORE = "score"  # a linear layer that predicts a label at the end of the text
    LM_HEAD = "lm_head"  # the language model head, whose weights are those of `wte`


class TunedModel(nn.Module):
    """A trunk, a head, and optionally a prompt in front of every text.

    A prompt is a module with a length, `embeddings` (P, H), and a method `past(trunk)`, which
    returns its keys and values. `embeddings` is None if keys and values are trained directly.
    """

    def __init__(
        self,
        trunk: GPTNeo,
        head_kind: HeadKind = HeadKind.LM_HEAD,
        head: nn.Linear | None = None,
        prompt: nn.Module | None = None,
        head_dropout: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.transformer = trunk
        self.head_kind = head_kind
        if head is not None:
            self.add_module(head_kind, head)
        self.prompt = prompt
        self.head_dropout = head_dropout
        self.compute_dtype = compute_dtype
        # From a batch to weights of its targets (M,), for training: see runs/class_weights.py.
        self.target_weights: Callable[[Batch], Tensor] | None = None

    @property
    def head(self) -> nn.Linear | None:
        """The linear head; None if the model uses the language model head."""
        return None if self.head_kind == HeadKind.LM_HEAD else getattr(self, self.head_kind)

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    def autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype if enabled else None, enabled)

    def prompt_past(self) -> Past | None:
        """Return the prompt's keys and values, or None. Evaluation computes them only once."""
        if self.prompt is None:
            return None
        with self.autocast():
            return self.prompt.past(self.transformer)

    def instruction_past(self, ids: list[int]) -> Past:
        """Return the keys and values of an instruction (token ids) in front of every text."""
        with self.autocast():
            embeddings = self.transformer.embed(torch.tensor(ids, device=self.device))
            return self.transformer.past_of(embeddings)

    def forward(self, batch: Batch, past: Past | None = None) -> Tensor:
        """Return the hidden states (M, H) at the target positions of a batch.

        In evaluation, pass `prompt_past()` or `instruction_past()`. In training pass nothing: the
        prompt's embeddings then go through the layers too and are trained (see prompt.py).
        """
        prompt, start = None, 0  # prompt embeddings (P, H); the position of a text's first token
        if past is not None:
            start = past.length
        elif self.prompt is not None:
            prompt, start = self.prompt.embeddings, len(self.prompt)
            past = self.prompt_past() if prompt is None else None  # a prefix has no embeddings
        together = self.device.type != "cpu"
        packing = Packing.of_texts(batch.lengths, start, together, prompt=prompt is not None)
        with self.autocast():
            x, target_indices = self.transformer.embed(batch.ids), batch.target_indices
            if prompt is not None:
                x, target_indices = torch.cat([prompt, x]), target_indices + start
            return self.transformer(x, packing.to(self.device), past, target_indices)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states (M, H): (M, K) with a linear head, else (M, V)."""
        with self.autocast():
            if self.head is None:
                return linear(hidden, self.transformer.wte.weight)
            return self.head(F.dropout(hidden, self.head_dropout, self.training))

    def loss(self, batch: Batch, past: Past | None = None) -> Tensor:
        """Return the fp32 cross-entropy in nats, summed over the batch's known targets; each is
        multiplied by its weight, if the model has weights."""
        weights = self.target_weights(batch) if self.target_weights else None
        return self.loss_of(self(batch, past), batch.targets, weights)

    def loss_of(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the same loss from hidden states (M, H), targets (M,) and weights (M,)."""
        logits, kind = self.logits(hidden).float(), "sum" if weights is None else "none"
        losses = F.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction=kind)
        return losses if weights is None else losses @ weights

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter: all parameters that require a gradient, head included."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


def draw_head(trunk: GPTNeo, classes: int) -> nn.Linear:
    """Return a head (K, H): normal weights with std `initializer_range`, and zero biases."""
    head = nn.Linear(trunk.config.hidden_size, classes, device="meta")
    # Draw on the CPU, so that every device gets the same values.
    weight = torch.empty(head.weight.shape).normal_(0, trunk.config.initializer_range)
    head.weight = nn.Parameter(weight.to(trunk.wte.weight.device))
    head.bias = nn.Parameter(torch.zeros(classes, device=trunk.wte.weight.device))
    return head


def head_from_label_words(trunk: GPTNeo, label_ids: list[list[int]]) -> nn.Linear:
    """Return a head (K, H) from the token ids of each label's words. Its weights for a label are
    the mean of these tokens' embeddings, so it starts close to the language model's prediction."""
    wte = trunk.wte.weight
    head = nn.Linear(wte.shape[1], len(label_ids), bias=False, device="meta")
    means = [wte[torch.tensor(ids, device=wte.device)].float().mean(0) for ids in label_ids]
    head.weight = nn.Parameter(torch.stack(means).detach())
    return head
