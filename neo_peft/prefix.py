"""Prefix tuning: trained keys and values of P positions in front of every text, in every layer; the
model is frozen.

Li & Liang 2021, section 4; without their MLP, in every layer as in P-tuning v2 (Liu et al. 2022,
section 3.2). In layer l, a head's query q at a token attends to the prefix and to the text's keys k
and values v up to this token:

    softmax([q K_lᵀ, q kᵀ]) [V_l; v]          K_l, V_l (P, head_dim) are trained, for each head

The prefix has the positions 0 … P − 1, and every text starts at position P, as with a soft prompt
(prompt.py). There only the first layer's input is trained, and the layers compute keys and values
from it. Here they are trained themselves: 2 · layers times as many numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neo_peft import prompt
from neo_peft.gptneo import GPTNeo, Past

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings
    from neo_peft.tasks import Task


class Prefix(nn.Module):
    """The keys and values, `keys_values` (P, 2 · layers · H) in fp32: for each position layer 0's
    keys of all heads, layer 0's values, layer 1's keys, …, as in peft's files."""

    embeddings = None  # none are trained: see TunedModel

    def __init__(self, past: Past):
        super().__init__()
        pairs = zip(past.keys, past.values, strict=True)
        parts = torch.stack([tensor[0] for pair in pairs for tensor in pair])  # (2L, heads, P, D)
        in_order = parts.detach().float().permute(2, 0, 1, 3)
        self.keys_values = nn.Parameter(in_order.flatten(1).clone())

    def __len__(self) -> int:
        return len(self.keys_values)

    def past(self, trunk: GPTNeo) -> Past:
        """Return the prefix, which comes before the keys and values of every text. Under autocast
        it has their dtype."""
        parts, heads, device = self.keys_values, trunk.config.num_heads, self.keys_values.device
        if torch.is_autocast_enabled(device.type):
            parts = parts.to(torch.get_autocast_dtype(device.type))
        parts = parts.view(len(self), 2 * trunk.config.num_layers, heads, -1).permute(1, 2, 0, 3)
        keys, values = parts[0::2, None].unbind(), parts[1::2, None].unbind()  # (1, heads, P, D)
        return Past(keys, values, torch.arange(len(self), device=device)[None])


# ---- Prefix tuning as a method (see methods.py)


@torch.no_grad()
def apply(
    model: TunedModel, settings: Settings, task: Task, tokenize: Callable[[str], list[int]]
) -> None:
    """Give a model the prefix of a run's settings.

    It starts as the keys and values of a soft prompt. With `--prompt-init text` the model therefore
    answers exactly as with this text in front. Two starts differ from those of a prompt:
      random: normal, with the mean and the standard deviation of each layer's keys, and of its
        values, for random tokens
      zeros: zeros
    """
    init, trunk = settings.prompt_init, model.transformer
    if init == "zeros" or trunk.wpe.weight.is_meta:  # without data, only the numbers are counted
        model.prompt = Prefix(zero_past(trunk, settings.prompt_length))
        return
    start = replace(settings, prompt_init="vocab") if init == "random" else settings
    prompt.apply(model, start, task, tokenize)
    past = model.prompt_past()
    model.prompt = Prefix(past.map(draw_like, past.positions) if init == "random" else past)


def zero_past(trunk: GPTNeo, length: int) -> Past:
    """Return keys and values of `length` positions that are zero."""
    config, device = trunk.config, trunk.wpe.weight.device
    shape = 1, config.num_heads, length, config.hidden_size // config.num_heads
    zeros = (torch.zeros(shape, device=device),) * config.num_layers
    return Past(zeros, zeros, torch.arange(length, device=device)[None])


def draw_like(tensor: Tensor) -> Tensor:
    """Return normal numbers with a tensor's mean and standard deviation, drawn on the CPU, so that
    every device gets the same."""
    return tensor.mean() + tensor.std() * torch.randn(tensor.shape).to(tensor)
