"""Solutions of lesson 6, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. The share of the prefix is e^lse_prefix / (e^lse_prefix + e^lse_text): a sigmoid.
def mix(o_prefix, o_text, lse_prefix, lse_text):
    share = torch.sigmoid(lse_prefix - lse_text)
    return share * o_prefix + (1 - share) * o_text


# 2. A prefix has a key and a value for each position and layer. LoRA has A (r, H) and B (H, r) in
#    two linear layers of each layer.
def trained(P, r, layers, H):
    return P * H, P * 2 * layers * H, layers * 2 * r * (H + H)


# ---- For `check`
torch.manual_seed(6)


def attended(keys):
    """Return the result of attention to some keys, and the log-sum-exp of its scores."""
    scores, values = torch.randn(keys), torch.randn(keys, 3)
    return scores.softmax(0) @ values, scores.logsumexp(0)


def case(P, T):
    (o_prefix, lse_prefix), (o_text, lse_text) = attended(P), attended(T)
    return o_prefix, o_text, lse_prefix, lse_text


MIX = Exercise(
    mix,
    [case(2, 5), case(4, 3)],
    {
        "the shares are those of the exponentials, not of the log-sum-exps": (
            lambda a, b, p, t: (p * a + t * b) / (p + t)
        ),
        "the shares are exchanged": lambda a, b, p, t: mix(b, a, p, t),
        "the shares must sum to 1: divide by the sum of both exponentials": lambda a, b, p, t: (
            p.exp() * a + t.exp() * b
        ),
        "weigh the two results: they do not count alike": (
            lambda a, b, p, t: (a + b) / 2,
            lambda a, b, p, t: a + b,
        ),
        "the text's part is missing": lambda a, b, p, t: torch.sigmoid(p - t) * a,
        "the text's share is 1 minus the prefix's": lambda a, b, p, t: b + torch.sigmoid(p - t) * a,
    },
)
TRAINED = Exercise(
    trained,
    [(8, 3, 5, 32), (5, 2, 7, 24)],
    {
        "a prefix has keys and values: two vectors for each position and layer": (
            lambda P, r, layers, H: (P * H, P * layers * H, layers * 2 * r * (H + H))
        ),
        "the order is prompt, prefix, LoRA": lambda P, r, layers, H: (
            P * H,
            layers * 2 * r * (H + H),
            P * 2 * layers * H,
        ),
        "return a tuple of three numbers": lambda P, r, layers, H: sum(trained(P, r, layers, H)),
        "a prompt is only in front of the first layer": lambda P, r, layers, H: (
            P * layers * H,
            P * 2 * layers * H,
            layers * 2 * r * (H + H),
        ),
        "LoRA has A and B, and is on two linear layers of each layer": lambda P, r, layers, H: (
            P * H,
            P * 2 * layers * H,
            layers * 2 * r * H,
        ),
        "A and B are added in number, not multiplied": lambda P, r, layers, H: (
            P * H,
            P * 2 * layers * H,
            layers * 2 * r * H * H,
        ),
        "every layer has a prefix and LoRA": lambda P, r, layers, H: (
            P * H,
            P * 2 * H,
            2 * r * (H + H),
        ),
    },
)
EXERCISES = [MIX, TRAINED]
