"""Where a run computes, in which precision, on how many threads, and how much memory that took."""

import os
import resource
import sys
from pathlib import Path

import torch

from neo_peft import processes
from neo_peft.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# parameters; below, many threads on small matrices are many times slower than few
SMALL = 50_000_000


def find_device(device: str) -> str:
    """Choose the device. auto is CUDA where there is one, else the CPU; mps is used where it is
    asked for."""
    if device == "mps" and processes.world > 1:
        raise InputError("--device mps computes in one process; several need cuda or cpu")
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = "cuda" if there["cuda"] else "cpu"
    if not there[device]:
        raise InputError(
            f"--device {device}: torch finds none here; there is "
            f"{', '.join(d for d in there if there[d])}"
        )
    if (
        device == "cuda"
        and processes.world > 1
        and processes.local_world > (gpus := torch.cuda.device_count())
    ):
        raise InputError(
            f"{processes.local_world} processes on a host of {gpus} GPUs: start fewer, or take "
            "--device cpu"
        )
    return device


def find_precision(precision: str, device: str) -> str:
    """Choose the compute dtype's name. auto is fp16 on CUDA, fp32 elsewhere."""
    if precision == "auto":
        return "fp16" if device == "cuda" else "fp32"
    return precision


def slow_precision(precision: str, device: str) -> str | None:
    """Return a warning where the CPU has no products in this half precision, and so computes them
    element by element."""
    if device != "cpu" or precision == "fp32" or not torch.backends.mkldnn.is_available():
        return None
    if getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")():
        return None
    return f"this CPU has no {precision} products: --precision fp32 is many times quicker here"


def thread_count(threads: int | str, parameters: int) -> int:
    """Return the number of threads to compute with. auto: what the process may use, at most 4 for
    a small model.

    The processes of a host share its cores.
    """
    if threads != "auto":
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count // processes.local_world for count in (cores, _container_quota()) if count]
    omp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if omp == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        omp = ""  # not the user's wish: torchrun sets it wherever nobody did
    counts += [int(omp)] if omp.isdigit() and int(omp) else []
    counts += [4] if parameters < SMALL else []
    return max(1, min(counts, default=1))


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has used so far: a GPU's, or what was resident on a
    CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _container_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many CPUs the container may use, from control groups of version 2 or 1."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no quota is "max", or a file that is not there
        return None
