"""A soft prompt: P embedding rows that train, in front of a frozen model.

Lester et al. 2021, section 2:

    h = trunk([p_0 … p_(P−1), wte[x_0], wte[x_1], …])        at the positions 0, 1, …

The prompt takes the positions 0 … P − 1 and every text starts at P. Under a causal mask the prompt
cannot see the text, so its keys and values are the same for every example: they are computed once,
and the texts attend to them. That is exact in value and in gradient. (With LoRA dropout beside a
prompt, all examples of a batch share the prompt's dropout mask: the same expectation, other draws.)

There are two ways to compute them. For evaluation `SoftPrompt.past` does it once for all batches.
In training the rows change at every step, and go through the layers together with the batch's
tokens (`TunedModel.forward`). By `past` the results are the same to the bit, but a pass for P rows
alone costs 1 to 6 % of a step, median 3 %, at GPT-Neo 125M's shape, in batches of 8 and 16 with
prompts of 8 and 20 rows, with and without recomputed activations (`python -m benchmarks.prompt`).
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
    """The prompt's rows, `embeddings` (P, H) in fp32."""

    def __init__(self, embeddings: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().float().clone())

    def __len__(self) -> int:
        return len(self.embeddings)

    def past(self, trunk: GPTNeo) -> Past:
        """Return the keys and values that every text attends to."""
        return trunk.prefix(self.embeddings)


def start_rows(
    wte: Tensor, length: int, init: str, text_ids: list[int], label_ids: list[int]
) -> Tensor:
    """Return the rows (P, H) that a prompt starts from (Lester et al. 2021, section 3.2), given
    `wte` (V, H).

    text: the tokens of a text, tiled or cut to P. vocab: P tokens of the vocabulary, drawn without
    repetition. labels: the tokens of the labels' words, then the vocabulary. random: a normal with
    the mean and the spread of wte itself; a standard normal, whatever the spread, starts far
    outside of what the model has ever seen.
    """
    if init not in (choices := PROMPT.flags["prompt_init"]):
        raise InputError(f"a prompt starts from one of {', '.join(choices)}, not {init!r}")
    if init == "random":
        mean, std = wte.float().mean(), wte.float().std()
        return mean + std * torch.randn(length, wte.shape[1]).to(wte.device)
    if init == "text":
        ids = (text_ids * length)[:length]
    else:
        known = label_ids[:length] if init == "labels" else []
        ids = known + torch.randperm(len(wte))[: length - len(known)].tolist()
        while len(ids) < length:  # a prompt longer than the vocabulary
            ids += ids[: length - len(ids)]
    return wte[torch.tensor(ids, device=wte.device)]


# ---- A soft prompt as a method (see methods.py)


def apply(
    model: TunedModel, settings: Settings, task: Task, tokenize: Callable[[str], list[int]]
) -> None:
    """Put a prompt with a run's settings in front of a model."""
    text_ids = tokenize(settings.prompt_text or task.instruction)
    answers = [tokenize(task.answer(label, settings.source_text)) for label in task.labels]
    label_ids = [token for answer in answers for token in answer]
    wte = model.transformer.wte.weight
    length, init = settings.prompt_length, settings.prompt_init
    model.prompt = SoftPrompt(start_rows(wte, length, init, text_ids, label_ids))
