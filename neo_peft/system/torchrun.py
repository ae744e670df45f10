"""The processes of torchrun: they start with equal inputs, and end together, each with at most one
line.

torchrun sets RANK, WORLD_SIZE, MASTER_ADDR, … in the environment of each process. If one process
dies, it sends SIGTERM to all others, and kills them thirty seconds later. Outside of collective
operations the processes communicate through torch's key-value store.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from neo_peft.errors import InputError
from neo_peft.system import processes, signals
from neo_peft.system.exit_status import exit_status

if TYPE_CHECKING:
    from torch.distributed import Store

# How long to wait for a process that runs but does not respond. One that ended is noticed at once.
TIMEOUT = timedelta(minutes=10)
SECONDS_TO_FINISH = 20.0  # for a step and a checkpoint after SIGTERM; torchrun kills after 30
_final_line = threading.Lock()  # acquired by the code that prints the final line of this process
_begun = 0  # number of collective operations that this process has begun


def run_together(main: Callable[[], None]) -> int:
    """Run a command's `main` as one of the processes of torchrun. Return the exit status.

    An error that all processes find is printed once. If a process dies, each other one ends with
    one line and status 1.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return exit_status(main)
    _end_in_one_line_on_sigterm()
    status = 1
    try:
        store = join()
        processes.announce = partial(_announce, store)
        status = exit_status(main, partial(_print_error_once, store))
        if status == 0:
            _exit_together(store)
    except processes.LostProcessError as error:
        _print_final_line(f"error: {error}")
    # Skip torch's own shutdown: it contacts the other processes, and aborts if one has ended.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_in_one_line_on_sigterm() -> None:
    """Wait for torchrun's SIGTERM in a thread, because a collective operation can block the main
    thread."""

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        if signals.request_end():
            time.sleep(SECONDS_TO_FINISH)
        index = processes.process_index
        line = f"error: torchrun stopped process {index}, because another process has ended"
        if _print_final_line(line):  # False: the main thread has printed one, and is ending
            os._exit(128 + signal.SIGTERM)

    # Blocked in this thread and all later ones, so that only sigwait gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


def join() -> "Store":
    """Connect to the other processes and return their common store. Tensors on a CPU use gloo, and
    on a GPU nccl. Each process of a host uses its own GPU."""
    try:
        processes.process_index = int(os.environ["RANK"])
        processes.world = int(os.environ["WORLD_SIZE"])
        processes.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        local_index = int(os.environ.get("LOCAL_RANK", 0))

        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
        gpus = torch.cuda.device_count()
        if local_index < gpus:
            torch.cuda.set_device(local_index)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=processes.process_index,
            world_size=processes.world,
            timeout=TIMEOUT,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise processes.LostProcessError(
            f"process {processes.process_index} of {processes.world} cannot connect to the others: "
            f"{processes.reason(error)}"
        ) from None
    return dist.PrefixStore("errors", store)


def _announce(store: "Store") -> None:
    """Write to the store that this process begins its next collective operation."""
    global _begun
    _begun += 1
    store.set(f"{processes.process_index} has begun", str(_begun))


def _print_error_once(store: "Store", text: str) -> None:
    """Print the error that ends this process, unless process 0 prints the same one.

    Processes that find the same bad input find it before the same collective operation, but not at
    the same time. So each waits for the others, until they have found an error too, or have begun
    an operation that this process never begins.
    """
    index, printed = processes.process_index, False
    try:
        if index == 0:
            _print_final_line(text)
            store.set("error", text)
            # Process 0 can own the store, so it waits until the others have read from it.
            for other in range(1, processes.world):
                read = f"{other} has read"
                _wait_until(lambda: _has(store, read) or _is_ahead(store, other))  # noqa: B023
        else:
            _wait_until(lambda: _has(store, "error") or _is_ahead(store, 0))
            printed = _has(store, "error") and store.get("error").decode() == text
            store.set(f"{index} has read", "")
    except RuntimeError:  # process 0 has ended
        pass
    if not printed:
        _print_final_line(text)


def _print_final_line(text: str) -> bool:
    """Print the final line of this process. Return False if it has already printed one."""
    first = _final_line.acquire(blocking=False)
    if first:
        print(text, file=sys.stderr, flush=True)
    return first


def _exit_together(store: "Store") -> None:
    """Wait until all processes are done. Process 0 exits last, because it can own the store."""
    index, others = processes.process_index, set(range(processes.world))
    try:
        store.set(f"{index} has begun", "inf")  # it is done
        _wait_until(lambda: all(_is_ahead(store, other) for other in others))
        store.set(f"{index} exits", "")
        if index == 0:
            _wait_until(lambda: all(_has(store, f"{other} exits") for other in others))
    except RuntimeError:  # the store has ended, so no process waits for this one
        pass


def _wait_until(happened: Callable[[], bool]) -> None:
    """Wait until this has happened, for TIMEOUT at most. (The store's `wait` prints warnings.)"""
    until = time.monotonic() + TIMEOUT.total_seconds()
    while not happened() and time.monotonic() < until:
        time.sleep(0.02)


def _has(store: "Store", key: str) -> bool:
    """Return whether a key is set."""
    return store.check([key])


def _is_ahead(store: "Store", other: int) -> bool:
    """Return whether another process has begun more collective operations than this one."""
    key = f"{other} has begun"
    return _has(store, key) and float(store.get(key)) > _begun


def require_same(what: str, value: Any) -> None:
    """Raise InputError if a process has another value than process 0. `what` names the value."""
    (first, _), *others = processes.gather((value, socket.gethostname()))
    for index, (other, host) in enumerate(others, 1):
        if other != first:
            raise InputError(f"process {index} on {host} has a different {what} than process 0")
