"""The best sequence of tags that BIO allows, by the Viterbi algorithm (Viterbi 1967; Rabiner 1989,
section III.B).

The head gives a log probability to each tag of each word. In BIO `I-x` can follow only `B-x` or
`I-x`. The best sequence is the valid one with the highest sum of log probabilities. The search goes
from word to word and keeps, for each tag, only the best sequence that ends with it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def transitions(labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return scores of the tags at the start of a sentence (K,) and of transitions from one tag to
    the next (K, K): 0 if BIO allows it, else -inf.

    If a type has no `B-` label, its `I-` can follow every tag: its entities have no other start.
    """

    def can_follow(before: str, tag: str) -> bool:
        return tag[:2] != "I-" or before in (f"B-{tag[2:]}", tag) or f"B-{tag[2:]}" not in labels

    allowed = torch.tensor(
        # "O" first: the start of a sentence is like the position after an O
        [[can_follow(before, tag) for tag in labels] for before in ("O", *labels)]
    )
    scores = torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
    return scores[0], scores[1:]


def best_sequences(scores: Tensor, counts: Sequence[int], labels: Sequence[str]) -> Tensor:
    """Return the best tags (M,) for log probabilities `scores` (M, K) and sentences of `counts`
    (B,) words."""
    if not len(scores):
        return scores.new_zeros(0, dtype=torch.long)
    at_start, transition = (tensor.to(scores.device) for tensor in transitions(labels))
    words = pad_sequence(scores.split(list(counts)), batch_first=True)  # (B, T, K)
    # For each word and its tag: the best sum up to there, and the previous word's tag (B, K).
    best, previous = [at_start + words[:, 0]], []
    for word in words[:, 1:].unbind(1):
        sums, before = (best[-1][:, :, None] + transition).max(1)
        best.append(sums + word)
        previous.append(before)
    last_words, path = torch.tensor(counts, device=scores.device) - 1, []
    for position in reversed(range(len(best))):  # back from each sentence's last word
        tags = best[position].argmax(1)  # for the sentences that end here
        if path:
            earlier = previous[position].gather(1, path[0][:, None]).squeeze(1)
            tags = torch.where(last_words == position, tags, earlier)
        path.insert(0, tags)
    path = torch.stack(path, 1)  # (B, T)
    return torch.cat([path[sentence, :count] for sentence, count in enumerate(counts)])
