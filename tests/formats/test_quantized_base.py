"""A base whose linear layers are quantised while it is loaded. It computes what an unquantised
trunk with the dequantised weights computes, and takes little memory."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from base_files import assert_refused, change_tensors
from parity import batch_of, random_texts

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.formats.mapped_tensors import mapped_tensors
from neo_peft.kernels.quantized import QuantizedLinear, dequantize
from neo_peft.lora import add_lora, linear_layers, merge_lora
from neo_peft.model import TunedModel
from neo_peft.runs.adapter_set import copy_sharing_matrices

ROOT = Path(__file__).parents[2]
KINDS = ("int8", "nf4")
KEYS = ("k_proj", "v_proj", "q_proj", "out_proj", "c_fc", "c_proj")


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_are_quantised_and_nothing_else(base, tiny_folder, kind):
    quantized = load_base(str(tiny_folder), quantize=kind)
    layers = {
        name: layer
        for name, layer in quantized.trunk.named_modules()
        if isinstance(layer, QuantizedLinear)
    }
    assert list(layers) == linear_layers(quantized.trunk) == linear_layers(base.trunk)
    assert len(layers) == 4 * len(KEYS)
    ours, theirs = (dict(trunk.named_parameters()) for trunk in (quantized.trunk, base.trunk))
    for name in theirs.keys() & ours.keys():
        assert torch.equal(ours[name], theirs[name]), name
    assert theirs.keys() - ours.keys() == {f"{name}.weight" for name in layers}
    for name, layer in layers.items():
        weight = base.trunk.get_submodule(name).weight
        expected = QuantizedLinear(weight, kind)
        assert torch.equal(layer.weight, expected.weight)
        error = (layer.weight - weight).norm() / weight.norm()
        assert 0 < error < {"int8": 0.01, "nf4": 0.13}[kind]
    assert not any(p.requires_grad for p in quantized.trunk.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_that_of_the_stored_weights(base, tiny_folder, kind):
    quantized = load_base(str(tiny_folder), quantize=kind)
    record, plain = quantized.record(), base.record()
    assert (record.pop("quantize"), plain.pop("quantize")) == (kind, "none")
    taken, full = record.pop("weight_bytes"), plain.pop("weight_bytes")
    assert record == plain and record["parameters"] == sum(
        p.numel() for p in base.trunk.parameters()
    )
    assert taken < full == 4 * record["parameters"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_computes_what_one_with_the_dequantised_weights_computes(
    tiny_folder, kind, dtype
):
    """To the bit, values and gradients of LoRA in all layers, with and without recomputation."""
    trunk, results = load_base(str(tiny_folder), dtype, quantize=kind).trunk, []
    plain = copy.deepcopy(trunk)
    dequantize(plain)
    for layer in plain.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.to(dtype)
    for model_trunk, recomputes in ((trunk, False), (copy.deepcopy(trunk), True), (plain, False)):
        model_trunk.checkpoint_activations = recomputes
        torch.manual_seed(5)
        add_lora(model_trunk, ["all-linear"], rank=3, alpha=4, bias="all")
        model = TunedModel(model_trunk, compute_dtype=dtype).train()
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        hidden = model(batch_of(random_texts()))
        hidden.square().sum().backward()
        results.append([hidden, *(p.grad for p in model.trainable().values())])
    assert len(results[0]) > 1 + 2 * 4 * len(KEYS)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_share_the_codes(tiny_folder, kind):
    trunk = load_base(str(tiny_folder), quantize=kind).trunk
    copied = dict(copy_sharing_matrices(trunk).named_parameters())
    for name, tensor in trunk.named_parameters():
        assert (copied[name] is tensor) == (tensor.dim() > 1), name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_lora_is_added_to_the_dequantised_weight_in_fp32(tiny_folder, kind):
    trunk = load_base(str(tiny_folder), torch.bfloat16, quantize=kind).trunk
    add_lora(trunk, ["c_fc"], rank=3, alpha=6)
    layers = [block.mlp.c_fc for block in trunk.h]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B.weight)
    for layer in layers:
        assert layer.base_layer.weight.dtype == torch.bfloat16
    in_fp32 = load_base(str(tiny_folder), quantize=kind).trunk
    expected = [
        block.mlp.c_fc.weight + 2 * layer.lora_B.weight @ layer.lora_A.weight
        for block, layer in zip(in_fp32.h, layers, strict=True)
    ]
    merge_lora(trunk)
    assert not [layer for layer in trunk.modules() if isinstance(layer, QuantizedLinear)]
    for block, weight in zip(trunk.h, expected, strict=True):
        assert torch.equal(block.mlp.c_fc.weight, weight)


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "base"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_finite_is_refused(tiny_folder, tmp_path, kind, value):
    folder, name = copied(tiny_folder, tmp_path), "transformer.h.1.mlp.c_fc.weight"
    change_tensors(folder, lambda tensors: tensors[name][3].fill_(value))
    message = f"{name}, stored as float32, has values that are not finite in float32"
    with pytest.raises(InputError, match=re.escape(message)):
        load_base(str(folder), quantize=kind)


def test_a_weight_of_a_wrong_shape_is_refused_as_without_quantising(tiny_folder, tmp_path):
    folder, name = copied(tiny_folder, tmp_path), "transformer.h.1.mlp.c_fc.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2, 3, 4)}))
    message = f"{name} has the shape (2, 3, 4); expected (40, 24), by config.json"
    assert_refused(folder, message)
    with pytest.raises(InputError, match=re.escape(message)):
        load_base(str(folder), quantize="nf4")


# ---- Memory


def test_a_file_that_is_larger_than_the_memory_can_be_read(tmp_path):
    """One map of all of it would be refused. The file has holes, so it takes no space."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count, size = 2 * memory // 2**30 + 1, 2**30
    header = {
        f"tensor {i}": {
            "dtype": "F16",
            "shape": [2**29],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    with open(tmp_path / "large.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + count * size)
    names = set()
    for name, tensor in mapped_tensors(tmp_path / "large.safetensors"):
        names.add(name)
        assert tensor.shape == (2**29,) and not tensor[-5:].any()
    assert names == header.keys()


def loading(folder, *sizes, kind):
    command = [sys.executable, ROOT / "tests/helpers/large_base.py", folder]
    result = subprocess.run(
        [*command, *map(str, sizes), kind],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_little_memory(taken, hidden_size):
    """The private memory is that of the loaded weights and at most one layer in fp32. Of the file
    at most the token embeddings and one layer are in memory."""
    embeddings, layer = 2 * 50257 * hidden_size, 4 * 4 * hidden_size**2
    print({name: f"{size / 1e6:,.0f} MB" for name, size in taken.items()})
    kept = 8_000_000  # what the C library keeps of freed memory
    assert taken["RssAnon"] <= 1.1 * taken["weights"] + layer + kept
    assert taken["RssFile"] <= embeddings + layer + kept < 2 * taken["parameters"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what memory belongs to files")
@pytest.mark.parametrize("kind", KINDS)
def test_loading_takes_the_memory_of_the_quantised_weights(tmp_path, kind):
    taken = loading(tmp_path / "base", 256, 24, 4, kind=kind)
    assert taken["weights"] < {"int8": 0.6, "nf4": 0.5}[kind] * 4 * taken["parameters"]
    assert_little_memory(taken, 256)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what memory belongs to files")
@pytest.mark.parametrize(("kind", "weights"), [("int8", 1.64e9), ("nf4", 1.05e9)])
def test_loading_gpt_neo_1_3b_takes_the_memory_of_the_quantised_weights(tmp_path, kind, weights):
    """Random weights in its shape, stored in fp16: a file of 2.6 GB."""
    taken = loading(tmp_path / "base", 2048, 24, 16, kind=kind)
    assert taken["parameters"] == 1_315_575_808
    assert taken["weights"] == pytest.approx(weights, rel=0.005)
    assert_little_memory(taken, 2048)
