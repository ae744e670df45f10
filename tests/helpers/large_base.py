"""Write a GPT-Neo with random weights to a folder, and measure the memory of loading it.

    python large_base.py FOLDER HIDDEN_SIZE LAYERS KIND

Prints a JSON object in bytes: the peak of the process's anonymous memory (RssAnon: memory that
belongs to no file) and of its mapped files (RssFile) while the base was loaded, above those before;
and the bytes of the loaded weights.
"""

import json
import shutil
import sys
import threading
from pathlib import Path

import torch

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.gptneo import GPTNeo


def write_base(folder: Path, hidden_size: int, layers: int) -> None:
    """Write the files of a base in fp16. All layers have the same weights, so that it takes only a
    moment; no more than one of them is in memory."""
    from neo_peft.formats.base_config import read_config

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["neo-mini"] / name, folder)
    config = json.loads((BUNDLED["neo-mini"] / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "num_layers": layers, "num_heads": hidden_size // 64}
    config |= {"vocab_size": 50257, "max_position_embeddings": 2048, "window_size": 256}
    config |= {"intermediate_size": None, "attention_types": [[["global", "local"], layers // 2]]}
    config = {name: value for name, value in config.items() if name != "attention_layers"}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        trunk = GPTNeo(read_config(folder, []))
    header, offset = {}, 0
    for name, tensor in trunk.named_parameters():
        shape, end = list(tensor.shape), offset + 2 * tensor.numel()
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        header[f"transformer.{name}"], offset = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    drawn = {}  # by shape
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in trunk.parameters():
            if tensor.shape not in drawn:
                random = torch.randn(tensor.shape, generator=generator).mul_(0.02).half()
                drawn[tensor.shape] = random.numpy().tobytes()
            file.write(drawn[tensor.shape])


def memory() -> dict[str, int]:
    """Return the resident memory of this process in bytes: of no file, and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":") for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def measure(folder: Path, kind: str) -> dict[str, int]:
    """Load the base and return what this module's docstring names."""
    load_base("neo-mini", quantize=kind)  # so that everything is imported
    before, ended = memory(), threading.Event()
    peaks = dict(before)

    def watch() -> None:
        while not ended.wait(0.001):
            for name, size in memory().items():
                peaks[name] = max(peaks[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    base = load_base(str(folder), quantize=kind)
    ended.set()
    watcher.join()
    taken = {name: peaks[name] - before[name] for name in peaks}
    return taken | {"weights": base.weight_bytes, "parameters": base.parameters}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, hidden_size, layers, kind = sys.argv[1:]
    if not Path(folder).exists():
        write_base(Path(folder), int(hidden_size), int(layers))
    print(json.dumps(measure(Path(folder), kind)))
