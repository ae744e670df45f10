"""Free generation: the language model continues a text greedily.

The prediction is the label whose words the generated text starts with. If it starts with no label,
the prediction is None, which counts as wrong. Read decoding.py first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft.decoding import Evaluation, in_batches, past_before_texts
from neo_peft.encoding import Encoder, Examples
from neo_peft.gptneo import NOWHERE, GPTNeo, Past, causal_mask
from neo_peft.kernels.quantized import QuantizedLinear
from neo_peft.model import TunedModel
from neo_peft.packing import Packing
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task

MAX_NEW_TOKENS = 10  # the limit of free generation
VOCABULARY_PART = 768  # tokens
LARGEST_KEPT = 2**30  # bytes of a quantised base's weights that are computed once: 125M has 0.3 GB


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
    model.eval()
    shared_past = past_before_texts(model, encoder, instruction)

    def generate_batch(chosen: np.ndarray) -> list[str]:
        return generate(model, encoder, texts_without_labels(examples, chosen), shared_past)

    with weights_kept(model):
        texts = in_batches(generate_batch, examples, batch_size, progress, "generate")
    predicted = [match_label(text, encoder.task) for text in texts]
    return Evaluation(predicted, generated=texts, cut=examples.cut)


def texts_without_labels(examples: Examples, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return each example's token ids up to its first target position, which is included."""
    texts = []
    for index in chosen:
        start, first_target = examples.starts[index], examples.target_starts[index]
        texts.append(examples.ids[start : start + examples.target_indices[first_target] + 1])
    return texts


@contextmanager
def weights_kept(model: TunedModel) -> Iterator[None]:
    """Compute the weights of a quantised base once, and keep them: each generated token needs all
    of them. For a large base that would take the memory that quantising has saved."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    small = sum(layer.shape.numel() * layer.dtype.itemsize for layer in layers) <= LARGEST_KEPT
    for layer in layers if small else ():
        layer.compute_weight = partial(Tensor.detach, layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("compute_weight", None)


def forward_and_keep(
    trunk: GPTNeo,
    x: Tensor,
    packing: Packing,
    past: Past | None = None,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Past]:
    """Return the last hidden states (M, H) at the tokens `wanted`, or of all tokens, and the keys
    and values of all tokens.

    The packing must have a single grid. Its padding has the position NOWHERE in the returned past.
    """
    x, keys_values = trunk.layers(x, packing, past, wanted)
    (grid,) = packing.grids
    positions = grid.positions.expand(grid.batch, -1)
    if grid.indices is not None:
        filled = torch.zeros(positions.numel(), dtype=torch.bool, device=x.device)
        filled[grid.indices] = True
        positions = positions.masked_fill(~filled.view_as(positions), NOWHERE)
    return trunk.ln_f(x), Past(*zip(*keys_values, strict=True), positions)


def with_room(past: Past, count: int) -> Past:
    """Return a past with `count` empty slots for later tokens. Their position is NOWHERE."""
    slots = past.map(
        lambda tensor: tensor.new_zeros(*tensor.shape[:2], count, tensor.shape[3]),
        torch.full_like(past.positions[:, :1], NOWHERE).expand(-1, count),
    )
    return past.concat(slots)


def next_hidden(trunk: GPTNeo, x: Tensor, positions: Tensor, past: Past, slot: int) -> Tensor:
    """Return the last hidden states (B, H) of the embeddings x (B, H) of one token for each text,
    at `positions` (B,).

    These are the layers of `GPTNeo`, but keys and values are written into a slot of `past`. So the
    earlier ones are not copied for each token.
    """
    past.positions[:, slot] = positions
    seen, masks = past.positions[:, : slot + 1], {}
    x = x + trunk.wpe(positions).float()
    for block, keys, values in zip(trunk.h, past.keys, past.values, strict=True):
        if block.window_size not in masks:
            masks[block.window_size] = causal_mask(positions[:, None], seen, block.window_size)
        attention, normed = block.attn.attention, block.ln_1(x)
        q, keys[:, :, slot], values[:, :, slot] = (
            project(normed).unflatten(1, (attention.num_heads, -1))  # (B, heads, head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attended = F.scaled_dot_product_attention(
            q[:, :, None],
            keys[:, :, : slot + 1],
            values[:, :, : slot + 1],
            attn_mask=masks[block.window_size],
            scale=1.0,
        )
        x = x + attention.out_proj(attended.flatten(1))
        x = x + block.mlp(block.ln_2(x))
    return trunk.ln_f(x)


def most_probable_tokens(hidden: Tensor, wte: Tensor) -> Tensor:
    """Return the most probable next token (B,) of hidden states (B, H).

    On a CPU the vocabulary is taken in parts whose product stays in the cache. For 16 texts this
    takes about 0.6 of the time of one product with all of `wte` (V, H).
    """
    size = VOCABULARY_PART if hidden.device.type == "cpu" else len(wte)
    parts = [F.linear(hidden, part).max(1) for part in wte.split(size)]
    best, tokens = (torch.stack(values) for values in zip(*parts, strict=True))  # (parts, B)
    part = best.argmax(0)
    return part * size + tokens.gather(0, part[None]).squeeze(0)


@torch.inference_mode()
def generate(
    model: TunedModel, encoder: Encoder, texts: list[np.ndarray], shared_past: Past | None
) -> list[str]:
    """Continue each text greedily, and return the generated texts.

    A text ends with the end token, or after 10 tokens. Keys and values are stored, so each token is
    computed once. A text that has ended is removed from the batch.
    """
    trunk, start = model.transformer, shared_past.length if shared_past else 0
    lengths = torch.tensor([len(text) for text in texts])
    packing = Packing.of_texts(lengths, start, together=True).to(model.device)
    ids = torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(model.device)
    generated = [[] for _ in texts]  # token ids
    active = torch.arange(len(texts), device=model.device)  # indices of the texts in the batch
    positions = start + lengths.to(model.device)  # the position of each text's next token
    ends = torch.cumsum(lengths, 0).to(model.device) - 1  # the index of each text's last token
    with model.autocast():
        hidden, past = forward_and_keep(trunk, trunk.embed(ids), packing, shared_past, ends)
        past = shared_past.select(torch.zeros_like(active)).concat(past) if shared_past else past
        first_slot, past = past.length, with_room(past, MAX_NEW_TOKENS - 1)
        for step in range(MAX_NEW_TOKENS):
            tokens = most_probable_tokens(hidden, trunk.wte.weight)
            for index, token in zip(active.tolist(), tokens.tolist(), strict=True):
                generated[index].append(token)
            unended = (tokens != encoder.end_token).nonzero().squeeze(1)
            if step == MAX_NEW_TOKENS - 1 or not len(unended):
                break
            if len(unended) < len(tokens):
                past, tokens = past.select(unended), tokens[unended]
                positions, active = positions[unended], active[unended]
            x = trunk.embed(tokens)
            hidden = next_hidden(trunk, x, positions, past, first_slot + step)
            positions = positions + 1
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
