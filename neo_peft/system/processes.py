"""Data-parallel processes: `torchrun --nproc-per-node N train.py …`, on one host or several.

Every process runs the whole program on its own share of the examples. Sums and gathered values are
the same in all processes. Only process 0 writes files. system/torchrun.py connects the
processes, and ends them together. A single process never imports torch.distributed.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neo_peft.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

# Set once, by torchrun.join.
process_index, world = 0, 1  # the index of this process, and the number of all processes
local_world = 1  # the number of processes on this host


class LostProcessError(Exception):
    """Another process ended too early, so this one cannot continue."""


@contextmanager
def alone() -> Iterator[None]:
    """Compute without the other processes: each one measures for itself."""
    global process_index, world
    before = process_index, world
    process_index, world = 0, 1
    try:
        yield
    finally:
        process_index, world = before


def announce() -> None:
    """Tell the others that a collective operation begins here. Replaced by torchrun.py."""


@contextmanager
def _collective() -> Iterator[None]:
    """Run a collective operation. If another process has ended, raise a LostProcessError of one
    line; gloo, nccl and the store have messages of many lines."""
    try:
        announce()
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"process {process_index} of {world} ends, because another one has ended: "
            f"{reason(error)}"
        ) from None


def reason(error: Exception) -> str:
    """Return the first sentence of torch's message, without the source line before it."""
    return re.split(r"\n|\. ", re.sub(r"^\[\S*\]\s*", "", str(error).strip()))[0]


def gather(value: Any) -> list:
    """Return the values of all processes, in the order of `process_index`."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world
    with _collective():
        dist.all_gather_object(values, value)
    return values


def total(value: float) -> float:
    """Return the sum of a number over all processes."""
    if world == 1:
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value, dtype=torch.float64)  # counts stay exact
    with _collective():
        dist.all_reduce(tensor)
    return type(value)(tensor)


def on_first_process(action: Callable[[], Any]) -> Any:
    """Call `action` in process 0 only. Return its result or raise its error in all processes."""
    if world == 1:
        return action()
    result = error = None
    if process_index == 0:
        try:
            result = action()
        except (InputError, OSError, SystemExit) as raised:
            error = raised
    result, error = gather((result, error))[0]
    if error is not None:
        raise error
    return result


def broadcast(tensors: Iterable["Tensor"]) -> None:
    """Overwrite the tensors with those of process 0."""
    if world == 1:
        return
    import torch.distributed as dist

    with _collective():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def sum_gradients(parameters: list["Parameter"]) -> None:
    """Sum the parameters' gradients over all processes, with one all-reduce. A gradient that is
    None in all processes stays None."""
    if world == 1:
        return
    import torch
    import torch.distributed as dist

    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    has_grad = torch.tensor([float(p.grad is not None) for p in parameters], device=parts[0].device)
    flat = torch.cat([*parts, has_grad])
    with _collective():
        dist.all_reduce(flat)
        *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for p, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
            p.grad = gradient.view_as(p) if count else None
