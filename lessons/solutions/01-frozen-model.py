"""Solutions of lesson 1, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. Row i of the scores belongs to query i. The softmax runs along its row, over the keys.
def head(q, k, v):
    scores = q @ k.T
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


# 2. The distance back from a query (row) to a key (column) is 0 to window - 1.
def local_mask(T, window):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance >= 0) & (distance < window)


# ---- For `check`
def wrong_head(q, k, v, factor=1.0, diagonal=1, dim=-1):
    scores = factor * q @ k.T
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal)
    return scores.masked_fill(future, float("-inf")).softmax(dim) @ v


torch.manual_seed(1)
T, D = 6, 4
HEAD = Exercise(
    head,
    [(torch.randn(T, D), torch.randn(T, D), torch.randn(T, D))],
    {
        "you divide the scores, GPT-Neo does not": lambda *qkv: wrong_head(*qkv, factor=D**-0.5),
        "without a causal mask, tokens attend to later ones": lambda *qkv: wrong_head(
            *qkv, diagonal=T
        ),
        "the softmax must run over the keys (dim=-1), not over the queries": lambda *qkv: (
            wrong_head(*qkv, dim=0)
        ),
    },
)
MASK = Exercise(
    local_mask,
    [(7, 3), (5, 9)],
    {
        "one key too many: the window includes the token itself": lambda T, window: local_mask(
            T, window + 1
        ),
        "rows are queries, columns are keys: transpose it": lambda T, window: (
            local_mask(T, window).T
        ),
        "this is the mask of a global layer": lambda T, window: local_mask(T, T),
    },
)
EXERCISES = [HEAD, MASK]
