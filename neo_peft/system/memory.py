"""How much memory a process can have: that of the machine, of its container, and by `ulimit`."""

import os
import resource
from pathlib import Path

import torch

# For cgroup version 2, then 1: the limit, what is used, and a list with the memory of files in it,
# which can be given back.
CONTAINER = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
KILOBYTE = 1024  # the unit of files in /proc


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes that a process can ever have: the smallest of the machine's memory, the
    container's limit, and the limits of `ulimit`. None if nothing is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    container = _container()
    limits = [_machine("MemTotal"), container and container[0], _ulimit()]
    return min(filter(None, limits), default=None)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can have now, with those that it already has. None if
    nothing is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    own, container = _field(Path("/proc/self/status"), "VmRSS") or 0, _container()
    free = _machine("MemAvailable")
    room = [free and free + own, container and container[1] + own, _ulimit()]
    return min(filter(None, room), default=None)


def _machine(name: str) -> int | None:
    found = _field(Path("/proc/meminfo"), name)
    if found is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS has no /proc
    return found


def _field(path: Path, name: str) -> int | None:
    """Return a field of a file of /proc in bytes; None if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return values[0] * KILOBYTE if values else None


def _container(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """Return the container's limit of memory, and how much of it is free. None without a limit."""
    for limit, used, stat in CONTAINER:
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            fields = dict(line.split() for line in (root / stat).read_text().splitlines())
            return most, most - now + int(fields.get("inactive_file", 0))
        except (OSError, ValueError):  # no file, or the text "max"
            continue
    return None


def _ulimit() -> int | None:
    """Return the smaller of the limits `ulimit -v` and `ulimit -d`. None without one."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)
