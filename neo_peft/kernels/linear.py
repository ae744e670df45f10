"""Linear layers. On a CPU, large frozen weights in fp32 are multiplied by the library oneDNN.

torch's own linear layer uses the library MKL in fp32. On some processors oneDNN, which torch
contains too, multiplies large matrices faster.
"""

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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, as F.linear does. For a large frozen weight in fp32, oneDNN computes it
    and its gradient: then the sums have another order."""
    if (
        x.device.type == "cpu"
        and HAS_ONEDNN
        and torch.backends.mkldnn.enabled
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
            bias = gradient.reshape(-1, len(weight)).sum(0)
        return x, None, bias
