"""Linear layers in 8 and 4 bits. The codes are compared with cases worked by hand, a plain loop and
bitsandbytes; the products with those of an unquantised layer that has the same weight."""

import math
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from parity import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

from neo_peft.kernels.linear import HAS_ONEDNN, LARGE, Linear, frozen_layer
from neo_peft.kernels.quantized import (
    LEVELS,
    PART,
    QuantizedLinear,
    dequantize,
    to_int8,
    to_nf4,
    unpack,
)

KINDS = ("int8", "nf4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What bitsandbytes 0.50.2 returns on a CPU: its levels, and the codes and scales of `spread()` in
# blocks of 64, without double quantisation.
THEIR_LEVELS = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
THEIR_CODES = (
    "048d16af48d16af47d16af47d16af37d16af37d16af37c169f37c169e37c159e3"
    "7c159e37c159e27c059e27c059e27b058e27b058e27b048e27b048e27b048e25f"
)
THEIR_SCALES = (2.047621011734009, 2.0001869201660156, 0.60141921043396)


def spread():
    """Return a weight (5, 26): different numbers, more of them near 0."""
    numbers = (torch.arange(130) * 37 % 130 - 64.5).view(5, 26) / 40
    return numbers.sign() * numbers.abs() ** 1.5


def two_per_byte(codes):
    """Return the codes of 4 bits (blocks, 64) from bytes, the first one in the high half."""
    return torch.stack([codes // 16, codes % 16], dim=2).flatten(1)


def with_zero_block_and_outlier():
    """Return a weight (6, 64) whose blocks are rows. One is zero, another has a large number."""
    weight = 0.02 * torch.randn(6, 64)
    weight[2], weight[4, 9] = 0, 7.0
    return weight


# ---- Codes


def test_the_levels_are_quantiles_of_a_normal_distribution():
    """7 below zero and 8 above, evenly spaced in probability: QLoRA, appendix E."""
    outer, normal = 0.9677083, NormalDist()
    negative = [-normal.inv_cdf(outer - (outer - 0.5) * i / 7) for i in range(7)]
    positive = [normal.inv_cdf(outer - (outer - 0.5) * i / 8) for i in range(8)]
    expected = [level / max(positive) for level in sorted([*negative, 0.0, *positive])]
    assert list(LEVELS) == pytest.approx(expected, abs=1e-6)
    assert list(LEVELS) == pytest.approx(list(THEIR_LEVELS), abs=1e-6)


def test_a_row_in_8_bits_worked_by_hand():
    codes, scales = to_int8(torch.tensor([[2.54, -1.26, 0.013, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -63, 1, 0], [0, 0, 0, 0]]  # the scale is 0.02
    assert scales.flatten().tolist() == pytest.approx([0.02, 0.0])
    out = unpack(codes, scales, torch.empty(2, 4))
    assert out.tolist()[0] == pytest.approx([2.54, -1.26, 0.02, 0.0]) and not out[1].any()


def test_a_block_in_4_bits_worked_by_hand():
    """The largest value is 2. 0.5 / 2 is next to the level 0.246 (code 10), -0.9 / 2 to -0.395
    (code 3). Zeros have the code 7, and fill the second block."""
    weight = torch.zeros(5, 13)
    weight[0, :4] = torch.tensor([2.0, -2.0, 0.5, -0.9])
    codes, scales = to_nf4(weight)
    assert codes.tolist() == [[0xF0, 0xA3, *[0x77] * 30], [0x77] * 32]
    assert scales.tolist() == [[2.0], [0.0]]
    out = unpack(codes, scales, torch.empty(2, 64))
    assert out[0, :5].tolist() == pytest.approx([2.0, -2.0, 0.4922246, -0.789835, 0.0])
    assert not out[0, 4:].any() and not out[1].any()


def test_codes_and_scales_in_4_bits_are_those_of_bitsandbytes():
    codes, scales = to_nf4(spread())
    assert bytes(codes.flatten().tolist()).hex().startswith(THEIR_CODES)
    assert scales.flatten().tolist() == pytest.approx(THEIR_SCALES, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_weight_has_the_codes_of_the_installed_bitsandbytes(dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(300, 257).to(dtype)
    theirs, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes, scales = to_nf4(weight)
    same = codes.flatten()[: theirs.numel()] == theirs.flatten()
    assert same.float().mean() > 0.999  # all but ties, which half precision has
    assert torch.equal(scales.flatten(), state.absmax)


def test_the_mean_error_of_normal_weights_is_that_of_nf4():
    """0.0728 is the error that the tests of bitsandbytes expect, in blocks of 64."""
    weight = torch.randn(1024, 1024)
    assert weight.numel() > 2 * PART
    codes, scales = to_nf4(weight)
    error = unpack(codes, scales, torch.empty(len(codes), 64)).view_as(weight) - weight
    assert error.abs().mean().item() == pytest.approx(0.0728, abs=3e-4)
    error = QuantizedLinear(weight, "nf4").weight - weight  # with scales in 8 bits
    assert error.abs().mean().item() == pytest.approx(0.0729, abs=5e-4)
    error = QuantizedLinear(weight, "int8").weight - weight
    steps = weight.abs().amax(1) / 127  # the error is uniform up to half a step
    assert error.abs().mean().item() == pytest.approx(steps.mean().item() / 4, rel=0.01)


def scales_of_a_plain_loop(scales):
    """Return the scales as they are after double quantisation: numbers in, numbers out."""
    mean, found = sum(scales) / len(scales), []
    for start in range(0, len(scales), 256):
        rest = [scale - mean for scale in scales[start : start + 256]]
        step = max(map(abs, rest)) / 127
        found += [max(0.0, mean + step * (round(value / step) if step else 0)) for value in rest]
    return found


@pytest.mark.parametrize("blocks", [1, 3, 256, 300])
def test_the_scales_of_blocks_are_those_of_a_plain_loop(blocks):
    weight = torch.randn(blocks, 64) * torch.rand(blocks, 1)
    weight[0] = 0  # less than the mean by so much that 8 bits can take it below zero
    layer = QuantizedLinear(weight, "nf4")
    expected = scales_of_a_plain_loop(weight.double().abs().amax(1).tolist())
    levels = torch.tensor(LEVELS)[two_per_byte(to_nf4(weight)[0]).long()]
    assert_close(layer.weight + 1e-9, levels * torch.tensor(expected)[:, None] + 1e-9, 1e-5)
    assert (layer.weight.abs().amax(1) >= 0).all() and not layer.weight[0].any()


WEIGHTS = {
    "one number": torch.full((1, 1), -3.0),
    "less than a block": torch.linspace(-1, 2, 33).view(3, 11),
    "a part of a block": torch.linspace(-2, 1, 645).view(5, 129) ** 3,
    "a zero block and an outlier": with_zero_block_and_outlier(),
    "zeros": torch.zeros(4, 40),
    "subnormal": torch.full((2, 64), 1e-41),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_error_is_at_most_half_the_widest_gap_of_levels(name, dtype):
    weight = WEIGHTS[name].to(dtype)
    layer = QuantizedLinear(weight, "nf4")
    codes, scales = to_nf4(weight)
    exact = torch.tensor(scales_of_a_plain_loop(scales.flatten().double().tolist()))[:, None]
    gap = max(b - a for a, b in pairwise(LEVELS))
    bound = (gap / 2 * scales + (exact - scales).abs()) * 1.0001 + 1e-38
    bound = bound.expand(-1, 64).flatten()[: weight.numel()].view(weight.shape)
    assert ((layer.weight - weight.float()).abs() <= bound).all()
    assert layer.weight.shape == weight.shape and layer.weight.dtype == torch.float32
    error = (QuantizedLinear(weight, "int8").weight - weight.float()).abs()
    assert (error <= weight.float().abs().amax(1, keepdim=True) / 127 / 2 * 1.0001 + 1e-38).all()


@pytest.mark.parametrize("shape", [(30, 50), (8, 129), (257, 64)])
def test_the_quantised_weight_has_the_same_codes(shape):
    layer = QuantizedLinear(torch.randn(shape), "nf4")
    assert torch.equal(QuantizedLinear(layer.weight, "nf4").codes, layer.codes)
    layer = QuantizedLinear(torch.randn(shape), "int8")
    assert torch.equal(QuantizedLinear(layer.weight, "int8").codes, layer.codes)


def test_a_weight_takes_half_a_byte_or_one_and_little_more():
    for kind, bits in (("int8", 8 + 32 / 2048), ("nf4", 4 + 8 / 64 + 32 / (64 * 256))):
        layer = QuantizedLinear(torch.randn(256, 2048), kind)
        stored = sum(tensor.nbytes for tensor in layer.parameters())
        assert 8 * stored / layer.shape.numel() == pytest.approx(bits, rel=1e-4)


# ---- The layer


def both_layers(kind, shape, dtype=torch.float32, trained_bias=True):
    """Return a quantised layer, and an unquantised one with the same weight and bias."""
    layer = QuantizedLinear(torch.randn(shape), kind, dtype)
    layer.bias = nn.Parameter(torch.randn(shape[0]), requires_grad=trained_bias)
    plain = frozen_layer(layer.weight, nn.Parameter(layer.bias.detach().clone(), trained_bias))
    return layer, plain


def outputs_and_gradients(layer, x, compute_dtype=None):
    """Return a layer's output for x, and the gradients of x and of the bias."""
    x = x.clone().requires_grad_()
    layer.bias.grad = None
    with torch.autocast("cpu", compute_dtype, enabled=compute_dtype is not None):
        out = layer(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype))
    return out, x.grad, layer.bias.grad


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


SIZES = {"small": (23, 70), "large": (520, 1200)}  # oneDNN multiplies large ones in fp32


@pytest.mark.parametrize("tokens", [(1,), (37,), (4, 3)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_unquantised_layer_to_the_bit(kind, size, tokens):
    assert math.prod(SIZES["small"]) < LARGE <= math.prod(SIZES["large"])
    layer, plain = both_layers(kind, SIZES[size])
    x = torch.randn(*tokens, layer.in_features)
    ours, theirs = outputs_and_gradients(layer, x), outputs_and_gradients(plain, x)
    assert_equal(ours, theirs)
    if size == "small" or not HAS_ONEDNN:
        assert torch.equal(ours[0], F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_they_are_those_of_a_layer_in_half_precision(kind, dtype):
    layer, plain = both_layers(kind, (23, 70), dtype)
    assert layer.weight.dtype == dtype
    x = torch.randn(9, 70)
    ours = outputs_and_gradients(layer, x, dtype)
    assert_equal(ours, outputs_and_gradients(plain, x, dtype))
    assert ours[0].dtype == dtype and ours[1].dtype == ours[2].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_whose_input_needs_no_gradient_computes_its_weight_once(kind, monkeypatch):
    layer, calls = both_layers(kind, (23, 70))[0], []
    compute = QuantizedLinear.compute_weight
    monkeypatch.setattr(
        QuantizedLinear, "compute_weight", lambda self: calls.append(1) or compute(self)
    )
    layer(torch.randn(3, 70)).sum().backward()
    assert len(calls) == 1 and torch.equal(layer.bias.grad, torch.full((23,), 3.0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_layers_share_does_not_mix_them_up(kind):
    """Layers of different sizes in turn, in inference mode first, with checkpoints, and the weights
    that a caller keeps."""
    pairs = [both_layers(kind, shape) for shape in ((40, 30), (64, 40), (30, 64))]
    ours, theirs = (nn.Sequential(*layers) for layers in zip(*pairs, strict=True))
    kept = [layer.weight for layer in ours]
    x = torch.randn(5, 30)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))
    gradients = []
    for model, recomputed in ((theirs, False), (ours, False), (ours, True)):
        leaf = x.clone().requires_grad_()
        out = checkpoint(model, leaf, use_reentrant=False) if recomputed else model(leaf)
        out.square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert all(map(torch.equal, kept, [layer.weight for layer in theirs]))


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_saves_nothing_of_the_weight(kind):
    layers = [both_layers(kind, (60, 60))[0] for _ in range(4)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = nn.Sequential(*layers)(torch.randn(3, 60, requires_grad=True))
    assert not saved and out.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_layers_are_plain_ones_in_fp32_with_the_same_weight(kind):
    layer, _ = both_layers(kind, (23, 70), torch.bfloat16)
    model, bias = nn.ModuleDict({"first": nn.ModuleDict({"inner": layer})}), layer.bias
    exact = layer.weight
    dequantize(model)
    plain = model["first"]["inner"]
    assert type(plain) is Linear and plain.weight.dtype == torch.float32
    assert torch.equal(plain.weight.bfloat16(), exact) and plain.bias is bias
    assert not plain.weight.requires_grad and bias.requires_grad
