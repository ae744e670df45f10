"""Read the tensors of a safetensors file, each mapped into memory by itself.

Its pages leave memory when the tensor is not used any more. As one map of the whole file they would
stay until the last tensor is freed; and Linux refuses a map that is larger than the memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neo_peft.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def mapped_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each tensor, and the tensor. It is read from the file at its first use. A
    write makes a private copy. Raises SafetensorError or OSError for a damaged file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:  # this checks the header
        names = list(file.keys())
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name in names:
        entry = header[name]
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"{path}: {name} is stored as {entry['dtype']}, which is not supported"
            )
        dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        values = np.empty(0, np.uint8)
        if end > start:
            values = np.memmap(path, np.uint8, "c", 8 + size + start, (end - start,))
        yield name, torch.from_numpy(values).view(dtype).view(entry["shape"])
