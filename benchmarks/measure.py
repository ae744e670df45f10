"""How the benchmarks measure: two sides run in turn (A B A B) in one process. Peak memory is
measured in a separate process."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from neo_peft.encoding import Examples, collate
from neo_peft.gptneo import Config
from neo_peft.model import TunedModel


@dataclass(frozen=True)
class Comparison:
    """The seconds that two sides took. Index i of both is pair i."""

    ours: list[float]  # seconds of our side
    theirs: list[float]  # seconds of the peer

    @property
    def ratios(self) -> list[float]:
        """The peer's seconds over ours, for each pair."""
        return [peer / own for own, peer in zip(self.ours, self.theirs, strict=True)]

    def summary(self) -> dict:
        """Return the median and the range of the ratios."""
        ratios = self.ratios
        return {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def alternate(
    ours: Callable, theirs: Callable, pairs: int, warm_up: int = 2, device: str = "cpu"
) -> Comparison:
    """Time both sides in turn. Each is called with the pair's number, so that both use the same
    batch. The warm-up pairs are not counted."""
    measured = ([], [])
    for pair in range(-warm_up, pairs):
        for side, seconds in zip((ours, theirs), measured):
            elapsed = seconds_of(lambda: side(pair % pairs), device)  # noqa: B023
            if pair >= 0:
                seconds.append(elapsed)
    return Comparison(*measured)


def seconds_of(call: Callable, device: str = "cpu") -> float:
    """Return the seconds of a call. On a GPU they are measured by CUDA events, since kernels still
    run after the call returns."""
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def matmul_rate(
    config: Config, tokens: int, dtype: torch.dtype, device: str = "cpu", repeats: int = 12
) -> float:
    """Return how many floating point operations per second this machine computes in matrix
    products: those of one transformer block, for this number of tokens."""
    size, inner = config.hidden_size, config.intermediate_size
    shapes = [(size, size)] * 4 + [(inner, size), (size, inner)]
    weights = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    inputs = {
        width: torch.randn(tokens, width, device=device, dtype=dtype) for width in (size, inner)
    }

    def products() -> None:
        with torch.no_grad():
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    seconds = [seconds_of(products, device) for _ in range(repeats + 2)][2:]
    return 2 * tokens * sum(weight.numel() for weight in weights) / median(seconds)


def block_parameters(config: Config) -> int:
    """Return the number of parameters in the matrices of all blocks."""
    return config.num_layers * (
        4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    )


def peak_memory(call: Callable, device: str = "cpu") -> int:
    """Return the bytes that a call needs at its peak, in addition to those allocated before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    # Return freed memory to the system. Otherwise the call reuses it, and its peak looks too small.
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    call()
    return memory_of_process("VmHWM") - before


def load_libraries(model: TunedModel, examples: Examples) -> None:
    """Compute the gradients of one example, and drop them. The first step of a process also loads
    the code and the buffers of the matrix libraries: 25 MB that are not the step's own."""
    model.loss(collate(examples, [0]).to(model.device)).backward()
    model.zero_grad()


def memory_of_process(name: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS (resident memory), VmHWM (its peak), or
    RssAnon (the resident memory that belongs to no file)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
