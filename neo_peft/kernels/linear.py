"""Linear layers. On a CPU, large frozen weights in fp32 are multiplied by the library oneDNN.

torch's own linear layer uses the library MKL in fp32. On some processors oneDNN, which torch
contains too, multiplies large matrices faster.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The smallest weight for which oneDNN is used: for each new number of tokens it compiles a kernel,
# which costs half a millisecond. A smaller product saves less than that.
LARGE = 768 * 768
# Whether this torch has oneDNN and its layer, which is not public.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def frozen_layer(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a linear layer with this weight, which is not trained, and this bias."""
    layer = Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), bias
    return layer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, as F.linear does. For a large frozen weight in fp32, oneDNN computes it
    and its gradient: then the sums have another order."""
    if not weight.requires_grad and uses_onednn(x, weight):
        return FrozenLinear.apply(x, lambda: weight, bias)
    return F.linear(x, weight, bias)


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and HAS_ONEDNN
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= LARGE
    )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, without a gradient of its own."""
    if uses_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class FrozenLinear(torch.autograd.Function):
    """x Wᵀ + bias, with the gradients of x and the bias. A function returns W, so that it can be
    computed in both passes and stored in neither (quantized.py)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return multiply(x, weight(), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x = bias = None
        if ctx.needs_input_grad[0]:
            x = multiply(gradient, ctx.weight().t())
        if ctx.needs_input_grad[2]:
            bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return x, None, bias
