"""Measure the memory of loading a base with random weights.

    python large_base.py FOLDER HIDDEN_SIZE LAYERS HEADS KIND

Prints a JSON object in bytes: the peak of the process's anonymous memory (RssAnon: memory that
belongs to no file) and of its mapped files (RssFile) while the base was loaded, less those before;
and the bytes of the loaded weights. The base is stored in fp16.
"""

import json
import sys
import threading
from pathlib import Path

import torch

from benchmarks.measure import memory_of_process
from benchmarks.random_base import write_base
from neo_peft.formats.base import load_base

FIELDS = ("RssAnon", "RssFile")


def measure(folder: Path, kind: str) -> dict[str, int]:
    """Load the base and return what this module's docstring names."""
    load_base("neo-mini", quantize=kind)  # so that everything is imported
    before = {name: memory_of_process(name) for name in FIELDS}
    peaks, ended = dict(before), threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            for name in FIELDS:
                peaks[name] = max(peaks[name], memory_of_process(name))

    watcher = threading.Thread(target=watch)
    watcher.start()
    base = load_base(str(folder), quantize=kind)
    ended.set()
    watcher.join()
    taken = {name: peaks[name] - before[name] for name in FIELDS}
    return taken | {"weights": base.weight_bytes, "parameters": base.parameters}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *sizes, kind = sys.argv[1:]
    write_base(Path(folder), *map(int, sizes), "F16")
    print(json.dumps(measure(Path(folder), kind)))
