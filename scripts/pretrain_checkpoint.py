"""The checkpoint of scripts/pretrain.py: the number of steps, and all tensors that a step changes.

It is a safetensors file. A name is "h.0.ln_1.bias" for a weight, and "h.0.ln_1.bias exp_avg" for an
average of it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neo_peft.errors import InputError
from neo_peft.system.files import read_tensors, write_tensors

STEPS = "number of steps"  # its name in a checkpoint


def start_averages(
    weights: dict[str, nn.Parameter], muon: Optimizer, adam: Optimizer
) -> dict[str, Tensor]:
    """Set the averages of Muon and AdamW to zero, as they do in their first step. Return the
    weights and the averages by their names in a checkpoint. A step changes them in place."""
    names = {p: name for name, p in weights.items()}
    for p in muon.param_groups[0]["params"]:
        muon.state[p] = {"momentum_buffer": torch.zeros_like(p)}
    for p in adam.param_groups[0]["params"]:
        averages = {average: torch.zeros_like(p) for average in ("exp_avg", "exp_avg_sq")}
        adam.state[p] = {"step": torch.tensor(0.0), **averages}
    averages = {
        f"{names[p]} {average}": tensor
        for optimizer in (muon, adam)
        for p, state in optimizer.state.items()
        for average, tensor in state.items()
    }
    return weights | averages


def write_checkpoint(path: Path, steps: int, tensors: dict[str, Tensor]) -> None:
    write_tensors(path, {STEPS: torch.tensor(steps), **tensors})


@torch.no_grad()
def read_checkpoint(path: Path, tensors: dict[str, Tensor]) -> int:
    """Copy a checkpoint into `tensors`, and return its number of steps. Raise InputError if the
    names or the shapes differ: it is a checkpoint of another model."""
    stored, expected = read_tensors(path), {STEPS: torch.tensor(0), **tensors}
    wrong = [
        *(f"it has no {name}" for name in sorted(expected.keys() - stored.keys())),
        *(f"it has an unknown {name}" for name in sorted(stored.keys() - expected.keys())),
        *(
            f"{name} has the shape {tuple(stored[name].shape)}, here {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in stored and stored[name].shape != tensor.shape
        ),
    ]
    if wrong:
        raise InputError(
            f"{path} is a checkpoint of another model: {wrong[0]}; name its --model and --layers, "
            "or another --out"
        )
    for name, tensor in expected.items():
        tensor.copy_(stored[name])
    return int(expected[STEPS])
