"""Solutions of lesson 10, and what is wrong in each of some likely answers."""

import torch
import torch.nn.functional as F
from check import Exercise


# 1. The columns of U are orthonormal, so this is the share of a subspace in another one.
def agreement(change, other, i, j):
    U, V = (torch.linalg.svd(matrix).U for matrix in (change, other))
    return (U[:, :i].T @ V[:, :j]).square().sum() / min(i, j)


# 2. A cosine does not depend on a vector's length.
def nearest(prompt, wte):
    return (F.normalize(prompt, dim=1) @ F.normalize(wte, dim=1).T).argmax(1)


# ---- For `check`
torch.manual_seed(10)


def rank_3(outputs, inputs):
    return torch.randn(outputs, 3) @ torch.randn(3, inputs)


def inputs_agreement(a, b, i, j):
    return agreement(a.T, b.T, i, j)


AGREEMENT = Exercise(
    agreement,
    [(rank_3(6, 5), rank_3(6, 5), 2, 3), (rank_3(7, 4), rank_3(7, 4), 3, 1)],
    {
        "these are the input directions: take the columns of U": inputs_agreement,
        "divide by the smaller number of directions": (
            lambda a, b, i, j: agreement(a, b, i, j) * min(i, j) / max(i, j)
        ),
        "divide by min(i, j), not by i · j": lambda a, b, i, j: agreement(a, b, i, j) / max(i, j),
        "divide by min(i, j), so that 1 is the most": lambda a, b, i, j: (
            agreement(a, b, i, j) * min(i, j)
        ),
        "divide by min(i, j), also where j is the smaller one": (
            lambda a, b, i, j: agreement(a, b, i, j) * min(i, j) / i
        ),
        "sum the squares of all i · j products": (
            lambda a, b, i, j: (
                (torch.linalg.svd(a).U[:, :i].T @ torch.linalg.svd(b).U[:, :j]).abs().sum()
                / min(i, j)
            ),
            lambda a, b, i, j: (
                (torch.linalg.svd(a).U[:, :i].T @ torch.linalg.svd(b).U[:, :j])
                .diagonal()
                .square()
                .sum()
                / min(i, j)
            ),
        ),
        "sum the squares, without a root": lambda a, b, i, j: (
            (agreement(a, b, i, j) * min(i, j)).sqrt() / min(i, j)
        ),
        "directions are columns of U, not rows": lambda a, b, i, j: (
            (torch.linalg.svd(a).U[:i] @ torch.linalg.svd(b).U[:j].T).square().sum() / min(i, j)
        ),
        "the i-th and the j-th direction alone are not the first i and the first j": (
            lambda a, b, i, j: (
                torch.linalg.svd(a).U[:, i - 1] @ torch.linalg.svd(b).U[:, j - 1]
            ).square()
        ),
    },
)


WTE = torch.randn(9, 4) * torch.rand(9, 1) * 5
PROMPT = WTE[[7, 2, 4]] * torch.tensor([[0.1], [3.0], [0.5]]) + 0.02 * torch.randn(3, 4)
NEAREST = Exercise(
    nearest,
    [(PROMPT, WTE), (torch.randn(5, 4), WTE)],
    {
        "a cosine does not depend on lengths: divide by the norm of each row of both": (
            lambda prompt, wte: (prompt @ wte.T).argmax(1),
            lambda prompt, wte: (F.normalize(prompt, dim=1) @ wte.T).argmax(1),
        ),
        "this is the smallest distance, not the largest cosine": lambda prompt, wte: torch.cdist(
            prompt, wte
        ).argmin(1),
        "the largest cosine is the most similar one": lambda prompt, wte: (
            F.normalize(prompt, dim=1) @ F.normalize(wte, dim=1).T
        ).argmin(1),
        "one index for each embedding of the prompt, not for each word": lambda prompt, wte: (
            nearest(wte, prompt)
        ),
        "return the indices, not the cosines": lambda prompt, wte: (
            F.normalize(prompt, dim=1) @ F.normalize(wte, dim=1).T
        ).amax(1),
        "return the indices, not the rows of wte": lambda prompt, wte: wte[nearest(prompt, wte)],
    },
)
EXERCISES = [AGREEMENT, NEAREST]
