"""Device, precision, number of threads and peak memory of a run."""

import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from neo_peft.errors import InputError
from neo_peft.system import processes
from neo_peft.system.freed_memory import return_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Number of parameters. For a smaller model, two threads are slower than one.
SMALL = 50_000_000


def find_device(device: str) -> str:
    """Return the device to use. `auto` is cuda if there is one, else cpu, never mps. Raise
    InputError if the device is not available."""
    if device == "mps" and processes.world > 1:
        raise InputError("--device mps works with one process only; for several use cuda or cpu")
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = "cuda" if available["cuda"] else "cpu"
    if not available[device]:
        raise InputError(
            f"--device {device} is not available to torch here; available: "
            f"{', '.join(d for d in available if available[d])}"
        )
    if (
        device == "cuda"
        and processes.world > 1
        and processes.local_world > (gpus := torch.cuda.device_count())
    ):
        raise InputError(
            f"{processes.local_world} processes on a host with {gpus} GPUs: start fewer, or use "
            "--device cpu"
        )
    return device


def find_precision(precision: str, device: str) -> str:
    """Return the name of the compute dtype. `auto` is fp16 on cuda, else fp32."""
    if precision == "auto":
        return "fp16" if device == "cuda" else "fp32"
    return precision


def slow_precision(precision: str, device: str) -> str | None:
    """Return a warning if the CPU has no matrix products in this half precision, so that torch
    computes them element by element. Else return None."""
    if device != "cpu" or precision == "fp32" or not torch.backends.mkldnn.is_available():
        return None
    if getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")():
        return None
    return (
        f"this CPU has no {precision} matrix products: --precision fp32 is many times faster here"
    )


def thread_count(threads: int | str, parameters: int) -> int:
    """Return the number of threads to compute with.

    `auto` is the smallest of these: the available cores or the container's limit, divided by the
    processes on this host; OMP_NUM_THREADS; 1 for a small model, which more threads slow down
    (docs/performance.md, "Threads").
    """
    if threads != "auto":
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count // processes.local_world for count in (cores, _container_quota()) if count]
    omp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if omp == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        omp = ""  # set by torchrun, not by the user
    counts += [int(omp)] if omp.isdigit() and int(omp) else []
    counts += [1] if parameters < SMALL else []
    return max(1, min(counts, default=1))


def restart_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here on. Where the system does not allow it, nothing changes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    return_freed_memory()
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, int | str]:
    """Return the peak memory of this process in bytes, and which memory that is."""
    if device.type == "cuda":
        counted = "GPU memory of tensors"
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "counted": counted}
    try:  # not ru_maxrss: it starts with the memory of the process that has started this one
        status = Path("/proc/self/status").read_text()
        peak = int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_bytes": peak, "counted": "resident memory, with the used parts of mapped files"}


def _container_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the container's limit of CPUs, from cgroup version 2 or 1; None if it has no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # without a limit: the text "max", or no file
        return None
