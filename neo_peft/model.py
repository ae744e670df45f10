"""Trunk, method and head: what is trained and evaluated.

A tuned model is a frozen GPT-Neo, with LoRA inside or a soft prompt in front, and what reads its
hidden states: a linear head of its own, or the language model's head, which is `wte` again. Logits
are computed at the positions that are read and nowhere else. The adapter is exactly the parameters
that require a gradient.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.gptneo import GPTNeo, Past
from neo_peft.packing import Packing
from neo_peft.prompt import SoftPrompt


@dataclass(frozen=True)
class Batch:
    """B packed examples."""

    ids: Tensor  # tokens (N,)
    lengths: Tensor  # tokens of each example (B,); on the CPU, where the layout is made
    target_indices: Tensor  # the indices into `ids` at which the model is read (M,)
    targets: Tensor  # the class or token to predict there (M,); -1 where no label is given
    target_counts: Tensor  # how often each example is read (B,)

    @property
    def labelled(self) -> int:  # the number of targets that are given
        return int((self.targets != -1).sum())

    def to(self, device: torch.device) -> "Batch":
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids", "target_indices", "targets")
        }
        return dataclasses.replace(self, **moved)


class HeadKind(StrEnum):
    """What reads a hidden state, under its published name."""

    CLASSIFIER = "classifier"  # a linear layer, at each word
    SCORE = "score"  # a linear layer, at the end of a text
    LM_HEAD = "lm_head"  # the language model's own, which is `wte` again


class TunedModel(nn.Module):
    """A trunk, a head under its published name, and an optional prompt in front of every text.

    A prompt has a length, the keys and values `past(trunk)`, and its `embeddings` (P, H), which are
    None where it trains its keys and values themselves.
    """

    def __init__(
        self,
        trunk: GPTNeo,
        head_kind: HeadKind = HeadKind.LM_HEAD,
        head: nn.Linear | None = None,
        prompt: SoftPrompt | None = None,
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

    @property
    def head(self) -> nn.Linear | None:
        """The linear head; None where the language model's own reads."""
        return None if self.head_kind == HeadKind.LM_HEAD else getattr(self, self.head_kind)

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    def autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype if enabled else None, enabled)

    def prefix(self) -> Past | None:
        """Return the prompt's keys and values, which evaluation computes once for all batches."""
        if self.prompt is None:
            return None
        with self.autocast():
            return self.prompt.past(self.transformer)

    def text_prefix(self, ids: list[int]) -> Past:
        """Return the keys and values of a text in front of every example: an instruction."""
        with self.autocast():
            embeddings = self.transformer.embed(torch.tensor(ids, device=self.device))
            return self.transformer.prefix(embeddings)

    def forward(self, batch: Batch, prefix: Past | None = None) -> Tensor:
        """Return the hidden states (M, H) at the positions that are read, behind a prefix that was
        computed before.

        Without one the prompt's rows, if there is a prompt, go through the layers in front of the
        batch's tokens, as they train: see prompt.py.
        """
        rows, start = None, 0  # the prompt's rows; the position of a text's first token
        if prefix is not None:
            start = prefix.length
        elif self.prompt is not None:
            rows, start = self.prompt.embeddings, len(self.prompt)
            prefix = self.prefix() if rows is None else None
        together = self.device.type != "cpu"
        packing = Packing.of_texts(batch.lengths, start, together, prompt=rows is not None)
        with self.autocast():
            embeddings, target_indices = self.transformer.embed(batch.ids), batch.target_indices
            if rows is not None:
                embeddings, target_indices = torch.cat([rows, embeddings]), target_indices + start
            return self.transformer(embeddings, packing.to(self.device), prefix, target_indices)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states (M, H): (M, K) of a linear head, else (M, V)."""
        with self.autocast():
            if self.head is None:
                return F.linear(hidden, self.transformer.wte.weight)
            return self.head(F.dropout(hidden, self.head_dropout, self.training))

    def loss(self, batch: Batch, prefix: Past | None = None) -> Tensor:
        """Return the cross-entropy summed over the batch's targets, in nats and fp32."""
        return self.loss_of(self(batch, prefix), batch.targets)

    def loss_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the same from hidden states (M, H) and targets (M,)."""
        logits = self.logits(hidden).float()
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter: exactly the parameters that require a gradient, head included."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


def draw_head(trunk: GPTNeo, classes: int) -> nn.Linear:
    """Draw a head (K, H): a normal with the model's own spread; its biases are zero."""
    head = nn.Linear(trunk.config.hidden_size, classes, device="meta")
    # The CPU generator's draws, whatever the device.
    weight = torch.empty(head.weight.shape).normal_(0, trunk.config.initializer_range)
    head.weight = nn.Parameter(weight.to(trunk.wte.weight.device))
    head.bias = nn.Parameter(torch.zeros(classes, device=trunk.wte.weight.device))
    return head


def head_of_words(trunk: GPTNeo, labels: list[list[int]]) -> nn.Linear:
    """Make a head (K, H) from the tokens of each label's words. A row is the mean of its tokens'
    rows of `wte`: what the language model would say."""
    wte = trunk.wte.weight
    head = nn.Linear(wte.shape[1], len(labels), bias=False, device="meta")
    rows = [wte[torch.tensor(ids, device=wte.device)].float().mean(0) for ids in labels]
    head.weight = nn.Parameter(torch.stack(rows).detach())
    return head
