"""The linear layer and its gradient, compared with torch's."""

import pytest
import torch
import torch.nn.functional as F

from neo_peft.kernels import linear as kernel
from neo_peft.kernels.linear import HAS_ONEDNN, LARGE, linear

on_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")


def large_layer(trained=False):
    """Return a weight (520, 1200) that is large enough for oneDNN, and a bias."""
    assert LARGE <= 520 * 1200
    return torch.randn(520, 1200).requires_grad_(trained), torch.randn(520).requires_grad_()


def nodes(tensor):
    """Return the names of a tensor's autograd nodes."""
    names, to_do = [], [tensor.grad_fn]
    while to_do:
        node = to_do.pop()
        names.append(node.name())
        to_do += [before for before, _ in node.next_functions if before is not None]
    return names


@on_onednn
@pytest.mark.parametrize("count", [0, 1, 37])
def test_a_large_frozen_layer_and_its_gradients_are_those_of_fp64(count):
    weight, bias = large_layer()
    x = torch.randn(count, 1200, requires_grad=True)
    upstream = torch.randn(count, 520)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, bias)]
    expected = F.linear(exact[0], weight.double(), exact[1])
    expected.backward(upstream.double())
    out = linear(x, weight, bias)
    assert out.grad_fn.name() == "FrozenLinearBackward"
    out.backward(upstream)
    for ours, theirs in ((out, expected), (x.grad, exact[0].grad), (bias.grad, exact[1].grad)):
        assert torch.allclose(ours.double(), theirs, rtol=0, atol=5e-4)
    grids = linear(x.detach().view(count, 1, 1200), weight)  # no bias, three dimensions
    assert torch.allclose(grids[:, 0].double(), expected - exact[1], rtol=0, atol=5e-4)


@on_onednn
def test_a_single_vector_has_the_same_gradients():
    weight, bias = large_layer()
    x, upstream = torch.randn(1200, requires_grad=True), torch.randn(520)
    linear(x, weight, bias).backward(upstream)
    assert torch.equal(bias.grad, upstream)
    torch.testing.assert_close(x.grad, upstream @ weight, rtol=1e-4, atol=1e-4)


def test_without_onednn_torchs_own_layer_multiplies(monkeypatch):
    """Where it is switched off, and where this torch does not have it."""
    weight, bias = large_layer()
    x = torch.randn(3, 1200)
    with torch.backends.mkldnn.flags(enabled=False):
        outs = [linear(x, weight, bias)]
    monkeypatch.setattr(kernel, "HAS_ONEDNN", False)
    outs.append(linear(x, weight, bias))
    assert all("FrozenLinearBackward" not in nodes(out) for out in outs)


@on_onednn
def test_a_trained_or_small_weight_or_another_dtype_is_multiplied_by_torchs_own_layer():
    weight, bias = large_layer()
    x = torch.randn(3, 1200)
    with torch.autocast("cpu", torch.bfloat16):
        assert "FrozenLinearBackward" not in nodes(linear(x, weight, bias))
    others = [(x, large_layer(trained=True)[0], bias), (x, weight[:400], bias[:400])]
    others.append((x.double(), weight.double(), bias.double()))
    for inputs in others:
        out = linear(*inputs)
        assert "FrozenLinearBackward" not in nodes(out)
        assert torch.equal(out, F.linear(*inputs))
