"""Several processes that compute as one: `torchrun --nproc-per-node N train.py …`, on one host or
on several.

Every process runs the whole program on its own share of the examples; what they must agree on is
summed, gathered, or decided by process 0. In a program that was not started by `run_together`, or
by it as the only process, all of this is nothing: a sum is its one term, and torch.distributed is
not even imported.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from neo_peft.errors import InputError, exit_status

rank, world = 0, 1  # this process, and how many there are
local_rank, local_world = 0, 1  # the same on this host alone
# with a process that is there and says nothing; one that is gone is noticed at once
PATIENCE = timedelta(minutes=10)
ORDER = 20.0  # seconds for a step and a checkpoint, before torchrun's thirty are over
GRACE = 2.0  # seconds within which processes that meet the same bad input meet it
ends_in_order = False  # whether this process asks between its steps if it was `told_to_end`
told_to_end = False
_store: Any = None  # what the processes can ask each other outside of a common step
_last_word = threading.Lock()  # taken by the one line with which this process ends


class LostError(Exception):
    """Another process has ended before its time, and this one cannot go on."""


#
# ---- Beginning, end


def run_together(main: Callable[[], None]) -> int:
    """Run a command's `main` as one of the processes that torchrun started; return the exit status.

    Bad input that all of them find is said once. A process that dies ends the others, each with one
    line, status 1.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return exit_status(main)
    _end_in_one_line_on_sigterm()
    status = 1
    try:
        start()
        status = exit_status(main, _say_once)
    except LostError as error:
        _say_last(f"error: {error}")
    if status == 0:
        _leave_together()
    # At once: torch, as it is torn down, asks the others for a last word, and aborts where one is
    # gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_together() -> None:
    """Wait until no process is in a common step any more; process 0, which may hold the store,
    leaves last."""
    try:
        _store.set(f"{rank} is done", "")
        _in_time([f"{other} is done" for other in range(world)], PATIENCE.total_seconds())
        _store.set(f"{rank} leaves", "")
        if rank == 0:
            _in_time([f"{other} leaves" for other in range(world)])
    except RuntimeError:  # the store is gone, and with it all who could wait for this process
        pass


def start() -> None:
    """Join the other processes: over gloo what is on a CPU, over nccl what is on a GPU, of which
    each gets its own."""
    global rank, world, local_rank, local_world, _store
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank, local_world = (
            int(os.environ.get("LOCAL_RANK", 0)),
            int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", timeout=PATIENCE))
        gpus = torch.cuda.device_count()
        if local_rank < gpus:
            torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        raise LostError(
            f"process {rank} of {world} does not find the others: {_reason(error)}"
        ) from None
    _store = dist.PrefixStore("errors", store)


def _say_once(text: str) -> None:
    """Say an error with which this process ends, unless process 0 says the same one."""
    said = False
    try:
        if rank == 0:
            _say_last(text)
            _store.set("said", text)
            # the store may end with process 0
            _in_time([f"{other} has read" for other in range(1, world)])
        elif _in_time(["said"]):
            said = _store.get("said").decode() == text
            _store.set(f"{rank} has read", "")
    except RuntimeError:  # process 0 is gone
        pass
    if rank and not said:
        _say_last(text)


def _in_time(keys: list[str], seconds: float = GRACE) -> bool:
    until = time.monotonic() + seconds
    while not (there := _store.check(keys)) and time.monotonic() < until:
        time.sleep(0.02)
    return there


def _say_last(text: str) -> None:
    if _last_word.acquire(blocking=False):
        print(text, file=sys.stderr, flush=True)


def _end_in_one_line_on_sigterm() -> None:
    """torchrun sends SIGTERM where it got it, or where another process died. A thread waits for it,
    since the main one may be busy, or stuck in a common step."""

    def wait() -> None:
        global told_to_end
        signal.sigwait({signal.SIGTERM})
        told_to_end = True
        if ends_in_order:
            time.sleep(ORDER)
        if _last_word.acquire(blocking=False):  # else this process is about to end by itself
            print(
                f"error: process {rank} was told to end, as all are where one has ended",
                file=sys.stderr,
                flush=True,
            )
            os._exit(128 + signal.SIGTERM)

    # in all threads to come; sigwait takes it out
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


#
# ---- In common steps


@contextmanager
def _in_step():
    """Say in one line that another process is gone, which gloo, nccl and the store each say in
    many."""
    try:
        yield
    except RuntimeError as error:
        text = f"process {rank} of {world} has lost another one, and ends too: {_reason(error)}"
        raise LostError(text) from None


def _reason(error: Exception) -> str:
    """Take the first sentence of what torch says, without the place in its source in front."""
    return re.split(r"\n|\. ", re.sub(r"^\[\S*\]\s*", "", str(error).strip()))[0]


def gather(value: Any) -> list:
    """Return every process's value, in the order of their ranks."""
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


def decide(what: Callable[[], Any]) -> Any:
    """Let process 0 alone do something, and share what came of it; an error that it met is raised
    in all."""
    if world == 1:
        return what()
    found = error = None
    if rank == 0:
        try:
            found = what()
        except (InputError, OSError, SystemExit) as met:
            error = met
    found, error = gather((found, error))[0]
    if error is not None:
        raise error
    return found


def require_same(what: str, value: Any) -> None:
    """Refuse to go on where a process holds something else than process 0."""
    (first, _), *others = gather((value, socket.gethostname()))
    for other, (held, host) in enumerate(others, 1):
        if held != first:
            raise InputError(f"process {other} on {host} holds another {what} than process 0")


def copy_first(tensors: Iterable[Any]) -> None:
    """Overwrite tensors with those of process 0."""
    if world == 1:
        return
    import torch.distributed as dist

    with _in_step():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def sum_gradients(parameters: list[Any]) -> None:
    """Sum the parameters' gradients over all processes, in one message; one that no process has
    stays None."""
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
