"""How anything here is measured: two sides in turn, A B A B, in one process; peak memory in a
process of its own."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from neo_peft.gptneo import Config


@dataclass(frozen=True)
class Comparison:
    """Seconds of our side and of the peer's, pair by pair."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [peer / own for own, peer in zip(self.ours, self.theirs, strict=True)]

    def summary(self) -> dict:
        ratios = self.ratios
        return {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def alternate(
    ours: Callable, theirs: Callable, pairs: int, warm_up: int = 2, device: str = "cpu"
) -> Comparison:
    """Run both sides in turn. Each is called with the number of the pair, so that both see the same
    batch."""
    taken = ([], [])
    for pair in range(-warm_up, pairs):
        for side, seconds in zip((ours, theirs), taken):
            elapsed = seconds_of(lambda: side(pair % pairs), device)  # noqa: B023
            if pair >= 0:
                seconds.append(elapsed)
    return Comparison(*taken)


def seconds_of(call: Callable, device: str = "cpu") -> float:
    """Time a call: on a GPU by its own events, since its work goes on when the call is over."""
    if device == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def matmul_rate(
    config: Config, rows: int, dtype: torch.dtype, device: str = "cpu", repeats: int = 12
) -> float:
    """Measure the machine's own rate, in floating point operations a second: a block's products, of
    as many rows."""
    size, inner = config.hidden_size, config.intermediate_size
    shapes = [(size, size)] * 4 + [(inner, size), (size, inner)]
    weights = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    inputs = {
        width: torch.randn(rows, width, device=device, dtype=dtype) for width in (size, inner)
    }

    def products() -> None:
        with torch.no_grad():
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    taken = [seconds_of(products, device) for _ in range(repeats + 2)][2:]
    return 2 * rows * sum(weight.numel() for weight in weights) / median(taken)


def block_parameters(config: Config) -> int:
    return config.num_layers * (
        4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    )


def peak_memory(call: Callable, device: str = "cpu") -> int:
    """Measure the bytes that a call needs at its peak, beyond what is held before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - held
    gc.collect()
    # what building the model has freed would else serve the step, and not be seen
    ctypes.CDLL(None).malloc_trim(0)
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is held
    call()
    return resident("VmHWM") - held


def resident(name: str) -> int:
    """Read one of this process's sizes in bytes: VmRSS is what it holds, VmHWM the most it has
    held, RssAnon what it shares with no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
