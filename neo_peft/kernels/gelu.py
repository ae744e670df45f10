"""GPT-Neo's activation. torch's computes a tanh on a CPU, three times as slow as a sigmoid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 2 * math.sqrt(2 / math.pi)  # 2u = SLOPE x + CUBIC x³
CUBIC = SLOPE * 0.044715
PART = 64 * 1024  # number of elements that GELU computes at once; they stay in the cache


def gelu_new(x: Tensor, inplace: bool = False) -> Tensor:
    """Return GPT-Neo's activation: x (1 + tanh u) / 2 = x σ(2u), u = sqrt(2/pi) (x + 0.044715 x³).

    Hendrycks & Gimpel 2016, section 2. `inplace` writes it over x, except on a GPU.
    """
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    return GeluNew.apply(x if inplace else x.clone(memory_format=torch.contiguous_format))


class GeluNew(torch.autograd.Function):
    """x σ(2u), written over x. `forward` saves the derivative for `backward`, not x: both need the
    same sigmoid. Each part of x is small, so that the other tensors need little memory.
    """

    @staticmethod
    def forward(ctx, input: Tensor) -> Tensor:
        ctx.mark_dirty(input)
        derivative = torch.empty_like(input) if ctx.needs_input_grad[0] else input
        parts = input.view(-1).split(PART), derivative.view(-1).split(PART)
        for part, its_derivative in zip(*parts, strict=True):
            x = part.float()
            square = x * x
            gate = (square * CUBIC).add_(SLOPE).mul_(x).sigmoid_()  # σ(2u)
            y = x.mul_(gate)
            part.copy_(y)  # does nothing in fp32: x is `part` itself
            if derivative is not input:
                slope = square.mul_(3 * CUBIC).add_(SLOPE).mul_(y)  # x σ(2u) (2u)'
                # x σ(2u) (1 − σ(2u)) (2u)' + σ(2u)
                torch.add(slope.addcmul_(slope, gate, value=-1), gate, out=its_derivative)
        if derivative is not input:
            ctx.save_for_backward(derivative)
        return input

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return derivative.mul_(gradient)  # nothing else uses it; a second backward is refused
