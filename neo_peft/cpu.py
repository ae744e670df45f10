"""Linear layers, GELU and dropout, written to be fast on a CPU. A GPU uses torch's own kernels.

On a CPU torch's GELU computes a tanh, which takes three times as long as a sigmoid. torch's dropout
draws 64 random bits for each element. Its linear layer uses the MKL library in fp32. On some
processors oneDNN, which torch contains too, multiplies large matrices faster.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 2 * math.sqrt(2 / math.pi)  # 2u = SLOPE x + CUBIC x³
CUBIC = SLOPE * 0.044715
PART = 64 * 1024  # number of elements that GELU computes at once; they stay in the cache

# The smallest weight for which oneDNN is used: for each new number of tokens it compiles a kernel,
# which costs half a millisecond. A smaller product saves less than that.
LARGE = 768 * 768


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, as F.linear does. For a large frozen weight in fp32, oneDNN computes it
    and its gradient: then the sums have another order."""
    if (
        x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not (weight.requires_grad or torch.is_autocast_enabled("cpu"))
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= LARGE
    ):
        return FrozenLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class FrozenLinear(torch.autograd.Function):
    """x Wᵀ + bias by oneDNN, with the gradients of x and the bias."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        x = bias = None
        if ctx.needs_input_grad[0]:
            x = torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")
        if ctx.needs_input_grad[2]:
            bias = gradient.flatten(0, -2).sum(0)
        return x, None, bias


def gelu_new(x: Tensor, inplace: bool = False) -> Tensor:
    """Return GPT-Neo's activation: x (1 + tanh u) / 2 = x σ(2u), u = sqrt(2/pi) (x + 0.044715 x³).

    Hendrycks & Gimpel 2016, section 2. `inplace` writes it over x, but on a GPU.
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


def drop(x: Tensor, probability: float) -> tuple[Tensor, float]:
    """Return x with random elements set to zero, and the number to divide it by (1 on a GPU).

    Dropout divides by the probability of keeping an element, so that the expected value does not
    change (Srivastava et al. 2014, section 10). The caller divides: LoRA does it within its own
    scale, at no cost. On a CPU one random 64-bit number decides four elements, so the probability
    is rounded to a multiple of 1/65,536.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability), 1.0
    # How many of the 65,536 values of 16 bits set an element to zero: not all of them.
    zeroed = min(round(probability * 65536), 65535)
    bits = (
        torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
        .random_(-(2**63), None)
        .view(torch.int16)
    )
    keep = bits[: x.numel()].view_as(x) >= zeroed - 32768
    return torch.where(keep, x, 0), 1 - zeroed / 65536
