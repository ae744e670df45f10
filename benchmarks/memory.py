"""Measure one side's memory in a separate process. Prints one JSON object."""

import gc
import json
import sys
import time

import torch

from benchmarks.measure import memory_of_process, peak_memory
from benchmarks.sides import Job, Ours, Peer
from neo_peft.formats.base_folder import BUNDLED


def training(side: str, job: str) -> dict:
    """Return the peak bytes of two steps on the largest batch. In the second step AdamW's averages
    are allocated."""
    job = Job(**json.loads(job))
    step = Ours(job) if side == "ours" else Peer(job, careful=side == "careful")
    del job.__dict__["weights"]
    longest = max(
        job.order(16),
        key=lambda chosen: sum(job.examples.starts[i + 1] - job.examples.starts[i] for i in chosen),
    )
    return {"bytes": peak_memory(lambda: [step(longest) for _ in range(2)], job.device)}


def loading(side: str, folder: str) -> dict:
    """Return the seconds that loading a checkpoint takes, and the private memory that it needs.

    Both sides can map the file into memory, and a mapped weight is read from disk only when it is
    used. `touched` has the seconds until every weight has been used. Each side first loads
    neo-mini, without timing, so that all imports are done.
    """
    if side == "ours":
        from neo_peft.formats.base import load_base

        load = lambda folder: load_base(str(folder)).trunk  # noqa: E731
    else:
        from transformers import AutoTokenizer, GPTNeoForCausalLM

        load = lambda folder: (  # noqa: E731
            GPTNeoForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )[0]
    load(BUNDLED["neo-mini"])
    gc.collect()  # so that no garbage of the imports is collected during the timing
    before, started = memory_of_process("RssAnon"), time.perf_counter()
    model = load(folder)
    seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.detach().sum()
    touched = time.perf_counter() - started
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "seconds": seconds,
        "touched": touched,
        "bytes": memory_of_process("RssAnon") - before,
        "weights": weights,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    side, *rest = sys.argv[1:]
    print(
        json.dumps(
            loading(side.removeprefix("load-"), *rest)
            if side.startswith("load-")
            else training(side, *rest)
        )
    )
