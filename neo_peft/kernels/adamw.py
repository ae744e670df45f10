"""AdamW, written out: torch's first optimizer imports torch's compiler, which takes seconds."""

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2). It gives the same bits as `torch.optim.AdamW`
    for parameters in fp32, and no others are trained here.

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
