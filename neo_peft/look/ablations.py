"""A run's model with one part of its adapter switched off.

Each `Ablation` is a context in which the model lacks a part; afterwards it has its own bits again:

all          all changed weights, or the prompt; the head stays
layer        the weights of one layer are the base's, or in this layer no text attends to the prompt
directions   each ΔW is cut to its first k singular directions, k = 1, 2, 4, …
position     one position of the prompt is left out; the others, and the text, keep their positions

A prompt here is a soft prompt or a trained prefix: both are keys and values before the text.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neo_peft.gptneo import NOWHERE, GPTNeo, Past
from neo_peft.look.spectra import WeightChange
from neo_peft.lora import LoRALinear, lora_layers
from neo_peft.model import TunedModel
from neo_peft.packing import Packing


class Ablation(NamedTuple):
    """A part that can be switched off."""

    group: str  # "all", "layer", "directions" or "position"
    name: str  # what is switched off, or what remains of ΔW
    switched_off: Callable[[], AbstractContextManager]  # the context in which it is off


def ablations(model: TunedModel, base: GPTNeo, changes: dict[str, WeightChange]) -> list[Ablation]:
    """Return all parts of a model's adapter. `base` is the untuned trunk."""
    parts, all_weights = weight_parts(model), partial(weights_of_base, model, base, "")
    no_prompt, in_front = partial(with_prompt, model, None), name_of_prompt(model)
    found = []
    if parts:
        found.append(Ablation("all", "all changed weights off", all_weights))
    if in_front:
        found.append(Ablation("all", f"{in_front} left out", no_prompt))
    if parts and in_front:
        found.append(Ablation("all", "both", partial(both, all_weights, no_prompt)))
    for prefix, title in parts.items():
        off = partial(weights_of_base, model, base, prefix)
        found.append(Ablation("layer", f"{title}: weights of the base", off))
    for index, block in enumerate(model.transformer.h if in_front else ()):
        off = partial(prompt_hidden, block, len(model.prompt))
        found.append(Ablation("layer", f"layer {index}: no attention to {in_front}", off))
    for k in powers_of_two(max((len(change.values) for change in changes.values()), default=0)):
        found.append(Ablation("directions", f"k = {k}", partial(cut, changes, k)))
    for position in range(len(model.prompt) if in_front else 0):
        without = WithoutPosition(model.prompt, position)
        off = partial(with_prompt, model, without)
        found.append(Ablation("position", f"position {position} left out", off))
    return found


def name_of_prompt(model: TunedModel) -> str:
    """Return what stands in front of every text: "the prompt", "the prefix", or ""."""
    if model.prompt is None:
        return ""
    return "the prefix" if model.prompt.embeddings is None else "the prompt"


@contextmanager
def both(
    first: Callable[[], AbstractContextManager], second: Callable[[], AbstractContextManager]
) -> Iterator[None]:
    """Switch off two parts."""
    with first(), second():
        yield


def powers_of_two(last: int) -> list[int]:
    """Return 1, 2, 4, … below `last`, then `last`; [] for 0."""
    powers = [2**n for n in range(last.bit_length()) if 2**n < last]
    return [*powers, last] if last else []


# ---- Changed weights


def weight_parts(model: TunedModel) -> dict[str, str]:
    """Return the parts of the trunk with trained weights: the start of their parameters' names,
    and their titles, such as "h.0." and "layer 0"."""
    parts = {}
    for name, parameter in model.transformer.named_parameters():
        if parameter.requires_grad:
            first, second = name.split(".")[:2]
            is_layer = first == "h"
            prefix = f"h.{second}." if is_layer else f"{first}."
            parts[prefix] = f"layer {second}" if is_layer else first
    return parts


