"""How much memory a process can have, by the machine, its control groups and `ulimit`."""

import os
import resource
from pathlib import Path

import torch

# The control groups of Linux (cgroups): a container is one, and so is a job of a cluster.
CGROUPS = Path("/sys/fs/cgroup")  # each has a folder here
OWN_CGROUPS = Path("/proc/self/cgroup")  # the names of this process's groups
# Version 2, then 1: the controller, its folder, and the files with the limit and the use.
VERSIONS = (
    ("", "", "memory.max", "memory.current"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
STAT = "memory.stat"  # the use in parts
KILOBYTE = 1024  # the unit of files in /proc


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes that a process can ever have: the smallest of the machine's memory, the
    limits of its control groups, and those of `ulimit`. None if nothing is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    groups = _control_groups()
    limits = [_machine("MemTotal"), groups and groups[0], _ulimit()]
    return min(filter(None, limits), default=None)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can have now, with those that it already has. None if
    nothing is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    own, groups = _field(Path("/proc/self/status"), "VmRSS") or 0, _control_groups()
    free = _machine("MemAvailable")
    room = [free and free + own, groups and groups[1] + own, _ulimit()]
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


def _control_groups() -> tuple[int, int] | None:
    """Return the smallest limit of memory of the process's control groups and of those above them,
    and the least memory that is free in one. None without a limit."""
    found = []
    for controller, folder, limit, used in VERSIONS:
        for group in _group_folders(controller, CGROUPS / folder):
            try:
                most, now = int((group / limit).read_text()), int((group / used).read_text())
                parts = dict(line.split() for line in (group / STAT).read_text().splitlines())
            except (OSError, ValueError):  # no file, or the text "max"
                continue
            # The memory of files that were read can be given back.
            found.append((most, most - now + int(parts.get("inactive_file", 0))))
    return tuple(map(min, zip(*found, strict=True))) if found else None


def _group_folders(controller: str, root: Path) -> list[Path]:
    """Return the folders of the process's group and of all groups above it, up to `root`. In a
    container the names of the groups can be those of the host; then only `root` is there."""
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    own = [path for _, controllers, path in lines if controller in controllers.split(",")]
    group = root / (own[0].strip("/") if own else "")
    return [group, *(folder for folder in group.parents if folder.is_relative_to(root))]


def _ulimit() -> int | None:
    """Return the smaller of the limits `ulimit -v` and `ulimit -d`. None without one."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)
