"""LoRA: a frozen linear layer gets a trained correction of low rank (Hu et al. 2021, section 4.1).

    h = W x + (alpha / r) · B A dropout(x)      at the start A (r, in) is random, B (out, r) zero

Only A and B are trained (and biases, if `bias` is set). B starts at zero, so training starts from
the untuned model. Only `merge_lora` changes W: it adds the correction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neo_peft.errors import InputError
from neo_peft.kernels.dropout import drop
from neo_peft.kernels.quantized import dequantize
from neo_peft.methods import LORA

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings
    from neo_peft.tasks import Task


class LoRALinear(nn.Module):
    """A frozen linear layer, `base_layer`, and its correction."""

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool, init: str
    ):
        super().__init__()
        self.base_layer = base
        # rsLoRA (Kalajdzievski 2023) divides by sqrt(r): gradients then do not fade as r grows.
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout = dropout
        # The random draws are those of peft, so that a seed gives the same A: nn.Linear initialises
        # A and B, then A again. They are on the CPU, so that every device gets the same values.
        inputs, outputs = base.in_features, base.out_features
        self.lora_A = nn.Linear(inputs, rank, bias=False, device="cpu", dtype=torch.float32)
        self.lora_B = nn.Linear(rank, outputs, bias=False, device="cpu", dtype=torch.float32)
        if init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.to(next(base.parameters()).device)

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        out += self.correction(x)
        return out

    def correction(self, x: Tensor) -> Tensor:
        """Return scaling · B A dropout(x), which is added to the frozen layer's output."""
        scaling = self.scaling
        if self.training and self.dropout:
            x, divisor = drop(x, self.dropout)  # x must still be divided by `divisor`
            scaling /= divisor
        return self.lora_B(scaling * self.lora_A(x))  # scale here: (N, r) is the smallest tensor

    def merged(self) -> nn.Linear:
        """Return an nn.Linear with the weight W + scaling · B A, which is summed in fp32."""
        base, A, B = self.base_layer, self.lora_A.weight.float(), self.lora_B.weight.float()
        weight = (base.weight.float() + self.scaling * B @ A).to(base.weight.dtype)
        if not weight.isfinite().all():
            reason = "damaged weights, or an overflow of the base's dtype"
            raise InputError(f"merging LoRA gives weights that are not finite: {reason}")
        plain = type(base)(base.in_features, base.out_features, base.bias is not None, "meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = base.bias
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
    """Freeze a trunk, add LoRA to the layers that match `target_modules`, and return their names.

    A target is the end of a module's name (`q_proj`, `mlp.c_fc`), a regular expression for the
    whole name (with or without `transformer.` at the start), or `all-linear`. A target that matches
    no layer raises InputError. `bias` chooses which biases are trained: none, all (of the whole
    trunk, norms included), or lora_only (of the layers with LoRA).
    """
    for name, value in (("bias", bias), ("lora_init", init)):
        if value not in (choices := LORA.flags[name]):
            raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        given = f"rank {rank}, alpha {alpha}, dropout {dropout}"
        raise InputError(f"LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1, not {given}")
    if lora_layers(trunk):
        raise InputError("the trunk already has LoRA; call merge_lora before you add another one")
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


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers with LoRA by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers. A layer with LoRA counts once, without its parts."""
    names = []
    for name, layer in model.named_modules():
        is_part = names and name.startswith(f"{names[-1]}.")
        if not is_part and (hasattr(layer, "in_features") or isinstance(layer, LoRALinear)):
            names.append(name)
    return names


def match_targets(trunk: nn.Module, target_modules: Iterable[str]) -> list[str]:
    """Return the names of the linear layers that match a target, in the trunk's order."""
    linear = linear_layers(trunk)
    matched, without_match = set(), []
    for target in target_modules:
        matches = [name for name in linear if _matches(target, name)]
        matched.update(matches)
        if not matches:
            without_match.append(target)
    if without_match or not matched:
        kinds = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        targets = ", ".join(map(repr, without_match)) or "an empty list"
        example = linear[0] if linear else "none"
        raise InputError(
            f"no linear layer matches {targets}; give the end of a name ({kinds}), a full name "
            f"such as {example}, or all-linear"
        )
    return [name for name in linear if name in matched]


def _matches(target: str, name: str) -> bool:
    published_name = "transformer." + name  # the name in checkpoints and in peft
    if target == "all-linear" or target == published_name or published_name.endswith("." + target):
        return True
    try:
        return any(re.fullmatch(target, full_name) for full_name in (name, published_name))
    except re.error as error:
        raise InputError(
            f"the target {target!r} is neither a module's name nor a regular expression: {error}"
        ) from None


def merge_lora(model: nn.Module) -> None:
    """Replace all LoRALinears by merged layers, or none. A quantised base becomes fp32 first."""
    dequantize(model)
    merged = {name: layer.merged() for name, layer in lora_layers(model).items()}
    for name, plain in merged.items():
        model.set_submodule(name, plain)


# ---- LoRA as a method (see methods.py)


def apply(
    model: TunedModel, settings: Settings, task: Task, tokenize: Callable[[str], list[int]]
) -> None:
    """Add LoRA with a run's settings to a model's trunk."""
    s = settings
    options = s.rank, s.alpha, s.dropout, s.bias, s.rslora, s.lora_init
    add_lora(model.transformer, s.target_modules, *options)


def adapted_layers(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the layers with LoRA by kind, such as "q_proj (256 → 256), rank 8"."""
    groups = {}
    for name, layer in lora_layers(model).items():
        rank, inputs = layer.lora_A.weight.shape
        kind = f"{name.split('.')[-1]} ({inputs} → {len(layer.lora_B.weight)}), rank {rank}"
        groups.setdefault(kind, []).append(name)
    return groups


def warnings(model: nn.Module) -> list[str]:
    """Return a warning if some B of a trained or loaded model is still zero."""
    layers = lora_layers(model).items()
    zero = [f"{name}.lora_B.weight" for name, layer in layers if not layer.lora_B.weight.any()]
    warning = f"LoRA's B is still zero in {len(zero)} layers; the first is"
    return [f"{warning} {zero[0]}. These layers learned nothing"] if zero else []
