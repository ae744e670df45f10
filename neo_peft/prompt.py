"""A soft prompt: P trained embeddings in front of every text; the model is frozen.

Lester et al. 2021, section 2:

    h = trunk([p_0 … p_(P−1), wte[x_0], wte[x_1], …])        at the positions 0, 1, …

The prompt has the positions 0 … P − 1, and every text starts at position P. With a causal mask the
prompt does not attend to the text (in the paper's T5 it does), so its keys and values are the same
for every example. All texts use them, computed once: values and gradients are exact. (With LoRA
dropout, a batch's examples share the prompt's dropout masks. The expected gradient is the same.)

In evaluation `SoftPrompt.past` computes the keys and values once for all batches. In training the
prompt changes at every step, so its embeddings go through the layers together with the batch's
tokens (`TunedModel.forward`): equal up to rounding, a few percent faster (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neo_peft.errors import InputError
from neo_peft.methods import PROMPT

if TYPE_CHECKING:
    from neo_peft.gptneo import GPTNeo, Past
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings
    from neo_peft.tasks import Task


class SoftPrompt(nn.Module):
    """The prompt embeddings, `embeddings` (P, H) in fp32."""

    def __init__(self, embeddings: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().float().clone())

    def __len__(self) -> int:
        return len(self.embeddings)

    def past(self, trunk: GPTNeo) -> Past:
        """Return the prompt's keys and values, which come before those of every text."""
        return trunk.past_of(self.embeddings)


def initial_embeddings(
    wte: Tensor, length: int, init: str, text_ids: list[int], label_ids: list[int]
) -> Tensor:
    """Return the prompt embeddings (P, H) before training (Lester et al. 2021, section 3.2).

    They are embeddings of tokens from `wte` (V, H), or random. The values of `init`:
      text: the tokens of a text, repeated or cut to P tokens
      vocab: P random tokens, all different if P <= V
      labels: the tokens of the label words, then random tokens
      random: normal, with the mean and standard deviation of `wte`
    """
    if init not in (choices := PROMPT.flags["prompt_init"]):
        raise InputError(f"prompt_init must be one of {', '.join(choices)}, not {init!r}")
    if init == "random":
        mean, std = wte.float().mean(), wte.float().std()
        return mean + std * torch.randn(length, wte.shape[1]).to(wte.device)
    if init == "text":
        ids = (text_ids * length)[:length]
    else:
        ids = label_ids[:length] if init == "labels" else []
        ids = ids + torch.randperm(len(wte))[: length - len(ids)].tolist()
        while len(ids) < length:  # the prompt is longer than the vocabulary
            ids += ids[: length - len(ids)]
    return wte[torch.tensor(ids, device=wte.device)]


# ---- A soft prompt as a method (see methods.py)


def apply(
    model: TunedModel, settings: Settings, task: Task, tokenize: Callable[[str], list[int]]
) -> None:
    """Give a model the soft prompt of a run's settings."""
    text_ids = tokenize(settings.prompt_text or task.instruction)
    label_texts = [task.label_text(label, settings.source_text) for label in task.labels]
    label_ids = [token for text in label_texts for token in tokenize(text)]
    wte = model.transformer.wte.weight
    length, init = settings.prompt_length, settings.prompt_init
    model.prompt = SoftPrompt(initial_embeddings(wte, length, init, text_ids, label_ids))