@contextmanager
def weights_of_base(model: TunedModel, base: GPTNeo, prefix: str) -> Iterator[None]:
    """Give the parameters whose names start with `prefix` the base's values. LoRA there adds
    nothing."""
    originals = dict(base.named_parameters())
    layers = lora_layers(model.transformer).items()
    scalings = {layer: layer.scaling for name, layer in layers if name.startswith(prefix)}
    tuned = {}
    for name, parameter in model.transformer.named_parameters():
        original = originals.get(name.replace(".base_layer", ""))  # LoRA's own have none
        if parameter.requires_grad and name.startswith(prefix) and original is not None:
            tuned[parameter], parameter.data = parameter.data, original.data
    for layer in scalings:
        layer.scaling = 0.0
    try:
        yield
    finally:
        for layer, scaling in scalings.items():
            layer.scaling = scaling
        for parameter, data in tuned.items():
            parameter.data = data


@contextmanager
def cut(changes: dict[str, WeightChange], k: int) -> Iterator[None]:
    """Cut each ΔW to its first k singular directions. Biases, norms and embeddings stay tuned."""
    tuned = {}
    for change in changes.values():
        for parameter, data in cut_weights(change, k).items():
            tuned[parameter], parameter.data = parameter.data, data.to(parameter)
    try:
        yield
    finally:
        for parameter, data in tuned.items():
            parameter.data = data


def cut_weights(change: WeightChange, k: int) -> dict[nn.Parameter, Tensor]:
    """Return the values of a layer's trained matrices with which its ΔW has k directions."""
    layer, first = change.layer, change.first(k)
    if isinstance(layer, LoRALinear):
        columns = first.left * first.values / layer.scaling
        return {layer.lora_A.weight: first.right, layer.lora_B.weight: columns}
    return {layer.weight: change.base.weight.detach().double().cpu() + first.written_out()}


# ---- The prompt


@contextmanager
def with_prompt(model: TunedModel, prompt: nn.Module | None) -> Iterator[None]:
    """Give a model another prompt, or none."""
    own, model.prompt = model.prompt, prompt
    try:
        yield
    finally:
        model.prompt = own


@contextmanager
def prompt_hidden(block: nn.Module, length: int) -> Iterator[None]:
    """Hide the prompt of this length in one layer: the masks let no token attend to it."""

    def hide(block: nn.Module, inputs: tuple) -> tuple | None:
        x, packing, past, masks, wanted = inputs
        if past is None:  # the prompt itself goes through the layer
            return None
        masks = [mask.clone() for mask in masks]  # (b, 1, Q, S), the prompt's keys first
        for mask in masks:
            mask[..., :length] = False
        return x, packing, past, masks, wanted

    hook = block.register_forward_pre_hook(hide)
    try:
        yield
    finally:
        hook.remove()


class WithoutPosition(nn.Module):
    """A prompt or a prefix without one of its positions."""

    embeddings = None  # keys and values are given directly: see TunedModel

    def __init__(self, prompt: nn.Module, position: int):
        super().__init__()
        self.prompt, self.position = prompt, position

    def __len__(self) -> int:
        return len(self.prompt)

    def past(self, trunk: GPTNeo) -> Past:
        """Return the keys and values. Those of the position that is left out are NOWHERE, where no
        token sees them. A soft prompt's other embeddings are computed without it too."""
        past, positions = self.prompt.past(trunk), torch.arange(len(self))
        kept = positions[positions != self.position].to(past.positions.device)
        if self.prompt.embeddings is not None and len(kept):
            past = embeddings_at(trunk, self.prompt.embeddings, kept, past)
        shown = past.positions.clone()
        shown[:, self.position] = NOWHERE
        return replace(past, positions=shown)


def embeddings_at(trunk: GPTNeo, embeddings: Tensor, kept: Tensor, past: Past) -> Past:
    """Return `past` (P positions) in which the positions `kept` are computed from their embeddings
    alone."""
    packing = Packing.of_texts(torch.tensor([len(kept)])).to(kept.device)
    grid = replace(packing.grids[0], positions=kept[None])
    packing = replace(packing, grids=(grid,), positions=kept)
    _, new = trunk.layers(embeddings[kept], packing, past=None, wanted=kept[:0])
    for stored, tensors in zip((past.keys, past.values), zip(*new, strict=True), strict=True):
        for tensor, computed in zip(stored, tensors, strict=True):
            tensor[:, :, kept] = computed
    return past
