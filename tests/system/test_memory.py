"""The memory that a process can have, on simulated machines."""

import os
import resource

import pytest
import torch

from neo_peft.system import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine: its memory and its free memory, a container's
    limit and what is free of it, and a limit of `ulimit`."""

    def make(total=64, free=32, own=1, container=None, ulimit=None):
        fields = {"MemTotal": total, "MemAvailable": free, "VmRSS": own}
        monkeypatch.setattr(memory, "_field", lambda path, name: fields[name])
        monkeypatch.setattr(memory, "_control_groups", lambda: container)
        monkeypatch.setattr(memory, "_ulimit", lambda: ulimit)

    return make


def test_the_smallest_limit_counts(machine):
    machine()
    assert memory.memory_limit(CPU) == 64
    machine(container=(40, 30))
    assert memory.memory_limit(CPU) == 40
    machine(container=(40, 30), ulimit=8)
    assert memory.memory_limit(CPU) == memory.available_memory(CPU) == 8


def test_what_the_process_has_is_available_to_it(machine):
    machine(free=32, own=3)
    assert memory.available_memory(CPU) == 35
    machine(free=32, own=3, container=(40, 5))
    assert memory.available_memory(CPU) == 8


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return a function that writes the files of a group of processes, of cgroup version 1 or 2."""

    def write(version, path, limit, used, inactive=0):
        _, folder, limit_name, used_name = memory.VERSIONS[2 - version]
        folder = tmp_path / folder / path
        folder.mkdir(parents=True, exist_ok=True)
        stat = f"anon 9\ninactive_file {inactive}"
        for name, text in ((limit_name, limit), (used_name, used), (memory.STAT, stat)):
            (folder / name).write_text(f"{text}\n")

    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    return write


@pytest.mark.parametrize("version", [2, 1])
def test_the_limit_of_a_container_is_read_from_its_files(group, version):
    assert memory._control_groups() is None
    group(version, "", 1000, 700, inactive=50)
    assert memory._control_groups() == (1000, 350)
    group(version, "", "max", 700)
    assert memory._control_groups() is None


@pytest.mark.parametrize("version", [2, 1])
def test_the_limit_of_a_job_and_of_the_groups_above_it_counts(group, version, tmp_path):
    """As a cluster's or systemd's: the process is in /jobs/7/step."""
    lines = {2: "0::/jobs/7/step\n", 1: "9:name=systemd:/x\n4:cpu,memory:/jobs/7/step\n0::/\n"}
    (tmp_path / "own").write_text(lines[version])
    group(version, "jobs/7/step", "max", 100)
    group(version, "jobs/7", 500, 100, inactive=20)
    group(version, "jobs/8", 50, 10)  # another job
    assert memory._control_groups() == (500, 420)
    group(version, "jobs", 600, 550)
    assert memory._control_groups() == (500, 50)


def test_the_limits_of_ulimit_are_those_of_the_process(monkeypatch):
    limits = {resource.RLIMIT_AS: 900, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert memory._ulimit() == 900
    limits[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert memory._ulimit() is None


def test_the_files_of_this_system_are_understood(monkeypatch):
    monkeypatch.setattr(memory, "_ulimit", lambda: None)
    limit, pages = memory.memory_limit(CPU), os.sysconf("SC_PHYS_PAGES")
    assert memory.available_memory(CPU) > 0
    assert 0 < limit <= 1.01 * pages * os.sysconf("SC_PAGE_SIZE")
