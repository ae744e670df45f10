"""Solutions of lesson 7, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. Each batch is padded to its own longest text.
def padding_share(lengths, size):
    batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    places = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(lengths) / places


# 2. A token attends to itself and to the earlier tokens of its own text: triangles on a diagonal.
def packed_mask(lengths):
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))  # (N,)
    causal = torch.ones(len(text), len(text), dtype=torch.bool).tril()
    return causal & (text[:, None] == text)


# ---- For `check`
def full(lengths, size):
    """Return the lengths of whole batches only."""
    return lengths[: len(lengths) // size * size]


PADDING = Exercise(
    padding_share,
    [([7, 3, 5, 2, 6], 2), ([4, 9, 1, 1], 3)],
    {
        "each batch is padded to its own longest text, not to the longest of all": (
            lambda lengths, size: 1 - sum(lengths) / (len(lengths) * max(lengths))
        ),
        "this is the share of the tokens; the share of padding is 1 minus it": (
            lambda lengths, size: 1 - padding_share(lengths, size)
        ),
        "divide by all places, not by the number of tokens": lambda lengths, size: (
            1 / (1 - padding_share(lengths, size)) - 1
        ),
        "a share is a number from 0 to 1, not in percent": lambda lengths, size: (
            100 * padding_share(lengths, size)
        ),
        "a share is a number from 0 to 1: divide the padding tokens by all places": (
            lambda lengths, size: (
                round(sum(lengths) / (1 - padding_share(lengths, size))) - sum(lengths)
            ),
        ),
        "the last batch can have fewer texts, and counts too": (
            lambda lengths, size: padding_share(full(lengths, size), size),
            lambda lengths, size: (
                1
                - sum(lengths)
                / sum(size * max(lengths[i : i + size]) for i in range(0, len(lengths), size))
            ),
        ),
        "the texts are taken in order, not sorted by length": (
            lambda lengths, size: padding_share(sorted(lengths), size),
            lambda lengths, size: padding_share(sorted(lengths, reverse=True), size),
        ),
        "weigh the batches by their places: add up all places first": lambda lengths, size: (
            sum(
                shares := [
                    padding_share(lengths[i : i + size], size) for i in starts(lengths, size)
                ]
            )
            / len(shares)
        ),
    },
)


def starts(lengths, size):
    return range(0, len(lengths), size)


def text_of(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


MASK = Exercise(
    packed_mask,
    [([3, 2],), ([1, 4, 2],)],
    {
        "the mask must be boolean: True and False": (
            lambda lengths: packed_mask(lengths).float(),
            lambda lengths: packed_mask(lengths).long(),
        ),
        "a token must not attend to other texts": lambda lengths: torch.ones(
            sum(lengths), sum(lengths), dtype=torch.bool
        ).tril(),
        "a token must not attend to later ones": lambda lengths: (
            text_of(lengths)[:, None] == text_of(lengths)
        ),
        "rows are queries, columns are keys: transpose it": lambda lengths: packed_mask(lengths).T,
        "a token attends to itself too": lambda lengths: (
            packed_mask(lengths) & ~torch.eye(sum(lengths), dtype=torch.bool)
        ),
        "True is where a token attends": lambda lengths: ~packed_mask(lengths),
        "one mask for the whole batch, not a list of masks": lambda lengths: [
            torch.ones(length, length, dtype=torch.bool).tril() for length in lengths
        ],
        "return a tensor, not a list": lambda lengths: packed_mask(lengths).tolist(),
    },
)
EXERCISES = [PADDING, MASK]
