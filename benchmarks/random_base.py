"""Write the folder of a base model with random weights, in the shape of a published GPT-Neo."""

import json
import shutil
from pathlib import Path

import torch

from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.gptneo import GPTNeo

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # neo-mini's
STORED = {"F32": torch.float32, "F16": torch.float16}  # the names that safetensors has for dtypes


def write_base(
    folder: Path, hidden_size: int, layers: int, heads: int, stored: str = "F32"
) -> None:
    """Write a base to a new folder. The weights of all layers are the same, so that only one tensor
    of each shape is drawn, and in memory."""
    folder.mkdir()
    for name in TOKENIZER:
        shutil.copy(BUNDLED["neo-mini"] / name, folder)
    config = json.loads((BUNDLED["neo-mini"] / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "num_layers": layers, "num_heads": heads}
    config |= {"vocab_size": 50257, "max_position_embeddings": 2048, "window_size": 256}
    config |= {"attention_types": [[["global", "local"], layers // 2]]}
    del config["attention_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        trunk = GPTNeo(read_config(folder, []))
    header, offset, dtype = {}, 0, STORED[stored]
    for name, tensor in trunk.named_parameters():
        end = offset + dtype.itemsize * tensor.numel()
        entry = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[f"transformer.{name}"], offset = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn, generator = {}, torch.Generator().manual_seed(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in trunk.named_parameters():
            is_norm = "ln_" in name and name.endswith("weight")
            key = tensor.shape, is_norm
            if key not in drawn:
                values = 0.02 * torch.randn(tensor.shape, generator=generator)
                drawn[key] = (values + 1 if is_norm else values).to(dtype).numpy()
            file.write(drawn[key])
