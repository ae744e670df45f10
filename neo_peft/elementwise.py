"""Two element-wise steps of a layer, in the passes that a CPU is quickest at; a GPU has kernels of
its own for both.

torch's own compute gelu by a tanh, which takes three times as long as a sigmoid, and draw 64 bits
for each element.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 2 * math.sqrt(2 / math.pi)  # 2u = SLOPE x + CUBIC x³
CUBIC = SLOPE * 0.044715


def gelu_new(x: Tensor) -> Tensor:
    """Compute GPT-Neo's activation, x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x³): that
    is x σ(2u).

    Hendrycks & Gimpel 2016, section 2.
    """
    return GeluNew.apply(x) if x.device.type == "cpu" else F.gelu(x, approximate="tanh")


class GeluNew(torch.autograd.Function):
    """x σ(2u). Its derivative comes from the same sigmoid, and is kept for backward in the place of
    x."""

    @staticmethod
    def forward(ctx, given: Tensor) -> Tensor:
        # In place where it can be: to be given new memory costs a CPU as much as a pass over it.
        x = given.float()
        square = x * x
        gate = (square * CUBIC).add_(SLOPE).mul_(x).sigmoid_()  # σ(2u)
        y = x * gate
        if ctx.needs_input_grad[0]:
            derivative = square.mul_(3 * CUBIC).add_(SLOPE).mul_(y)  # x σ(2u) (2u)'
            # x σ(2u) (1 − σ(2u)) (2u)' + σ(2u)
            derivative.addcmul_(derivative, gate, value=-1).add_(gate)
            ctx.save_for_backward(derivative.to(given.dtype))
        return y.to(given.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative


def drop(x: Tensor, probability: float) -> tuple[Tensor, float]:
    """Set elements to zero at random, and return them with the number that they are yet to be
    divided by.

    Dropout divides by the share of elements that stay, so that their expectation stays too
    (Srivastava et al. 2014, section 10): LoRA, which multiplies anyway, does so where it costs
    nothing. On a CPU one random number of 64 bits decides on four elements, each with the
    probability to its nearest 1/65,536.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability), 1.0
    # of the 65,536 values that 16 bits take; one at least stays
    zeroed = min(round(probability * 65536), 65535)
    bits = (
        torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
        .random_(-(2**63), None)
        .view(torch.int16)
    )
    stays = bits[: x.numel()].view_as(x) >= zeroed - 32768
    return torch.where(stays, x, 0), 1 - zeroed / 65536
