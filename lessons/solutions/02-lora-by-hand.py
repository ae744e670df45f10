"""Solutions of lesson 2, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. For one token h = W x. For tokens as rows this is X Wᵀ, as in nn.Linear.
def outputs(X, W, A, B, alpha):
    return X @ W.T + alpha / len(A) * X @ A.T @ B.T


# 2. A merge is a sum, so it can be undone. Each correction has its own alpha / r.
def switch(W, old, new):
    (A, B, alpha), (new_A, new_B, new_alpha) = old, new
    return W - alpha / len(A) * B @ A + new_alpha / len(new_A) * new_B @ new_A


# ---- For `check`
def correction(A, B, alpha):
    return alpha / len(A) * B @ A


def correction_by(matrix, each, shape=0):
    """Return a correction with alpha divided by another size: of A (0) or of B (1)."""
    return each[2] / each[matrix].shape[shape] * each[1] @ each[0]


torch.manual_seed(2)
N, IN, OUT, R, OTHER_R = 5, 4, 3, 7, 6  # all different, and not those of the lesson
X, W, A, B = (torch.randn(*shape) for shape in ((N, IN), (OUT, IN), (R, IN), (OUT, R)))
NEW = torch.randn(OTHER_R, IN), torch.randn(OUT, OTHER_R), 5.0
OUTPUTS = Exercise(
    outputs,
    [(X, W, A, B, 8.0)],
    {
        "a token is a row of X: W x becomes X Wᵀ": (
            lambda X, W, A, B, alpha: W @ X,
            lambda X, W, A, B, alpha: X @ W,
        ),
        "a token is a row of X: B A x becomes X Aᵀ Bᵀ": (
            lambda X, W, A, B, alpha: X @ W.T + alpha / len(A) * B @ A @ X.T,
            lambda X, W, A, B, alpha: X @ W.T + alpha / len(A) * X @ A @ B,
            lambda X, W, A, B, alpha: X @ W.T + alpha / len(A) * B @ (A @ X),
        ),
        "r is the number of A's rows, which is not the lesson's r here": (
            lambda X, W, A, B, alpha: outputs(X, W, A, B, alpha * len(A) / 2),
            lambda X, W, A, B, alpha: outputs(X, W, A, B, 3 * len(A) / 2),
        ),
        "multiply by alpha / r, not by alpha": lambda X, W, A, B, alpha: outputs(
            X, W, A, B, alpha * len(A)
        ),
        "alpha / r is missing": lambda X, W, A, B, alpha: outputs(X, W, A, B, len(A)),
        "divide alpha by r: the number of A's rows, or of B's columns": (
            lambda X, W, A, B, alpha: outputs(X, W, A, B, alpha * len(A) / A.shape[1]),
            lambda X, W, A, B, alpha: outputs(X, W, A, B, alpha * len(A) / len(B)),
            lambda X, W, A, B, alpha: outputs(X, W, A, B, alpha * len(A) / len(X)),
            lambda X, W, A, B, alpha: outputs(X, W, A, B, len(A) ** 2 / alpha),
        ),
        "the correction is added": lambda X, W, A, B, alpha: outputs(X, W, A, B, -alpha),
        "divide alpha by r, not by its root": lambda X, W, A, B, alpha: outputs(
            X, W, A, B, alpha * len(A) ** 0.5
        ),
        "alpha / r belongs to the correction only, not to W x": lambda X, W, A, B, alpha: outputs(
            X, alpha / len(A) * W, A, B, alpha
        ),
        "W x is missing: this is only the correction": lambda X, W, A, B, alpha: outputs(
            X, 0 * W, A, B, alpha
        ),
        "the tokens are the columns of your result, and must be its rows": lambda *all: (
            outputs(*all).T
        ),
    },
)
SWITCH = Exercise(
    switch,
    [(W, (A, B, 8.0), NEW)],
    {
        "the correction is B A: (out, r) times (r, in)": (
            lambda W, old, new: W - old[0] @ old[1] + new[0] @ new[1],
            lambda W, old, new: W - (old[1] @ old[0]).T + (new[1] @ new[0]).T,
        ),
        "W is missing": lambda W, old, new: correction(*new) - correction(*old),
        "the old correction is still in W: subtract it": lambda W, old, new: W + correction(*new),
        "the new correction is missing": lambda W, old, new: W - correction(*old),
        "you added the old correction once more": lambda W, old, new: (
            W + correction(*old) + correction(*new)
        ),
        "each correction has its own alpha and its own r": lambda W, old, new: (
            W - correction(*old) + old[2] / len(old[0]) * new[1] @ new[0]
        ),
        "the old correction has its own r": lambda W, old, new: (
            W - old[2] / len(new[0]) * old[1] @ old[0] + correction(*new)
        ),
        "r is the number of A's rows, or of B's columns": (
            lambda W, old, new: W - correction_by(0, old, shape=1) + correction_by(0, new, shape=1),
            lambda W, old, new: W - correction_by(1, old) + correction_by(1, new),
        ),
        "the new correction has its own r": lambda W, old, new: (
            W - correction(*old) + new[2] / len(old[0]) * new[1] @ new[0]
        ),
        "the new correction has its own alpha": lambda W, old, new: (
            W - correction(*old) + old[2] / len(new[0]) * new[1] @ new[0]
        ),
        "the signs are exchanged: the old correction goes, the new one comes": (
            lambda W, old, new: W + correction(*old) - correction(*new)
        ),
        "alpha / r is missing": lambda W, old, new: W - old[1] @ old[0] + new[1] @ new[0],
        "multiply by alpha / r, not by alpha": lambda W, old, new: (
            W - old[2] * old[1] @ old[0] + new[2] * new[1] @ new[0]
        ),
    },
)
EXERCISES = [OUTPUTS, SWITCH]
