"""Freed memory is used again: counted in page faults, the pages that the system had to clear."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Two blocks of 6 MB are freed before the next two are made, as the tensors of a layer are.
CODE = """
import resource
from neo_peft.system.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        first = b"1" * 6_000_000
        second = b"2" * 6_000_000
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
by_default = faults()
keep_freed_memory()
faults()
print(by_default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it has an effect on glibc only")
def test_the_memory_of_a_freed_tensor_is_used_for_the_next_one():
    output = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    by_default, kept = map(int, output.split())
    assert by_default > 1000 and kept < 10


def test_another_c_library_is_left_alone(monkeypatch):
    from neo_peft.system import freed_memory

    for error in (AttributeError, TypeError, OSError):

        def missing(_, error=error):
            raise error

        monkeypatch.setattr(freed_memory.ctypes, "CDLL", missing)
        freed_memory.keep_freed_memory()


PEAK = """
import torch
from neo_peft.system.hardware import peak_memory, restart_peak_memory

cpu = torch.device("cpu")
block = b"1" * 300_000_000
del block
whole = peak_memory(cpu)["peak_bytes"]
restart_peak_memory(cpu)
block = b"1" * 100_000_000
print(whole, peak_memory(cpu)["peak_bytes"])
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux can count a peak again")
def test_a_peak_is_counted_again_from_a_restart_on():
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=ROOT, check=True, capture_output=True, text=True
    )
    whole, after = map(int, done.stdout.split())
    assert 150_000_000 < whole - after < 250_000_000
