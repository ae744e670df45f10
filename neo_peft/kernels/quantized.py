"""Frozen linear layers in 8 or 4 bits, for a base model that is too large in fp32.

int8  a whole number from -127 to 127 for each weight, and a scale for each row
nf4   one of 16 levels for each weight, and a scale for each block of 64 consecutive weights. The
      scales, less their mean, are in int8, in rows of 256 (Dettmers et al. 2023, QLoRA, section 3)

Each pass, forward and backward, computes the weight from its codes: autograd keeps nothing of it.
"""

import threading
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.kernels.linear import FrozenLinear, frozen_layer

BLOCK, GROUP = 64, 256  # weights with a common scale, scales with a common scale
PART = 256 * 1024  # number of weights that a CPU computes at once; they stay in the cache
LEVELS = (  # quantiles of a normal distribution, divided by the largest
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
# The two levels of each byte as one number of 64 bits (256,), on a device: one look-up, not two.
pairs = cache(torch.cartesian_prod(*[torch.tensor(LEVELS)] * 2).view(torch.int64).flatten().to)
memory = threading.local()  # where each thread computes weights


def parts(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split matrices into equally many rows, on a CPU into about PART elements of the first."""
    rows, columns = matrices[0].shape
    size = max(1, PART // columns if matrices[0].device.type == "cpu" else rows)
    return zip(*(matrix.split(size) for matrix in matrices), strict=True)


def scaled_rows(matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of a matrix in fp32, divided by each row's largest absolute value (rows, 1)."""
    for (part,) in parts(matrix):
        largest = part.float().abs().amax(dim=1, keepdim=True)
        yield part.float() / largest.where(largest > 0, 1), largest


def to_int8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of a matrix (rows, columns), and the scale of each row (rows, 1)."""
    both = ((rows.mul_(127).round_().to(torch.int8), top) for rows, top in scaled_rows(matrix))
    codes, largest = map(torch.cat, zip(*both, strict=True))
    return codes, largest / 127


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of a weight (blocks, 32), two in a byte, the first in the high half, and the
    scale of each block (blocks, 1). Zeros fill the last block."""
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    middles = [(lower + upper) / 2 for lower, upper in zip(LEVELS, LEVELS[1:])]
    codes, scales = [], []
    for rows, largest in scaled_rows(blocks):
        nearest = sum((rows > middle).view(torch.uint8) for middle in middles)
        codes.append(nearest[:, ::2] << 4 | nearest[:, 1::2])
        scales.append(largest)
    return torch.cat(codes), torch.cat(scales)


def unpack(codes: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write the rows of int8's codes, or the blocks of nf4's (blocks, 64), to `out`; return it."""
    for part, its_codes, its_scales in parts(out, codes, scales):
        if codes.dtype == torch.int8:
            part.copy_(its_codes).mul_(its_scales)
        else:
            levels = pairs(codes.device).index_select(0, its_codes.flatten().int())
            torch.mul(levels.view(torch.float32).view(part.shape), its_scales, out=part)
    return out


class QuantizedLinear(nn.Module):
    """A frozen linear layer in 8 or 4 bits. Each access to `weight` (out, in) computes it."""

    def __init__(self, weight: Tensor, kind: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.shape, self.dtype, self.bias = weight.shape, dtype, None
        self.out_features, self.in_features = weight.shape
        codes, scales = {"int8": to_int8, "nf4": to_nf4}[kind](weight)
        packed = {"codes": codes, "scales": scales}
        if kind == "nf4":
            mean = packed["mean"] = scales.mean().view(1, 1)
            rows = F.pad((scales - mean).flatten(), (0, -len(scales) % GROUP)).view(-1, GROUP)
            packed["codes_of_scales"], packed["scales"] = to_int8(rows)
        for name, tensor in packed.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return FrozenLinear.apply(x, self.compute_weight, self.bias)

    @property
    def weight(self) -> Tensor:
        return self.compute_weight().clone()

    def compute_weight(self) -> Tensor:
        """Return the weight, in memory that the next call for any layer overwrites, for speed."""
        codes, scales, kept = self.codes, self.scales, vars(memory)
        key = self.dtype, codes.device
        columns = codes.shape[1] if codes.dtype == torch.int8 else BLOCK
        if key not in kept or len(kept[key]) < len(codes) * columns:
            with torch.inference_mode(False):  # so that it can be overwritten in every mode
                kept[key] = codes.new_empty(len(codes) * columns, dtype=self.dtype)
        if codes.dtype == torch.uint8:
            rows = torch.empty_like(self.codes_of_scales, dtype=torch.float32)
            scales = unpack(self.codes_of_scales, scales, rows).add_(self.mean).clamp_min_(0)
        out = kept[key][: len(codes) * columns].view(-1, columns)
        unpack(codes, scales.view(-1, 1)[: len(codes)], out)
        return out.flatten()[: self.shape.numel()].view(self.shape)


def dequantize(model: nn.Module) -> None:
    """Replace each quantised layer by a plain one in fp32."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            layer.dtype = torch.float32
            model.set_submodule(name, frozen_layer(layer.weight, layer.bias))
