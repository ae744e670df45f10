"""The log probabilities of many labels that share their first token, in one pass for each batch.

Such labels are compared by all their tokens (see `decoding.score_labels`). With one pass for each
label, the text and the tokens that labels share are computed again for every label. Here a text is
followed by a tree of the labels' tokens. For " not now", " not yet" and " not yet known":

    text   not   now
                 yet   known

The tree has 4 tokens instead of 7. A token attends to the text and to the tokens before it in its
own label, and has the position that it has there. So its hidden state is the same as in a pass with
this label alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neo_peft.gptneo import Past, causal_mask
from neo_peft.model import TunedModel
from neo_peft.packing import Grid, Packing

# The largest number of tokens in a pass, and of logits at once: they bound the memory. A single
# text and its tree can have more tokens.
TOKENS_IN_PASS, LOGITS_AT_ONCE = 1024, 1 << 23


@dataclass(frozen=True)
class LabelTree:
    """The tree of the tokens of some labels. Each of its n nodes is a token of a label."""

    tokens: Tensor  # the token of each node (n,)
    depths: Tensor  # the number of nodes before it in its label (n,)
    attends: Tensor  # (n, n): True where a token attends to another one
    steps: (
        Tensor  # for all labels one after the other: a node, and the token that follows it (2, S)
    )
    counts: list[int]  # number of steps of each label

    @classmethod
    def of_labels(cls, labels: list[list[int]], device: torch.device) -> "LabelTree":
        """Return the tree of labels, each with its token ids and the end token, which is only
        predicted."""
        steps = [(tuple(ids[:end]), ids[end]) for ids in labels for end in range(1, len(ids))]
        nodes = sorted({node for node, _ in steps})
        index_of = {node: index for index, node in enumerate(nodes)}
        paths = pad_sequence([torch.tensor(node) for node in nodes], True, -1)  # (n, longest)
        return cls(
            torch.tensor([node[-1] for node in nodes], device=device),
            torch.tensor([len(node) - 1 for node in nodes], device=device),
            # A path begins with another one if they are equal wherever the other one has tokens.
            ((paths[:, None] == paths) | (paths == -1)).all(2).to(device),
            torch.tensor([(index_of[node], token) for node, token in steps], device=device).T,
            [len(ids) - 1 for ids in labels],
        )


def tree_log_probabilities(
    model: TunedModel, texts: list[np.ndarray], labels: list[list[int]], prefix: Past | None
) -> Tensor:
    """Return log p(label, end token | text, first token) in fp32 (B, K), as many passes would."""
    tree, wte = LabelTree.of_labels(labels, model.device), model.transformer.wte.weight.float()
    nodes, following = tree.steps
    scores = []
    for chunk in chunks(texts, len(tree.tokens)):
        hidden = tree_hidden(model, chunk, tree, prefix)  # (b, n, H)
        parts = hidden.flatten(0, 1).split(max(1, LOGITS_AT_ONCE // len(wte)))
        normalizers = torch.cat([F.linear(part, wte).logsumexp(1) for part in parts])  # (b · n,)
        logits = (hidden[:, nodes] * wte[following]).sum(2)  # (b, S)
        logs = logits - normalizers.view(len(chunk), -1)[:, nodes]
        scores += [torch.stack([part.sum(1) for part in logs.split(tree.counts, dim=1)], dim=1)]
    return torch.cat(scores)


def chunks(texts: list[np.ndarray], nodes: int) -> Iterator[list[np.ndarray]]:
    """Yield consecutive texts that have at most TOKENS_IN_PASS tokens together with their trees."""
    chunk, size = [], 0
    for text in texts:
        if chunk and size + len(text) + nodes > TOKENS_IN_PASS:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text) + nodes
    yield chunk


def tree_hidden(
    model: TunedModel, texts: list[np.ndarray], tree: LabelTree, prefix: Past | None
) -> Tensor:
    """Return the hidden states (B, n, H) of the tree's tokens after each text, in fp32."""
    trunk, start, count = model.transformer, prefix.length if prefix else 0, len(tree.tokens)
    ids = [torch.from_numpy(text.astype(np.int64)).to(model.device) for text in texts]
    ids = torch.cat([part for text in ids for part in (text, tree.tokens)])
    packing = text_tree_packing([len(text) for text in texts], tree, start)
    masks = {}
    with model.autocast():
        x = trunk.embed(ids) + trunk.wpe(packing.positions).float()
        for layer, block in enumerate(trunk.h):
            window, before = block.window_size, None
            if window not in masks:
                masks[window] = [tree_mask(grid, tree, prefix, window) for grid in packing.grids]
            if prefix is not None:
                before = prefix.keys[layer], prefix.values[layer]
            x, _ = block(x, packing, before, masks[window], None)
        sizes = [size for text in texts for size in (len(text), count)]
        return torch.stack(trunk.ln_f(x).float().split(sizes)[1::2])


def text_tree_packing(lengths: list[int], tree: LabelTree, start: int) -> Packing:
    """Return the packing of texts with these lengths from position `start` on, each with its tree.
    Consecutive texts of the same length share a grid."""
    grids, first, count = [], 0, len(tree.tokens)
    for length, group in groupby(lengths):
        batch, steps = len(list(group)), torch.arange(length, device=tree.depths.device)
        positions = start + torch.cat([steps, length + tree.depths])[None]
        size = length + count
        grids.append(Grid(first, batch, size, batch * size, positions, None))
        first += batch
    positions = [grid.positions.expand(grid.batch, -1).flatten() for grid in grids]
    return Packing(tuple(grids), torch.cat(positions))


def tree_mask(grid: Grid, tree: LabelTree, prefix: Past | None, window_size: int | None) -> Tensor:
    """Return the mask (1, 1, T, S) of texts with their trees, after a prefix."""
    before = grid.positions[:, :0] if prefix is None else prefix.positions
    keys = torch.cat([before, grid.positions], dim=1)
    mask, count = causal_mask(grid.positions, keys, window_size), len(tree.tokens)
    mask[..., -count:, -count:] &= tree.attends
    return mask
