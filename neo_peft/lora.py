"""LoRA: a frozen linear layer learns a correction of low rank (Hu et al. 2021, section 4.1).

    h = W x + (alpha / r) · B A dropout(x)        A (r, in) random, B (out, r) zero at the start

Only A and B train. B starts at zero, so that training starts from the model as it was. `merge_lora`
adds the correction to W; nothing else ever moves a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neo_peft.elementwise import drop
from neo_peft.errors import InputError
from neo_peft.methods import LORA

if TYPE_CHECKING:
    from neo_peft.model import TunedModel
    from neo_peft.settings import Settings
    from neo_peft.tasks import Task


class LoRALinear(nn.Module):
    """A frozen linear layer, `base_layer`, and its correction.

    The frozen layer is asked for two things: its product, `base_layer(x)`, and its `weight`.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool, init: str
    ):
        super().__init__()
        self.base_layer = base
        # Kalajdzievski 2023 (rsLoRA): with sqrt(r) the step does not shrink as the rank grows.
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout = dropout
        # The same draws in the same order as peft, so that one seed gives the same A: both layers
        # draw their own start first, A again after it. They are the CPU's, whatever the device.
        inputs, outputs = base.in_features, base.out_features
        self.lora_A = nn.Linear(inputs, rank, bias=False, device="cpu", dtype=torch.float32)
        self.lora_B = nn.Linear(rank, outputs, bias=False, device="cpu", dtype=torch.float32)
        if init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.lora_A.to(base.weight.device)
        self.lora_B.to(base.weight.device)

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        out += self.correction(x)
        return out

    def correction(self, x: Tensor) -> Tensor:
        """Return what is added to the frozen layer's output: (alpha / r) · B A dropout(x)."""
        scaling = self.scaling
        if self.training and self.dropout:
            x, share = drop(x, self.dropout)
            scaling /= share
        return self.lora_B(scaling * self.lora_A(x))  # scaled where it is small, (N, r)

    def merged(self) -> nn.Linear:
        """Return the plain layer that computes the same: W + (alpha / r) · B A, summed in fp32."""
        base, A, B = self.base_layer, self.lora_A.weight.float(), self.lora_B.weight.float()
        weight = (base.weight.float() + self.scaling * B @ A).to(base.weight.dtype)
        if not weight.isfinite().all():
            raise InputError(
                "merging LoRA gives weights that are not finite: the adapter or its base is broken"
            )
        plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
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
    """Freeze a trunk, put LoRA on its layers that `target_modules` name, and return their names.

    A target is the end of a module's name (`q_proj`, `mlp.c_fc`), a regular expression for the
    whole name (with the published `transformer.` in front or without it), or `all-linear`. Each
    must match, else InputError. `bias` says which biases train too: none, all of the trunk's (the
    norms' among them), or lora_only, those of the layers that carry LoRA.
    """
    for name, value in (("bias", bias), ("lora_init", init)):
        if value not in (choices := LORA.flags[name]):
            raise InputError(f"{name} is one of {', '.join(choices)}, not {value!r}")
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        given = f"{rank}, {alpha}, {dropout}"
        raise InputError(f"LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1; these are {given}")
    if lora_layers(trunk):
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


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers that carry LoRA, by name."""
    return {name: one for name, one in model.named_modules() if isinstance(one, LoRALinear)}


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers: all that have a product and a weight (out, in).

    The parts of a layer that carries LoRA are not among them; the layer itself is.
    """
    names = []
    for name, layer in model.named_modules():
        inside = names and name.startswith(f"{names[-1]}.")
        if not inside and (hasattr(layer, "in_features") or isinstance(layer, LoRALinear)):
            names.append(name)
    return names


def match_targets(trunk: nn.Module, target_modules: Iterable[str]) -> list[str]:
    """Return the names of the linear layers that the targets mean, in the trunk's own order."""
    linear = linear_layers(trunk)
    matched, lost = set(), []
    for target in target_modules:
        found = [name for name in linear if _matches(target, name)]
        matched.update(found)
        if not found:
            lost.append(target)
    if lost or not matched:
        kinds = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise InputError(
            "no linear layer is named by the target "
            f"{', '.join(map(repr, lost)) or 'list, which is empty'}; there are {kinds} "
            f"(for example {linear[0] if linear else 'none'}), and all-linear"
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
    """Replace all LoRA layers, or none, by plain layers that compute the same."""
    merged = {name: layer.merged() for name, layer in lora_layers(model).items()}
    for name, plain in merged.items():
        model.set_submodule(name, plain)


# ---- LoRA as a method (see methods.py)


def apply(
    model: TunedModel, settings: Settings, task: Task, tokenize: Callable[[str], list[int]]
) -> None:
    """Put LoRA with a run's settings on a model's trunk."""
    s = settings
    low_rank = s.rank, s.alpha, s.dropout
    add_lora(model.transformer, s.target_modules, *low_rank, s.bias, s.rslora, s.lora_init)


def adapted_layers(model: nn.Module) -> dict[str, list[str]]:
    """Group the layers that carry LoRA: {"q_proj (256 → 256), rank 8": their names}."""
    groups = {}
    for name, layer in lora_layers(model).items():
        rank, inputs = layer.lora_A.weight.shape
        kind = f"{name.split('.')[-1]} ({inputs} → {len(layer.lora_B.weight)}), rank {rank}"
        groups.setdefault(kind, []).append(name)
    return groups


def warnings(model: nn.Module) -> list[str]:
    """Warn of each B that training has left at zero."""
    layers = lora_layers(model).items()
    zero = [f"{name}.lora_B.weight" for name, layer in layers if not layer.lora_B.weight.any()]
    found = f"LoRA's B is still zero in {len(zero)} layers, the first is"
    return [f"{found} {zero[0]}: nothing was learnt there"] if zero else []
