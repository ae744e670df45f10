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


def sum_and_rows(pair):
    """Return what must be right in either order of the two: the sum, and the rows of A."""
    A, B = (matrix.double() for matrix in pair)
    return B @ A, A[A[:, 0].argsort()]


def described(value):
    """Return the shapes and the product of a pair in a few words."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        return f"{value!r:.60}"
    A, B = value
    try:
        return f"A {tuple(A.shape)} and B {tuple(B.shape)} with (B A)[0, 0] = {(B @ A)[0, 0]:.3f}"
    except Exception:
        return f"{value!r:.60}"


def draw_pair(found, right):
    try:
        if torch.allclose(sum_and_rows(found)[0], sum_and_rows(right)[0]):
            return "B A is right, but all factors must be in B, so that A is unchanged"
    except Exception:
        pass
    return f"it returns {described(found)}; right is {described(right)}"


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
        "a bias is not adapted: count A and B only": (
            lambda hidden, inner, layers, rank: (
                count(hidden, inner, layers, rank) + layers * (5 * hidden + inner)
            ),
            lambda hidden, inner, layers, rank: (
                count(hidden, inner, layers, rank) + layers * (2 * hidden + inner)
            ),
        ),
        "c_fc and c_proj need r · (hidden + inner) each": (
            lambda hidden, inner, layers, rank: layers * rank * (8 * hidden + 2 * inner),
            lambda hidden, inner, layers, rank: layers * rank * (8 * hidden + 4 * inner),
        ),
        "inner is given, and need not be 4 · hidden": lambda hidden, inner, layers, rank: (
            layers * rank * 18 * hidden
        ),
        "the layers of attention are missing": lambda hidden, inner, layers, rank: (
            layers * rank * 2 * (hidden + inner)
        ),
        "you count A or B only: there are both": lambda hidden, inner, layers, rank: (
            layers * rank * (5 * hidden + inner)
        ),
    },
)
torch.manual_seed(3)
IN, OUT, R, OTHER_R = 6, 4, 2, 3
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
        "the first correction has its own alpha / r": lambda first, second: joined(
            first, second, second[2] / OTHER_R, second[2] / OTHER_R
        ),
        "the columns of B must have the order of the rows of A": (
            lambda first, second: (together(first, second)[0], together(second, first)[1]),
            lambda first, second: (together(second, first)[0], together(first, second)[1]),
        ),
        "return A first, then B": lambda first, second: together(first, second)[::-1],
        "each correction needs its own factor": (
            lambda first, second: joined(first, second, first[2] / R, 1),
            lambda first, second: joined(first, second, 1, second[2] / OTHER_R),
            lambda first, second: joined(
                first, second, *[(first[2] + second[2]) / (R + OTHER_R)] * 2
            ),
            lambda first, second: joined(first, second, *[first[2] / R * second[2] / OTHER_R] * 2),
        ),
        "r is the number of A's rows, or of B's columns": (
            lambda first, second: joined(
                first, second, first[2] / len(first[1]), second[2] / len(second[1])
            ),
            lambda first, second: joined(first, second, first[2] / IN, second[2] / IN),
        ),
        "return a pair (A, B), not their product": lambda first, second: (
            together(first, second)[1] @ together(first, second)[0]
        ),
    },
    draw=draw_pair,
    compared=sum_and_rows,
)
EXERCISES = [COUNT, TOGETHER]
