"""A soft prompt: P embedding rows that train, in front of a frozen model (Lester et al. 2021,
section 2).

The rows stand at the positions 0 … P − 1 and every text starts at P. While they train they go
through the layers in front of the batch's texts, once for all of them; afterwards `GPTNeo.prefix`
keeps their keys and values.
"""

import torch
from torch import Tensor, nn

from neo_peft.errors import InputError

INIT = ("text", "vocab", "labels", "random")


class SoftPrompt(nn.Module):
    """The prompt's rows, (P, H) in fp32. They are read as `prompt()`."""

    def __init__(self, embeddings: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().float().clone())

    def __len__(self) -> int:
        return len(self.embeddings)

    def forward(self) -> Tensor:
        return self.embeddings


def start_rows(
    wte: Tensor, length: int, init: str, text_ids: list[int], label_ids: list[int]
) -> Tensor:
    """Choose the rows (P, H) that a prompt starts from (Lester et al. 2021, section 3.2), from
    `wte` (V, H).

    text: the tokens of a text, tiled or cut to P. vocab: P tokens of the vocabulary, drawn without
    repetition. labels: the tokens of the labels' words, then the vocabulary. random: a normal with
    the mean and the spread of wte itself; a standard normal, whatever the spread, starts far
    outside of what the model has ever seen.
    """
    if init not in INIT:
        raise InputError(f"a prompt starts from one of {', '.join(INIT)}, not {init!r}")
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
