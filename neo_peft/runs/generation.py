"""Free generation: the language model continues a text greedily.

The prediction is the label whose words the generated text starts with. If it starts with no label,
the prediction is None, which counts as wrong. Read decoding.py first.
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
    """Return the predictions for encoded examples, as `evaluate` does, but by free generation."""
    prefix = make_prefix(model, encoder, instruction)

    def generate_batch(chosen: np.ndarray) -> list[str]:
        return generate(model, encoder, texts_without_labels(examples, chosen), prefix)

    texts = in_batches(generate_batch, examples, batch_size, progress, "generate")
    predicted = [match_label(text, encoder.task) for text in texts]
    return Evaluation(predicted, generated=texts, cut=examples.cut)


def forward_and_keep(
    trunk: GPTNeo, x: Tensor, packing: Packing, past: Past | None = None
) -> tuple[Tensor, Past]:
    """Return the last layer's hidden states of all tokens (N, H), and the tokens' keys and values.

    The packing must have a single grid. Its padding has the position NOWHERE in the returned past.
    """
    x, keys_values = trunk.layers(x, packing, past)
    (grid,) = packing.grids
    positions = grid.positions.expand(grid.batch, -1)
    if grid.indices is not None:
        filled = torch.zeros(positions.numel(), dtype=torch.bool, device=x.device)
        filled[grid.indices] = True
        positions = positions.masked_fill(~filled.view_as(positions), NOWHERE)
    return trunk.ln_f(x), Past(*zip(*keys_values, strict=True), positions)


def next_tokens(positions: Tensor) -> Packing:
    """Return the packing of one token for each of B texts, at `positions` (B,)."""
    batch = len(positions)
    return Packing((Grid(0, batch, 1, batch, positions[:, None], None),), positions)


@torch.inference_mode()
def generate(
    model: TunedModel, encoder: Encoder, texts: list[np.ndarray], prefix: Past | None
) -> list[str]:
    """Continue each text greedily, and return the generated texts.

    A text ends with the end token, or after 10 tokens. Keys and values are cached, so each token is
    computed once. A text that has ended is removed from the batch.
    """
    trunk, start = model.transformer, prefix.length if prefix else 0
    lengths = torch.tensor([len(text) for text in texts])
    packing = Packing.of_texts(lengths, start, together=True).to(model.device)
    ids = torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(model.device)
    generated = [[] for _ in texts]  # token ids
    active = torch.arange(len(texts), device=model.device)  # indices of the texts in the batch
    positions = start + lengths.to(model.device)  # the position of each text's next token
    with model.autocast():
        hidden, past = forward_and_keep(trunk, trunk.embed(ids), packing, prefix)
        past = prefix.select(torch.zeros_like(active)).concat(past) if prefix else past
        last = hidden[torch.cumsum(lengths, 0).to(model.device) - 1]
        for step in range(MAX_NEW_TOKENS):
            tokens = F.linear(last, trunk.wte.weight).argmax(1)
            for index, token in zip(active.tolist(), tokens.tolist(), strict=True):
                generated[index].append(token)
            unended = (tokens != encoder.end_token).nonzero().squeeze(1)
            if step == MAX_NEW_TOKENS - 1 or not len(unended):
                break
            if len(unended) < len(tokens):
                past, tokens = past.select(unended), tokens[unended]
                positions, active = positions[unended], active[unended]
            packing = next_tokens(positions)
            last, new = forward_and_keep(trunk, trunk.embed(tokens), packing, past)
            past, positions = past.concat(new), positions + 1
    return [
        encoder.tokenizer.decode([token for token in tokens if token != encoder.end_token])
        for tokens in generated
    ]


def match_label(text: str, task: Task) -> str | None:
    """Return the label whose words the text starts with, or None. Where several match, the longest
    is returned. Case is ignored. The number 15 does not start with the label 1."""
    text = text.strip().lower()
    labels = {task.label_text(label).strip().lower(): label for label in task.labels}
    for words in sorted(labels, key=len, reverse=True):
        rest = text.removeprefix(words)
        if text.startswith(words) and not (words[-1].isdigit() and rest[:1].isdigit()):
            return labels[words]
    return None
