"""The log probabilities of many labels that share their first token.

Such labels are compared by all their tokens (see `decoding.score_labels`). With one pass for each
label, the text and the tokens that labels share are computed again for every label. Here the keys
and values of each text are stored, and a tree of the labels' tokens comes after them. For " not
now", " not yet" and " not yet known":

    text   not   now
                 yet   known

The tree has 4 tokens instead of 7. A token attends to the text and to the tokens before it in its
own label, and has the position that it has there. So its hidden state is the same as in a pass with
this label alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neo_peft.gptneo import NOWHERE, GPTNeo, KeysValues, Past, causal_mask
from neo_peft.model import Batch, TunedModel
from neo_peft.packing import Grid, Packing

if TYPE_CHECKING:
    from neo_peft.decoding import HiddenStates

Stored = list[list[KeysValues]]  # of a batch's tokens: for each layer and grid

# The largest number of tokens in a pass, and of tokens whose logits are in memory at once. The tree
# after a single text can have more tokens.
TOKENS_IN_PASS, TOKENS_WITH_LOGITS = 1024, 128


@dataclass(frozen=True)
class LabelTree:
    """The tree of the tokens of some labels. Each of its n nodes is a token of a label."""

    tokens: Tensor  # the token of each node (n,)
    depths: Tensor  # the number of nodes before it in its label (n,)
    attends: Tensor  # (n, n): True where a token attends to another one
    # (2, S), for all labels one after the other: a node, and the token that follows it
    steps: Tensor
    counts: list[int]  # number of steps of each label

    @classmethod
    def of_labels(cls, labels: list[list[int]], device: torch.device) -> LabelTree:
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


def forward_and_store(model: TunedModel, batch: Batch, past: Past | None) -> tuple[Tensor, Stored]:
    """Return the hidden states (M, H) of the model, and the keys and values of the batch's
    tokens."""
    layers = []
    hooks = [
        block.attn.attention.register_forward_hook(lambda *call: layers.append(call[2][1]))
        for block in model.transformer.h
    ]
    try:
        return model(batch, past), layers
    finally:
        for hook in hooks:
            hook.remove()


def log_probabilities(model: TunedModel, states: HiddenStates, labels: list[list[int]]) -> Tensor:
    """Return log p(label, end token | text, first token) in fp32 (B, K) for the texts of a batch.
    `labels` are their token ids with the end token."""
    tree, wte = LabelTree.of_labels(labels, model.device), model.transformer.wte.weight.float()
    nodes, following = tree.steps
    stored = states.stored
    if stored is None:
        _, stored = forward_and_store(model, states.batch.to(model.device), states.past)
    past, starts = text_past(stored, states)
    scores = []
    for rows in torch.arange(len(starts)).split(max(1, TOKENS_IN_PASS // len(tree.tokens))):
        with model.autocast():
            hidden = tree_hidden(model.transformer, tree, past.select(rows), starts[rows])
        parts = hidden.flatten(0, 1).split(TOKENS_WITH_LOGITS)
        normalizers = torch.cat([F.linear(part, wte).logsumexp(1) for part in parts])
        logits = (hidden[:, nodes] * wte[following]).sum(2)  # (b, S)
        logs = logits - normalizers.view(len(rows), -1)[:, nodes]
        by_label = logs.split(tree.counts, dim=1)
        scores.append(torch.stack([part.sum(1) for part in by_label], dim=1))
    return torch.cat(scores)


def text_past(layers: Stored, states: HiddenStates) -> tuple[Past, Tensor]:
    """Return the keys and values of each text of a batch, after the shared ones, and the
    position after each text (B,). Tokens of a label after the text have the position NOWHERE."""
    batch, shared = states.batch, states.past
    start, device = shared.length if shared else 0, batch.ids.device
    first_targets = batch.target_counts.cumsum(0) - batch.target_counts  # (B,)
    text_starts = batch.lengths.cumsum(0) - batch.lengths
    lengths = batch.target_indices.cpu()[first_targets] + 1 - text_starts  # without label tokens
    longest = int(lengths.max())

    def stored(layer: int, index: int) -> Tensor:
        """Return the keys (index 0) or the values (index 1) of a layer."""
        parts = [keys_values[index][:, :, :longest] for keys_values in layers[layer]]
        _, heads, _, size = parts[0].shape
        tensor, first = parts[0].new_zeros(len(lengths), heads, start + longest, size), 0
        if shared:
            tensor[:, :, :start] = (shared.keys, shared.values)[index][layer]
        for part in parts:
            tensor[first : first + len(part), :, start : start + part.shape[2]] = part
            first += len(part)
        return tensor

    steps = torch.arange(longest)
    positions = (start + steps).where(steps < lengths[:, None], torch.tensor(NOWHERE)).to(device)
    if shared:
        positions = torch.cat([shared.positions.expand(len(lengths), -1), positions], dim=1)
    keys, values = (tuple(stored(layer, i) for layer in range(len(layers))) for i in (0, 1))
    return Past(keys, values, positions), (start + lengths).to(device)


def tree_hidden(trunk: GPTNeo, tree: LabelTree, past: Past, starts: Tensor) -> Tensor:
    """Return the hidden states (b, n, H) of the tree's tokens in fp32. Each text has its tree, with
    its own `past`; the tree's first token has the position `starts` (b,)."""
    batch, count = len(starts), len(tree.tokens)
    positions = starts[:, None] + tree.depths  # (b, n)
    packing = Packing((Grid(0, batch, count, batch * count, positions, None),), positions.flatten())
    keys, masks = torch.cat([past.positions, positions], dim=1), {}
    x = trunk.embed(tree.tokens.repeat(batch)) + trunk.wpe(packing.positions).float()
    for layer, block in enumerate(trunk.h):
        if block.window_size not in masks:
            mask = causal_mask(positions, keys, block.window_size)
            mask[..., -count:] &= tree.attends
            masks[block.window_size] = [mask]
        before = past.keys[layer], past.values[layer]
        x, _ = block(x, packing, before, masks[block.window_size], None)
    return trunk.ln_f(x).float().view(batch, count, -1)
