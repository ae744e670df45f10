"""The memory that a process keeps after it has freed blocks, measured in a new process."""

import os
import subprocess
import sys

import pytest

from neo_peft.runs import loading
from neo_peft.settings import make_settings

KEPT_AFTER_FREEING = """
import sys, torch
from neo_peft.system.memory import return_large_blocks

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

del (first := [torch.ones(4_000_000)])[:]  # from now on glibc keeps freed blocks below 16 MB
return_large_blocks(int(sys.argv[1]))
before, blocks = resident(), [(torch.ones(250_000), torch.ones(20_000)) for _ in range(40)]
small = [pair[1] for pair in blocks]  # they lie between the large blocks
del blocks
print(resident() - before)
"""


def kept_after_freeing(parameters, **environment):
    """Return the KB that a process keeps after freeing 40 blocks of 1 MB between small ones."""
    command = [sys.executable, "-c", KEPT_AFTER_FREEING, str(parameters)]
    return int(subprocess.check_output(command, env=os.environ | environment))


@pytest.mark.skipif(
    os.environ.get("LD_PRELOAD") is not None
    or not hasattr(os, "confstr")
    or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
    reason="needs the GNU C library's allocator",
)
def test_a_large_model_returns_freed_blocks_and_a_small_model_or_the_environment_keeps_them():
    assert kept_after_freeing(125_000_000) < 10_000
    assert kept_after_freeing(5_000_000) > 30_000
    assert kept_after_freeing(125_000_000, MALLOC_MMAP_THRESHOLD_="16000000") > 30_000


def test_loading_a_model_for_a_run_sets_this_by_its_number_of_parameters(monkeypatch):
    calls = []
    monkeypatch.setattr(loading, "return_large_blocks", calls.append)
    loaded = loading.load_untuned(
        make_settings(task="sentiment", method="prompt", model="neo-mini")
    )
    assert calls == [sum(p.numel() for p in loaded.model.transformer.parameters())]
