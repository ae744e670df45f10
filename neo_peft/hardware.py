"""Where a run computes, in which precision, and on how many threads."""

import os
from pathlib import Path

import torch

from neo_peft.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL = 50_000_000  # parameters; below, many threads on small matrices are many times slower than few


def find_device(device: str) -> str:
    """Choose the device. auto is CUDA where there is one, else the CPU; mps is used where it is asked for."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[device]:
        raise InputError(
            f"--device {device}: torch finds none here; there is {', '.join(d for d in there if there[d])}"
        )
    return device


def find_precision(precision: str, device: str) -> str:
    """Choose the compute dtype's name. auto is fp16 on CUDA, fp32 elsewhere."""
    if precision == "auto":
        return "fp16" if device == "cuda" else "fp32"
    return precision


def thread_count(threads: int | str, parameters: int) -> int:
    """Count the threads to compute with. auto: what the process may use, at most 4 for a small model."""
    if threads != "auto":
        return threads
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    counts += [quota] if (quota := _container_quota()) else []
    counts += [int(omp)] if (omp := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit() and int(omp) else []
    counts += [4] if parameters < SMALL else []
    return max(1, min(counts))


def _container_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Read how many CPUs the container may use, from control groups of version 2 or 1."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no quota is "max", or a file that is not there
        return None
