"""How well a model predicts free text: bits per byte of the bundled page.

The page is `assets/free_text.txt`: 69 passages, one a line, 50 KB. They are from public domain
books of Project Gutenberg and from speeches of US presidents, and are not in neo-mini's training
text. What a model loses there by tuning is what it has forgotten.

A line is split into windows of `WINDOW` tokens. Each window has the end-of-text token in front, and
the model predicts all its tokens, with the prompt and LoRA in place. The head plays no part.
"""

import math

import torch
from torch import Tensor

from neo_peft.defaults import ASSETS
from neo_peft.encoding import tokenize
from neo_peft.model import Batch, HeadKind, TunedModel
from neo_peft.runs.loading import LoadedModel

FREE_TEXT = ASSETS / "free_text.txt"
WINDOW = 128  # tokens; fewer where a long prompt leaves fewer positions
WINDOWS_AT_ONCE = 8  # their logits (M, V) are in memory together


def window_length(tuned: LoadedModel) -> int:
    """Return the number of tokens of a window that fits with a model's prompt."""
    positions = tuned.model.transformer.config.max_position_embeddings
    return max(1, min(WINDOW, positions - tuned.settings.prefix_length))


def bits_of_free_text(loaded: LoadedModel, length: int = WINDOW) -> float:
    """Return the bits per byte of the bundled page, in windows of `length` tokens."""
    lines = FREE_TEXT.read_text(encoding="utf-8").splitlines()
    texts = tokenize(loaded.base.tokenizer, lines)
    end_token = loaded.model.transformer.config.eos_token_id
    nats = nats_of_texts(loaded.model, texts, end_token, length)
    return nats / math.log(2) / sum(len(line.encode()) for line in lines)


@torch.inference_mode()
def nats_of_texts(model: TunedModel, texts: list[list[int]], end_token: int, length: int) -> float:
    """Return the loss of texts (token ids), summed over all their tokens, in nats.

    length: the number of tokens of a window.
    """
    reader = TunedModel(
        model.transformer, HeadKind.LM_HEAD, prompt=model.prompt, compute_dtype=model.compute_dtype
    ).eval()
    windows = [
        torch.tensor(ids[start : start + length])
        for ids in texts
        for start in range(0, len(ids), length)
    ]
    windows.sort(key=len)  # equal lengths share a grid: see packing.py
    past, nats = reader.prompt_past(), 0.0
    for start in range(0, len(windows), WINDOWS_AT_ONCE):
        batch = batch_of(windows[start : start + WINDOWS_AT_ONCE], end_token)
        nats += float(reader.loss(batch.to(reader.device), past))
    return nats


def batch_of(windows: list[Tensor], end_token: int) -> Batch:
    """Return a batch in which each token of the windows is predicted from those before it."""
    inputs = [torch.cat([torch.tensor([end_token]), window[:-1]]) for window in windows]
    lengths = torch.tensor([len(window) for window in windows])
    targets = torch.cat(windows)
    return Batch(torch.cat(inputs), lengths, torch.arange(len(targets)), targets, lengths)
