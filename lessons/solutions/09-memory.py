"""Solutions of lesson 9, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. A trained number has 4 bytes, as have its gradient and AdamW's two means: 16 bytes.
def bytes_needed(frozen, trained, bits):
    return frozen * bits / 8 + 16 * trained


# 2. The largest whole number of 8 bits is 127, of 4 bits 7: 2 ** (bits - 1) - 1.
def quantize(W, bits):
    scale = W.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)  # (rows, 1)
    return (W / scale).round(), scale


# ---- For `check`
BYTES = Exercise(
    bytes_needed,
    [(1000, 24, 4), (640, 50, 8), (100, 7, 32)],
    {
        "gradients and the optimizer are for the trained numbers only": lambda f, t, bits: (
            f * bits / 8 + 12 * f + 16 * t
        ),
        "a trained number has 16 bytes: itself, its gradient and AdamW's two means": (
            lambda f, t, bits: f * bits / 8 + 12 * t,
            lambda f, t, bits: f * bits / 8 + 8 * t,
            lambda f, t, bits: f * bits / 8 + 4 * t,
        ),
        "a byte has 8 bits": lambda f, t, bits: f * bits + 16 * t,
        "the trained numbers are in fp32, whatever the frozen ones have": (
            lambda f, t, bits: (f + 4 * t) * bits / 8,
            lambda f, t, bits: (f + t) * bits / 8 + 12 * t,
        ),
        "the frozen numbers have `bits` bits each": lambda f, t, bits: 4 * f + 16 * t,
        "only the trained numbers have gradients and means": lambda f, t, bits: 16 * (f + t),
        "the frozen numbers are in memory, too": lambda f, t, bits: 16.0 * t,
    },
)
torch.manual_seed(9)
SHAPES = [(torch.randn(3, 5), 8), (torch.randn(4, 6), 4)]
QUANTIZE = Exercise(
    quantize,
    SHAPES,
    {
        "the scale is that of each row, not of the whole matrix": (
            lambda W, bits: (
                (W / (scale := W.abs().max() / (2 ** (bits - 1) - 1))).round(),
                scale.expand(len(W), 1),
            ),
            lambda W, bits: ((W / (scale := W.abs().max() / (2 ** (bits - 1) - 1))).round(), scale),
        ),
        "rows, not columns: amax over dimension 1": lambda W, bits: (
            (W / (scale := W.abs().amax(0, keepdim=True) / (2 ** (bits - 1) - 1))).round(),
            scale,
        ),
        "keep the dimension of the scale: (rows, 1)": lambda W, bits: (
            quantize(W, bits)[0],
            quantize(W, bits)[1].squeeze(1),
        ),
        "weights can be negative: take the largest absolute value": lambda W, bits: (
            (W / (scale := W.amax(1, keepdim=True) / (2 ** (bits - 1) - 1))).round(),
            scale,
        ),
        "round to the nearest whole number, do not cut off": (
            lambda W, bits: ((W / quantize(W, bits)[1]).trunc(), quantize(W, bits)[1]),
            lambda W, bits: ((W / quantize(W, bits)[1]).int(), quantize(W, bits)[1]),
            lambda W, bits: ((W / quantize(W, bits)[1]).floor(), quantize(W, bits)[1]),
        ),
        "one bit is the sign: the largest number of 8 bits is 127": (
            lambda W, bits: (
                (W / (scale := W.abs().amax(1, keepdim=True) / (2**bits - 1))).round(),
                scale,
            ),
            lambda W, bits: (
                (W / (scale := W.abs().amax(1, keepdim=True) / 2 ** (bits - 1))).round(),
                scale,
            ),
        ),
        "127 is for 8 bits only": lambda W, bits: quantize(W, 8),
        "return a pair: the whole numbers, then the scales": (
            lambda W, bits: quantize(W, bits)[::-1],
            lambda W, bits: quantize(W, bits)[0],
            lambda W, bits: quantize(W, bits)[0] * quantize(W, bits)[1],
        ),
        "round to whole numbers": lambda W, bits: (W / quantize(W, bits)[1], quantize(W, bits)[1]),
        "return the whole numbers, not the weights that they stand for": lambda W, bits: (
            quantize(W, bits)[0] * quantize(W, bits)[1],
            quantize(W, bits)[1],
        ),
        "the scale is the weight that the number 1 stands for": lambda W, bits: (
            quantize(W, bits)[0],
            1 / quantize(W, bits)[1],
        ),
    },
)
EXERCISES = [BYTES, QUANTIZE]
