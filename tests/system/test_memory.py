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
        monkeypatch.setattr(memory, "_container", lambda: container)
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


@pytest.mark.parametrize("version", [2, 1])
def test_a_containers_limit_is_read_from_its_files(tmp_path, version):
    limit, used, stat = memory.CONTAINER[2 - version]
    assert memory._container(tmp_path) is None
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    for name, text in ((limit, "1000\n"), (used, "700\n"), (stat, "anon 9\ninactive_file 50\n")):
        (tmp_path / name).write_text(text)
    assert memory._container(tmp_path) == (1000, 350)
    (tmp_path / limit).write_text("max\n")
    assert memory._container(tmp_path) is None


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
