"""Free generation: what the language model itself says, greedily, behind a text.

The answer is the label whose words begin what was said. Where none does, the example is unanswered,
which counts as wrong. Read decoding.py first.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft.decoding import Evaluation, in_batches, make_prefix, texts_without_labels
from neo_peft.encoding import MAX_NEW_TOKENS, Encoder, Examples
from neo_peft.gptneo import NOWHERE, GPTNeo, Past
from neo_peft.model import TunedModel
from neo_peft.packing import Grid, Packing
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task


@torch.inference_mode()
def evaluate_generated(
    model: TunedModel,
    encoder: Encoder,
    examples: Examples,
    instruction: str = "",
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> Evaluation:
    """Answer encoded examples as `evaluate` does, by what the model says."""
    prefix = make_prefix(model, encoder, instruction)

    def answer(chosen: np.ndarray) -> list[str]:
        return generate(model, encoder, texts_without_labels(examples, chosen), prefix)

    texts = in_batches(answer, examples, batch_size, progress, "generate")
    predicted = [match_label(text, encoder.task) for text in texts]
    return Evaluation(predicted, generated=texts, cut=examples.cut)


def forward_and_keep(
    trunk: GPTNeo, x: Tensor, packing: Packing, past: Past | None = None
) -> tuple[Tensor, Past]:
    """Return the last hidden states of all tokens, which share one grid, and their keys and values
    for the tokens to come."""
    x, kept = trunk.layers(x, packing, past)
    (grid,) = packing.grids
    positions = grid.positions.expand(grid.batch, -1)
    if grid.slots is not None:
        filled = torch.zeros(positions.numel(), dtype=torch.bool, device=x.device)
        filled[grid.slots] = True
        positions = positions.masked_fill(~filled.view_as(positions), NOWHERE)
    return trunk.ln_f(x), Past(*zip(*kept, strict=True), positions)


def next_tokens(positions: Tensor) -> Packing:
    """Return the layout of one more token for each of B texts, at its own position (B,)."""
    batch = len(positions)
    return Packing((Grid(0, batch, 1, batch, positions[:, None], None),), positions)


@torch.inference_mode()
def generate(
    model: TunedModel, encoder: Encoder, texts: list[np.ndarray], prefix: Past | None
) -> list[str]:
    """Continue each text greedily by up to 10 tokens, or to the end token, and return what was
    said.

    Every example keeps its keys and values; a token is computed once. Texts that have ended leave
    the batch.
    """
    trunk, start = model.transformer, prefix.length if prefix else 0
    lengths = torch.tensor([len(text) for text in texts])
    packing = Packing.of_texts(lengths, start, together=True).to(model.device)
    ids = torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(model.device)
    said = [[] for _ in texts]
    going = torch.arange(len(texts), device=model.device)
    positions = start + lengths.to(model.device)  # of the next token
    with model.autocast():
        hidden, past = forward_and_keep(trunk, trunk.embed(ids), packing, prefix)
        past = prefix.select(torch.zeros_like(going)).concat(past) if prefix else past
        last = hidden[torch.cumsum(lengths, 0).to(model.device) - 1]
        for step in range(MAX_NEW_TOKENS):
            tokens = F.linear(last, trunk.wte.weight).argmax(1)
            for index, token in zip(going.tolist(), tokens.tolist(), strict=True):
                said[index].append(token)
            alive = (tokens != encoder.end_token).nonzero().squeeze(1)
            if step == MAX_NEW_TOKENS - 1 or not len(alive):
                break
            if len(alive) < len(tokens):
                past, tokens = past.select(alive), tokens[alive]
                positions, going = positions[alive], going[alive]
            packing = next_tokens(positions)
            last, new = forward_and_keep(trunk, trunk.embed(tokens), packing, past)
            past, positions = past.concat(new), positions + 1
    return [
        encoder.tokenizer.decode([token for token in ids if token != encoder.end_token])
        for ids in said
    ]


def match_label(text: str, task: Task) -> str | None:
    """Find the label whose words begin a text, the longest first: "not equivalent" before
    "equivalent", else None."""
    said = text.strip().lower()
    words = {task.label_text(label).strip().lower(): label for label in task.labels}
    for word in sorted(words, key=len, reverse=True):
        if said.startswith(word):
            return words[word]
    return None
