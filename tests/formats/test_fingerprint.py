"""The fingerprint of a base model: a hash of its stored weights."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from base_files import WPE, WTE, change_config, change_tensors
from torch import Tensor

from neo_peft.formats import base
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import WEIGHTS


def file_parts(path: Path) -> dict[str, tuple[dict, bytes]]:
    """Return {name: (header entry, bytes)} of a safetensors file, read by its published format."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    return {
        name: (entry, data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name[0] != "_"
    }


def test_the_fingerprint_follows_its_definition(folder):
    change_tensors(folder, lambda t: t.update({WPE: t[WPE].half()}))
    parts, whole = file_parts(folder / WEIGHTS), hashlib.sha256()
    for name in sorted(parts):
        entry, data = parts[name]
        blocks = [data[start : start + 4096] for start in range(0, len(data), 4096)]
        chosen = sorted({i * (len(blocks) - 1) // 63 for i in range(64)})
        dtype = {"F32": "torch.float32", "F16": "torch.float16"}[entry["dtype"]]
        head = f"{name} {tuple(entry['shape'])} {dtype}".encode()
        whole.update(hashlib.sha256(head + b"".join(blocks[i] for i in chosen)).digest())
    assert load_base(str(folder)).fingerprint == whole.hexdigest()


def flip(tensor: Tensor, byte: int) -> None:
    """Flip one bit of a byte of a tensor."""
    tensor.view(-1).view(torch.uint8)[byte] ^= 1


def test_one_changed_byte_in_a_sampled_block_changes_the_fingerprint(tiny_folder, folder):
    # wte has 192 blocks. 64 of them are sampled, among them the first, the fourth and the last. A
    # bias is sampled whole.
    plain, size = load_base(str(tiny_folder)).fingerprint, 8192 * 24 * 4
    fingerprints = {plain}
    for name, byte in [
        (WTE, 0),
        (WTE, 3 * 4096),
        (WTE, size - 1),
        ("transformer.h.3.mlp.c_fc.bias", 40 * 4 - 1),
    ]:
        change_tensors(folder, lambda t, name=name, byte=byte: flip(t[name], byte))
        fingerprints.add(load_base(str(folder)).fingerprint)
        change_tensors(folder, lambda t, name=name, byte=byte: flip(t[name], byte))
    assert len(fingerprints) == 5 and load_base(str(folder)).fingerprint == plain


def test_the_fingerprint_samples_64_blocks_of_a_large_tensor():
    # So it is fast for 5 GB. It detects mistakes, not attacks.
    large = torch.zeros(300 * 1024 + 5)  # 300 blocks of 4 KiB and a part of one
    plain, sampled = base._digest("x", large), 0
    for block in range(301):
        flip(large, block * 4096)
        sampled += base._digest("x", large) != plain
        flip(large, block * 4096)
    assert sampled == 64


@pytest.mark.parametrize("other", [(torch.float16, (6, 4)), (torch.bfloat16, (4, 6))])
def test_another_name_shape_or_dtype_of_the_same_bytes_changes_the_fingerprint(other):
    # The bytes are all zero: only name, shape and dtype differ.
    dtype, shape = other
    zeros = torch.zeros(4, 6, dtype=torch.float16)
    assert base._digest("x", zeros) == base._digest("x", zeros.clone())
    assert base._digest("x", zeros) != base._digest("x", torch.zeros(shape, dtype=dtype))
    assert base._digest("x", zeros) != base._digest("y", zeros)


def test_another_stored_dtype_or_shape_changes_the_fingerprint(tiny_folder, folder):
    plain = load_base(str(tiny_folder)).fingerprint
    change_tensors(folder, lambda t: t.update({WPE: t[WPE][:100].clone()}))
    change_config(folder, max_position_embeddings=100)
    shorter = load_base(str(folder)).fingerprint
    change_tensors(folder, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    halved = load_base(str(folder)).fingerprint
    assert len({plain, shorter, halved}) == 3
    # The dtype in memory does not matter: the file is the same.
    assert load_base(str(folder), torch.bfloat16).fingerprint == halved
