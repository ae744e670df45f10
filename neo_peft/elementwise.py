"""GELU and dropout, written to be fast on a CPU, and AdamW, written to be there at once. On a GPU
torch's own GELU and dropout are used.

On a CPU torch's GELU computes a tanh, which takes three times as long as a sigmoid. torch's dropout
draws 64 random bits for each element. The first optimizer of torch imports its compiler, which
takes almost as long as importing torch.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 2 * math.sqrt(2 / math.pi)  # 2u = SLOPE x + CUBIC x³
CUBIC = SLOPE * 0.044715


def gelu_new(x: Tensor) -> Tensor:
    """Return GPT-Neo's activation: x (1 + tanh u) / 2 = x σ(2u), u = sqrt(2/pi) (x + 0.044715 x³).

    Hendrycks & Gimpel 2016, section 2.
    """
    return GeluNew.apply(x) if x.device.type == "cpu" else F.gelu(x, approximate="tanh")


class GeluNew(torch.autograd.Function):
    """x σ(2u). `forward` saves the derivative for `backward`, not x: both need the same sigmoid."""

    @staticmethod
    def forward(ctx, input: Tensor) -> Tensor:
        # In place where possible: on a CPU, to allocate memory costs as much as a pass over it.
        x = input.float()
        square = x * x
        gate = (square * CUBIC).add_(SLOPE).mul_(x).sigmoid_()  # σ(2u)
        y = x * gate
        if ctx.needs_input_grad[0]:
            derivative = square.mul_(3 * CUBIC).add_(SLOPE).mul_(y)  # x σ(2u) (2u)'
            # x σ(2u) (1 − σ(2u)) (2u)' + σ(2u)
            derivative.addcmul_(derivative, gate, value=-1).add_(gate)
            ctx.save_for_backward(derivative.to(input.dtype))
        return y.to(input.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative


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


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2). It gives the same bits as `torch.optim.AdamW`.

    groups: (parameters, their weight decay). A group can be empty.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
    MOMENTS = ("exp_avg", "exp_avg_sq")  # averages of the gradient and of its square

    def __init__(self, groups: Iterable[tuple[list[Tensor], float]], learning_rate: float):
        self.param_groups = [
            {"params": parameters, "weight_decay": decay, "lr": learning_rate}
            for parameters, decay in groups
        ]
        # {parameter: its "step" and its moments}, from its first gradient on
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def state_of(self, p: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter. Before its first step there is a new one."""
        if p not in self.state:
            moments = {name: torch.zeros_like(p) for name in self.MOMENTS}
            self.state[p] = {"step": torch.zeros(())} | moments
        return self.state[p]

    @torch.no_grad()
    def step(self) -> None:
        """Change all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            steps, means, squares = (
                [self.state_of(p)[name] for p in parameters] for name in ("step", *self.MOMENTS)
            )
            # A `_foreach` function is one operation on all tensors of a list: on a GPU, one kernel.
            torch._foreach_add_(steps, 1)
            counts = [step.item() for step in steps]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_lerp_(means, gradients, 1 - self.BETA1)
            torch._foreach_mul_(squares, self.BETA2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - self.BETA2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, [(1 - self.BETA2**count) ** 0.5 for count in counts])
            torch._foreach_add_(roots, self.EPSILON)
            factors = [-group["lr"] / (1 - self.BETA1**count) for count in counts]
            torch._foreach_addcdiv_(parameters, means, roots, factors)
