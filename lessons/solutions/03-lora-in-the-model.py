"""Solutions of lesson 3, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. A linear layer needs r · (in + out): the four of attention 2 · hidden, the two of the MLP
#    hidden + inner.
def count(hidden, inner, layers, rank):
    return layers * rank * (4 * 2 * hidden + 2 * (hidden + inner))


# 2. B A is a sum over the r columns of B and rows of A. Two sums are one longer sum.
def together(first, second):
    (A, B, alpha), (other_A, other_B, other_alpha) = first, second
    scaled = alpha / len(A) * B, other_alpha / len(other_A) * other_B
    return torch.cat([A, other_A]), torch.cat(scaled, dim=1)


# ---- For `check`
def joined(first, second, scale, other_scale):
    (A, B, _), (other_A, other_B, _) = first, second
    return torch.cat([A, other_A]), torch.cat([scale * B, other_scale * other_B], dim=1)


def with_sum_of_ranks(first, second):
    rank = len(first[0]) + len(second[0])
    return joined(first, second, first[2] / rank, second[2] / rank)


COUNT = Exercise(
    count,
    [(12, 40, 3, 2), (20, 30, 5, 7)],
    {
        "these are only the layers of attention": lambda hidden, inner, layers, rank: (
            layers * rank * 8 * hidden
        ),
        "these are only q and v": lambda hidden, inner, layers, rank: layers * rank * 4 * hidden,
        "attention has four layers, not two": lambda hidden, inner, layers, rank: (
            layers * rank * (4 * hidden + 2 * (hidden + inner))
        ),
        "c_fc and c_proj are not square: they need hidden + inner": (
            lambda hidden, inner, layers, rank: layers * rank * 12 * hidden
        ),
        "this is the size of one layer: multiply by the number of layers": (
            lambda hidden, inner, layers, rank: count(hidden, inner, 1, rank)
        ),
        "c_fc and c_proj are both needed": lambda hidden, inner, layers, rank: (
            layers * rank * (9 * hidden + inner)
        ),
        "this is the size of the frozen weights: A and B have r · (in + out)": (
            lambda hidden, inner, layers, rank: layers * (4 * hidden**2 + 2 * hidden * inner)
        ),
        "a bias is not adapted: count A and B only": lambda hidden, inner, layers, rank: (
            count(hidden, inner, layers, rank) + layers * (5 * hidden + inner)
        ),
        "you count A or B only: there are both": lambda hidden, inner, layers, rank: (
            layers * rank * (5 * hidden + inner)
        ),
    },
)
torch.manual_seed(3)
IN, OUT, R, OTHER_R = 5, 4, 2, 3
FIRST = torch.randn(R, IN), torch.randn(OUT, R), 6.0
SECOND = torch.randn(OTHER_R, IN), torch.randn(OUT, OTHER_R), 4.0
TOGETHER = Exercise(
    together,
    [(FIRST, SECOND)],
    {
        "alpha / r is missing": lambda first, second: joined(first, second, 1, 1),
        "multiply by alpha / r, not by alpha": lambda first, second: joined(
            first, second, first[2], second[2]
        ),
        "two A of different ranks have no sum: concatenate them, and the two B too": (
            lambda first, second: (first[0] + second[0], first[1] + second[1])
        ),
        "concatenate the columns of B (dim=1): they belong to the rows of A": (
            lambda first, second: (
                torch.cat([first[0], second[0]]),
                torch.cat([first[1], second[1]]),
            )
        ),
        "each correction keeps its own r in alpha / r, not the sum of both": with_sum_of_ranks,
        "the factors must be in B, not in A": lambda first, second: (
            torch.cat([first[2] / R * first[0], second[2] / OTHER_R * second[0]]),
            torch.cat([first[1], second[1]], dim=1),
        ),
        "the factors must be in B only, not in both": lambda first, second: (
            torch.cat([first[2] / R * first[0], second[2] / OTHER_R * second[0]]),
            together(first, second)[1],
        ),
        "the second correction has its own alpha / r": lambda first, second: joined(
            first, second, first[2] / R, first[2] / R
        ),
        "the columns of B must have the order of the rows of A": lambda first, second: (
            together(first, second)[0],
            together(second, first)[1],
        ),
        "return a pair (A, B), not their product": lambda first, second: (
            together(first, second)[1] @ together(first, second)[0]
        ),
    },
    # In either order of the two: the sum, and the rows of A.
    compared=lambda pair: (pair[1] @ pair[0], pair[0][pair[0][:, 0].argsort()]),
)
EXERCISES = [COUNT, TOGETHER]
