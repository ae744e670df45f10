"""The best tags of a sentence that BIO allows together: Viterbi's search (Viterbi 1967; Rabiner
1989, section III.B).

Each word's tags have log probabilities of their own. `I-x` may only follow `B-x` or `I-x`; of the
sequences that keep to that, the one with the greatest sum is found word by word: the best sequence
up to a word that ends in a tag goes on from the best one up to the word before.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def transitions(labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Say which tags may begin a sentence, (K,), and which may follow which, (K, K): 0 where one
    may, else -inf.

    Of a type that has no `B-` among the labels, `I-` begins its entities, as anything else would
    leave it out.
    """

    def may_follow(before: str, tag: str) -> bool:
        return tag[:2] != "I-" or before in (f"B-{tag[2:]}", tag) or f"B-{tag[2:]}" not in labels

    allowed = torch.tensor(
        [[may_follow(before, tag) for tag in labels] for before in ("O", *labels)]
    )
    costs = torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
    return costs[0], costs[1:]


def best_sequences(scores: Tensor, counts: Sequence[int], labels: Sequence[str]) -> Tensor:
    """Choose tags (M,) by log probabilities (M, K), for sentences of `counts` (B,) words."""
    if not len(scores):
        return scores.new_zeros(0, dtype=torch.long)
    first, step = (costs.to(scores.device) for costs in transitions(labels))
    words = pad_sequence(scores.split(list(counts)), batch_first=True)  # (B, T, K)
    # the best sum that ends in each tag, (B, K), and the tag before it
    best, came_from = ([first + words[:, 0]], [])
    for word in words[:, 1:].unbind(1):
        sums, before = (best[-1][:, :, None] + step).max(1)
        best.append(sums + word)
        came_from.append(before)
    ends, tags, chosen = torch.tensor(counts, device=scores.device) - 1, None, []
    for place in reversed(range(len(best))):  # each sentence from its own last word back
        going_on, tags = tags, best[place].argmax(1)
        if going_on is not None:
            tags = torch.where(
                ends == place, tags, came_from[place].gather(1, going_on[:, None]).squeeze(1)
            )
        chosen.insert(0, tags)
    chosen = torch.stack(chosen, 1)  # (B, T)
    return torch.cat([chosen[sentence, :count] for sentence, count in enumerate(counts)])
