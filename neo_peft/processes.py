"""Several processes that compute as one: `torchrun --nproc-per-node N train.py …`, on one host or
on several.

Every process runs the whole program on its own share of the examples. Sums and gathered values are
the same in all of them; files are written by process 0 alone. How the processes begin and end is
system/torchrun.py. A program that runs alone never imports torch.distributed: its sums are its own
numbers.
"""

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neo_peft.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

# set once, by torchrun.join
process_index, world = 0, 1  # this process, and how many there are
local_world = 1  # how many there are on this host


class LostProcessError(Exception):
    """Another process has ended before its time, and this one cannot go on."""


@contextmanager
def _in_step() -> Iterator[None]:
    """Raise LostError, one line, for the many that gloo, nccl and the store print where another
    process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"process {process_index} of {world} has lost another one, and ends too: "
            f"{reason(error)}"
        ) from None


def reason(error: Exception) -> str:
    """Return the first sentence of torch's message, without the place in its source in front."""
    return re.split(r"\n|\. ", re.sub(r"^\[\S*\]\s*", "", str(error).strip()))[0]


def gather(value: Any) -> list:
    """Return every process's value, in the order of their indices."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world
    with _in_step():
        dist.all_gather_object(values, value)
    return values


def total(value: float) -> float:
    """Sum a number over all processes."""
    if world == 1:
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value, dtype=torch.float64)  # counts stay exact
    with _in_step():
        dist.all_reduce(tensor)
    return type(value)(tensor)


def on_first_process(action: Callable[[], Any]) -> Any:
    """Call `do` in process 0 alone, and return its result in all. An error of it is raised in
    all."""
    if world == 1:
        return action()
    result = error = None
    if process_index == 0:
        try:
            result = action()
        except (InputError, OSError, SystemExit) as met:
            error = met
    result, error = gather((result, error))[0]
    if error is not None:
        raise error
    return result


def require_same(what: str, value: Any) -> None:
    """Raise InputError where a process holds another value than process 0."""
    (first, _), *others = gather((value, socket.gethostname()))
    for other, (held, host) in enumerate(others, 1):
        if held != first:
            raise InputError(f"process {other} on {host} holds another {what} than process 0")


def broadcast(tensors: Iterable["Tensor"]) -> None:
    """Overwrite tensors with those of process 0."""
    if world == 1:
        return
    import torch.distributed as dist

    with _in_step():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def sum_gradients(parameters: list["Parameter"]) -> None:
    """Sum the parameters' gradients over all processes, in one message. A gradient that no process
    has stays None."""
    if world == 1:
        return
    import torch
    import torch.distributed as dist

    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=parts[0].device)
    flat = torch.cat([*parts, there])
    with _in_step():
        dist.all_reduce(flat)
        *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for p, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
            p.grad = gradient.view_as(p) if count else None
