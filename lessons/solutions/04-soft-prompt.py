"""Solutions of lesson 4, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. Token t of the text has the position P + t. It attends to the positions from P + t - window + 1
#    to P + t. So from token window - 1 on, no token sees the prompt in this layer. In later layers
#    it still gets something of the prompt, through the tokens in between.
def prompt_mask(P, T, window):
    distance = P + torch.arange(T)[:, None] - torch.arange(P + T)
    return (distance >= 0) & (distance < window)


# 2. Each text is behind the prompt, and not behind the text before it.
def positions(P, lengths):
    return [P + i for length in lengths for i in range(length)]


# ---- For `check`
torch.manual_seed(4)
MASK = Exercise(
    prompt_mask,
    [(3, 6, 4), (2, 5, 9)],
    {
        "the mask must be boolean: True and False": lambda P, T, window: prompt_mask(
            P, T, window
        ).float(),
        "the text starts at position P, not at 0": lambda P, T, window: prompt_mask(
            0, P + T, window
        )[:T],
        "the window counts for the prompt too: late tokens must not see all of it": (
            lambda P, T, window: torch.cat(
                [torch.ones(T, P, dtype=torch.bool), prompt_mask(P, T, window)[:, P:]], dim=1
            )
        ),
        "this is the mask of a global layer": lambda P, T, window: prompt_mask(P, T, P + T),
        "one key too few: a token sees window - 1 tokens before it": lambda P, T, window: (
            prompt_mask(P, T, window - 1)
        ),
        "a token can attend to the prompt, if it is near enough": lambda P, T, window: torch.cat(
            [torch.zeros(T, P, dtype=torch.bool), prompt_mask(P, T, window)[:, P:]], dim=1
        ),
        "a token attends to itself too": lambda P, T, window: (
            prompt_mask(P, T, window) & ~prompt_mask(P, T, 1)
        ),
        "a token must not attend to later ones": lambda P, T, window: (
            P + torch.arange(T)[:, None] - torch.arange(P + T) < window
        ),
        "True is where a token attends": lambda P, T, window: ~prompt_mask(P, T, window),
        "one key too many: the window includes the token itself": lambda P, T, window: prompt_mask(
            P, T, window + 1
        ),
        "rows are queries, columns are keys: transpose it": lambda P, T, window: (
            prompt_mask(P, T, window).T
        ),
        "the queries are the tokens of the text only": lambda P, T, window: prompt_mask(
            0, P + T, window
        ),
    },
)
POSITIONS = Exercise(
    positions,
    [(4, [3, 5]), (2, [2, 1, 4])],
    {
        "each text starts at P: the texts are not one long text": lambda P, lengths: list(
            range(P, P + sum(lengths))
        ),
        "return a list of numbers, not a tensor": lambda P, lengths: torch.tensor(
            positions(P, lengths)
        ),
        "the texts start at P, not at 0": lambda P, lengths: positions(0, lengths),
        "the first position is 0, so the first one after the prompt is P": (
            lambda P, lengths: positions(P + 1, lengths),
            lambda P, lengths: positions(P - 1, lengths),
        ),
        "a text of n tokens has the positions P to P + n - 1": (
            lambda P, lengths: [i for length in lengths for i in range(P, length)],
            lambda P, lengths: [i for length in lengths for i in range(P, P + length + 1)],
        ),
        "one list for all tokens, not a list for each text": (
            lambda P, lengths: [[P + i for i in range(length)] for length in lengths],
            lambda P, lengths: [range(P, P + length) for length in lengths],
        ),
        "the prompt stands there once, and its positions are not part of the list": (
            lambda P, lengths: [i for length in lengths for i in range(P + length)]
        ),
        "texts are not padded on the left": lambda P, lengths: [
            P + max(lengths) - length + i for length in lengths for i in range(length)
        ],
        "a packed batch has no padding": lambda P, lengths: [
            P + i for _ in lengths for i in range(max(lengths))
        ],
        "without the prompt's own positions": lambda P, lengths: [
            *range(P),
            *positions(P, lengths),
        ],
    },
)
EXERCISES = [MASK, POSITIONS]
