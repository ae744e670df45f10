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


torch.manual_seed(2)
N, IN, OUT, R, OTHER_R = 5, 4, 3, 2, 6
X, W, A, B = (torch.randn(*shape) for shape in ((N, IN), (OUT, IN), (R, IN), (OUT, R)))
NEW = torch.randn(OTHER_R, IN), torch.randn(OUT, OTHER_R), 5.0
OUTPUTS = Exercise(
    outputs,
    [(X, W, A, B, 7.0)],
    {
        "multiply by alpha / r, not by alpha": lambda X, W, A, B, alpha: outputs(
            X, W, A, B, alpha * len(A)
        ),
        "alpha / r is missing": lambda X, W, A, B, alpha: outputs(X, W, A, B, len(A)),
        "divide alpha by r, the number of A's rows, not by the number of its columns": (
            lambda X, W, A, B, alpha: outputs(X, W, A, B, alpha * len(A) / A.shape[1])
        ),
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
    [(W, (A, B, 7.0), NEW)],
    {
        "the old correction is still in W: subtract it": lambda W, old, new: W + correction(*new),
        "the new correction is missing": lambda W, old, new: W - correction(*old),
        "you added the old correction once more": lambda W, old, new: (
            W + correction(*old) + correction(*new)
        ),
        "each correction has its own alpha and its own r": lambda W, old, new: (
            W - correction(*old) + old[2] / len(old[0]) * new[1] @ new[0]
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
