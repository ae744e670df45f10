"""What a run has changed in its weight matrices: the singular value decomposition of each ΔW.

    ΔW = U diag(s) Vᵀ        LoRA: ΔW = (alpha / r) · B A; full tuning: tuned weight minus W

The columns of V are directions of the layer's input, those of U are directions of its output; s
has how strongly each input direction is sent to its output direction. With LoRA at most r values
are not zero, and ΔW itself is not needed: two QR decompositions of the thin factors give a core of
r · r numbers (Golub & Van Loan, section 8.6).

Hu et al. 2021 compare these directions between two runs (section 7.2), and with W (section 7.3).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from neo_peft.errors import InputError
from neo_peft.gptneo import GPTNeo
from neo_peft.lora import LoRALinear, linear_layers

MOST_DIRECTIONS = 64  # of two runs that are compared; the paper's largest rank
DIRECTIONS_OF_W = 8  # of ΔW, at most, between which W is measured: the same for all ranks


class WeightChange(NamedTuple):
    """The change of one linear layer, in float64 on the CPU."""

    layer: nn.Module  # the tuned layer: one with LoRA, or a plain one
    base: nn.Module  # the layer of the untuned base, whose weight is W (out, in)
    left: Tensor  # U (out, n)
    values: Tensor  # s (n,), the largest first
    right: Tensor  # Vᵀ (n, in)

    def first(self, k: int) -> "WeightChange":
        """Return the change cut to its first k singular directions."""
        return self._replace(left=self.left[:, :k], values=self.values[:k], right=self.right[:k])

    def written_out(self) -> Tensor:
        """Return ΔW (out, in)."""
        return (self.left * self.values) @ self.right

    @property
    def directions(self) -> int:
        """The number of singular values that are not zero, up to rounding."""
        if not len(self.values) or not self.values[0]:
            return 0
        return int((self.values > 1e-7 * self.values[0]).sum())


def weight_changes(trunk: GPTNeo, base: GPTNeo) -> dict[str, WeightChange]:
    """Return the change of each linear layer that a run has trained, by name. `base` is the
    untuned trunk."""
    changes, trained = {}, {name for name, p in trunk.named_parameters() if p.requires_grad}
    for name in linear_layers(trunk):
        layer = trunk.get_submodule(name)
        if isinstance(layer, LoRALinear):
            svd = svd_of_product(layer.scaling * layer.lora_B.weight, layer.lora_A.weight)
            changes[name] = WeightChange(layer, layer.base_layer, *svd)
        elif f"{name}.weight" in trained:
            original = base.get_submodule(name)
            change = layer.weight.detach().double().cpu() - original.weight.detach().double().cpu()
            svd = torch.linalg.svd(change, full_matrices=False)
            changes[name] = WeightChange(layer, original, *svd)
    return changes


def svd_of_product(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and Vᵀ of the product of b (out, r) and a (r, in), without writing it out."""
    q_b, r_b = torch.linalg.qr(b.detach().double().cpu())
    q_a, r_a = torch.linalg.qr(a.detach().double().cpu().T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ left, values, right @ q_a.T


def describe(name: str, change: WeightChange) -> dict:
    """Return the numbers of a change.

    norm, base_norm    the Frobenius norms of ΔW and W
    projected          that of Uᵀ W V: how much W does between the first n directions of ΔW
    random             the same for n random directions: the root of the expected square
    amplification      the norm of ΔW in these n directions / projected, as in Hu et al.'s table 7;
                       None for a ΔW that is zero
    """
    n = min(change.directions, DIRECTIONS_OF_W)
    weight = change.base.weight.detach().double().cpu()
    cut, (outputs, inputs) = change.first(n), weight.shape
    norm, base_norm = float(change.values.norm()), float(weight.norm())
    projected = float((cut.left.T @ weight @ cut.right.T).norm())
    return {
        "layer": name,
        "outputs": outputs,
        "inputs": inputs,
        "singular_values": change.values.tolist(),
        "norm": norm,
        "base_norm": base_norm,
        "directions": change.directions,
        "projected": projected,
        "random": base_norm * n / (outputs * inputs) ** 0.5,
        "amplification": float(cut.values.norm()) / projected if projected else None,
    }


# ---- Two runs


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Return φ (m, n) of orthonormal columns a (H, m) and b (H, n), from 0 to 1.

        φ(i, j) = |a[:, :i]ᵀ b[:, :j]|² / min(i, j)        Hu et al. 2021, section 7.2

    It is 1 if the smaller of the two subspaces is in the larger one. For random directions its
    expectation is max(i, j) / H.
    """
    sums = (a.T @ b).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, count + 1, dtype=a.dtype) for count in sums.shape)
    return sums / torch.minimum(i[:, None], j)


def compare_changes(
    folders: tuple[str, str], a: dict[str, WeightChange], b: dict[str, WeightChange]
) -> list[dict]:
    """Return the agreement of two runs' directions for each layer, at most 64 of each run.

    The paper takes A's right and B's left singular vectors; here they are those of ΔW, which are
    in the order of what the run does with them. A starts at random, and its own order shows mostly
    that. Raises InputError if the runs have changed different layers.
    """
    if a.keys() != b.keys():
        only = [
            f"{len(one.keys() - two.keys())} only by {name}"
            for one, two, name in ((a, b, folders[0]), (b, a, folders[1]))
            if one.keys() - two.keys()
        ]
        raise InputError(
            f"{folders[0]} and {folders[1]} changed different layers ({', '.join(only)}): compare "
            "runs with the same --target-modules on one base"
        )
    found = []
    for name, one in a.items():
        sides = [side.first(min(side.directions, MOST_DIRECTIONS)) for side in (one, b[name])]
        (x, y), (outputs, inputs) = sides, one.base.weight.shape
        if y.left.shape[0] != outputs or y.right.shape[1] != inputs:
            raise InputError(f"{folders[0]} and {folders[1]} have layers of different shapes")
        found.append(
            {
                "layer": name,
                "inputs": agreement(x.right.T, y.right.T).tolist(),
                "outputs": agreement(x.left, y.left).tolist(),
                "random_inputs": max(len(x.values), len(y.values)) / inputs,
                "random_outputs": max(len(x.values), len(y.values)) / outputs,
            }
        )
    return found
