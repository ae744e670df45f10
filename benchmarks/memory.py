"""What one side needs at its peak, in a process of its own: prints one JSON object."""

import gc
import json
import sys
import time

import torch

from benchmarks.measure import peak_memory, resident
from benchmarks.sides import Job, Ours, Peer
from neo_peft.formats.base_folder import BUNDLED


def training(side: str, job: str) -> dict:
    """Measure two steps of the largest batch: in the second the optimizer's averages are there."""
    job = Job(**json.loads(job))
    step = Ours(job) if side == "ours" else Peer(job, careful=side == "careful")
    del job.__dict__["weights"]
    longest = max(
        job.order(16),
        key=lambda chosen: sum(job.examples.starts[i + 1] - job.examples.starts[i] for i in chosen),
    )
    return {"bytes": peak_memory(lambda: [step(longest) for _ in range(2)], job.device)}


def loading(side: str, folder: str) -> dict:
    """Time the loading of a folder, and count what the process then holds for itself alone.

    Both sides may leave the weights in the mapped file, which is read only where it is used:
    `touched` are the seconds until every weight has been. Before the clock each side loads
    neo-mini, which imports all that it needs.
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
    gc.collect()  # or what the imports left behind is collected while the clock runs
    held, began = resident("RssAnon"), time.perf_counter()
    model = load(folder)
    seconds = time.perf_counter() - began
    for parameter in model.parameters():
        parameter.detach().sum()
    touched = time.perf_counter() - began
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "seconds": seconds,
        "touched": touched,
        "bytes": resident("RssAnon") - held,
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
