"""How the processes that torchrun started begin, and how they end: together, in one line each.

torchrun gives each process its place in the environment (RANK, WORLD_SIZE, MASTER_ADDR, …), sends
all of them SIGTERM where one has died, and kills them thirty seconds later. What the processes ask
each other outside of a common step goes through torch's key-value store.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from neo_peft import processes
from neo_peft.system import signals
from neo_peft.system.exit_status import exit_status

if TYPE_CHECKING:
    from torch.distributed import Store

# with a process that is there and says nothing; one that is gone is noticed at once
PATIENCE = timedelta(minutes=10)
ORDER = 20.0  # seconds for a step and a checkpoint, before torchrun's thirty are over
GRACE = 2.0  # seconds within which processes that meet the same bad input meet it
_last_word = threading.Lock()  # taken by the one line with which this process ends


def run_together(main: Callable[[], None]) -> int:
    """Run a command's `main` as one of the processes that torchrun started; return the exit status.

    Bad input that all of them find is printed once. A process that dies ends the others, each with
    one line and status 1.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return exit_status(main)
    _end_in_one_line_on_sigterm()
    status = 1
    try:
        store = join()
        status = exit_status(main, partial(_complain_once, store))
        if status == 0:
            _leave_together(store)
    except processes.LostProcessError as error:
        _print_last(f"error: {error}")
    # At once: torch, as it is torn down, asks the others for a last word, and aborts where one is
    # gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_in_one_line_on_sigterm() -> None:
    """Wait for torchrun's SIGTERM in a thread: the main one may be busy, or stuck in a common
    step."""

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        if signals.request_end():
            time.sleep(ORDER)
        told = f"process {processes.process_index} was told to end, as all are where one has ended"
        if _print_last(f"error: {told}"):  # else this process is about to end by itself
            os._exit(128 + signal.SIGTERM)

    # in all threads to come; sigwait takes it out
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


def join() -> "Store":
    """Join the other processes, over gloo for tensors on a CPU and over nccl for those on a GPU, of
    which each process gets its own. Return the store that they share."""
    try:
        processes.process_index = int(os.environ["RANK"])
        processes.world = int(os.environ["WORLD_SIZE"])
        processes.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        local_index = int(os.environ.get("LOCAL_RANK", 0))

        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", timeout=PATIENCE))
        gpus = torch.cuda.device_count()
        if local_index < gpus:
            torch.cuda.set_device(local_index)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=processes.process_index,
            world_size=processes.world,
            timeout=PATIENCE,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise processes.LostProcessError(
            f"process {processes.process_index} of {processes.world} does not find the others: "
            f"{processes.reason(error)}"
        ) from None
    return dist.PrefixStore("errors", store)


def _complain_once(store: "Store", text: str) -> None:
    """Print the error with which this process ends, unless process 0 prints the same one."""
    index, printed = processes.process_index, False
    try:
        if index == 0:
            _print_last(text)
            store.set("said", text)
            # the store may end with process 0
            _in_time(store, [f"{other} has read" for other in range(1, processes.world)])
        elif _in_time(store, ["said"]):
            printed = store.get("said").decode() == text
            store.set(f"{index} has read", "")
    except RuntimeError:  # process 0 is gone
        pass
    if not printed:
        _print_last(text)


def _print_last(text: str) -> bool:
    """Print the line with which this process ends; return False where it has printed another."""
    first = _last_word.acquire(blocking=False)
    if first:
        print(text, file=sys.stderr, flush=True)
    return first


def _leave_together(store: "Store") -> None:
    """Wait until no process is in a common step any more; process 0, which may hold the store,
    leaves last."""
    index, others = processes.process_index, range(processes.world)
    try:
        store.set(f"{index} is done", "")
        _in_time(store, [f"{other} is done" for other in others], PATIENCE.total_seconds())
        store.set(f"{index} leaves", "")
        if index == 0:
            _in_time(store, [f"{other} leaves" for other in others])
    except RuntimeError:  # the store is gone, and with it all who could wait for this process
        pass


def _in_time(store: "Store", keys: list[str], seconds: float = GRACE) -> bool:
    """Wait until all keys are set; return False where they are not, in time. The store's own `wait`
    would print warnings."""
    until = time.monotonic() + seconds
    while not (there := store.check(keys)) and time.monotonic() < until:
        time.sleep(0.02)
    return there
