"""LoRA: a frozen linear layer learns a correction of low rank (Hu et al. 2021, section 4.1).

    h = W x + (alpha / r) · B A dropout(x)        A (r, in) random, B (out, r) zero at the start

Only A and B train. B starts at zero, so that training starts from the model as it was. `merge_lora`
adds the correction to W; nothing else ever moves a weight.
"""

import math
import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.elementwise import drop
from neo_peft.errors import InputError

BIAS = ("none", "all", "lora_only")
INIT = ("kaiming", "gaussian")


class LoRALinear(nn.Linear):
    """A frozen linear layer and its correction. It keeps the layer's own `weight` and `bias`, under
    their names."""

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool, init: str
    ):
        nn.Module.__init__(self)  # nn.Linear's own would draw a weight that is not wanted
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        # Kalajdzievski 2023 (rsLoRA): with sqrt(r) the step does not shrink as the rank grows.
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout = dropout
        # The same draws in the same order as peft, so that one seed gives the same A: both layers
        # draw their own start first, and A is drawn again after it. They are the CPU generator's,
        # whatever the device.
        self.lora_A = nn.Linear(
            base.in_features, rank, bias=False, device="cpu", dtype=torch.float32
        )
        self.lora_B = nn.Linear(
            rank, base.out_features, bias=False, device="cpu", dtype=torch.float32
        )
        if init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.lora_A.to(base.weight.device)
        self.lora_B.to(base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        out += self.correction(x)
        return out

    def correction(self, x: Tensor) -> Tensor:
        """Compute what is added to the frozen layer's output: (alpha / r) · B A dropout(x)."""
        scaling = self.scaling
        if self.training and self.dropout:
            x, stays = drop(x, self.dropout)
            scaling /= stays
        return self.lora_B(scaling * self.lora_A(x))  # scaled where it is small, (N, r)

    def merged(self) -> nn.Linear:
        """Make the plain layer that computes the same: W + (alpha / r) · B A, summed in fp32."""
        correction = self.scaling * self.lora_B.weight.float() @ self.lora_A.weight.float()
        weight = (self.weight.float() + correction).to(self.weight.dtype)
        if not weight.isfinite().all():
            raise InputError(
                "merging LoRA gives weights that are not finite: the adapter or its base is broken"
            )
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = self.bias
        return plain


def add_lora(
    trunk: nn.Module,
    target_modules: Iterable[str] = ("q_proj", "v_proj"),
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    bias: str = "none",
    rslora: bool = False,
    init: str = "kaiming",
) -> list[str]:
    """Freeze a trunk, put LoRA on the linear layers that `target_modules` name, and return their
    names.

    A target is the end of a module's name (`q_proj`, `mlp.c_fc`), a regular expression for the
    whole name (with the published `transformer.` in front or without it), or `all-linear`. Each
    must match, else InputError. `bias` says which biases train too: none, all of the trunk's (the
    norms' among them), or lora_only, those of the layers that carry LoRA.
    """
    if bias not in BIAS or init not in INIT:
        raise InputError(
            f"bias is one of {', '.join(BIAS)}, not {bias!r}, and init of {', '.join(INIT)}, not "
            f"{init!r}"
        )
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise InputError(
            f"LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1; these are {rank}, {alpha}, "
            f"{dropout}"
        )
    if any(isinstance(module, LoRALinear) for module in trunk.modules()):
        raise InputError(
            "the trunk carries LoRA already, which a second one would throw away; merge it first"
        )
    names = match_targets(trunk, target_modules)
    trunk.requires_grad_(False)
    for name in names:
        layer = LoRALinear(trunk.get_submodule(name), rank, alpha, dropout, rslora, init)
        trunk.set_submodule(name, layer)
        if bias == "lora_only" and layer.bias is not None:
            layer.bias.requires_grad_(True)
    if bias == "all":
        for name, parameter in trunk.named_parameters():
            if name.split(".")[-1] == "bias":
                parameter.requires_grad_(True)
    return names


def match_targets(trunk: nn.Module, target_modules: Iterable[str]) -> list[str]:
    """Name the linear layers that the targets mean, in the trunk's own order."""
    linear = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    matched, lost = set(), []
    for target in target_modules:
        found = [name for name in linear if _matches(target, name)]
        matched.update(found)
        if not found:
            lost.append(target)
    if lost or not matched:
        kinds = sorted({name.split(".")[-1] for name in linear})
        raise InputError(
            "no linear layer is named by the target "
            f"{', '.join(map(repr, lost)) or 'list, which is empty'}; "
            f"there are {', '.join(kinds)} (for example {linear[0] if linear else 'none'}), and "
            "all-linear"
        )
    return [name for name in linear if name in matched]


def _matches(target: str, name: str) -> bool:
    published = "transformer." + name  # checkpoints and peft name the trunk too
    if target == "all-linear" or target == published or published.endswith("." + target):
        return True
    try:
        return any(re.fullmatch(target, whole) for whole in (name, published))
    except re.error as error:
        raise InputError(
            f"the target {target!r} is neither a module's name nor a regular expression: {error}"
        ) from None


def merge_lora(model: nn.Module) -> None:
    """Replace every LoRA layer in the model by the plain layer that computes the same: all of them,
    or none."""
    merged = {
        name: module.merged()
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }
    for name, plain in merged.items():
        model.set_submodule(name, plain)
