"""Dropout. torch's draws 64 random bits for each element on a CPU; this one draws 16."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
