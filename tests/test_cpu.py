"""The linear layer and the activation, compared with torch's; the statistics of dropout."""

import pytest
import torch
import torch.nn.functional as F

from neo_peft import cpu
from neo_peft.cpu import drop, gelu_new, linear

on_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def large_layer(trained=False):
    """Return a weight (520, 1200) that is large enough for oneDNN, and a bias."""
    assert cpu.LARGE <= 520 * 1200
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


def test_the_activation_and_its_gradient_are_torchs_in_fp64():
    x = torch.linspace(-30, 30, 10001).requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = torch.randn(10001)
    expected = F.gelu(exact, approximate="tanh")
    expected.backward(upstream.double())
    ours = gelu_new(x)
    ours.backward(upstream)
    assert (ours - expected).abs().max() < 2e-6
    assert (x.grad - exact.grad).abs().max() < 1e-5
    assert ours[0] == 0 and ours[-1] == 30 and x.grad[-1] == upstream[-1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_in_half_precision_the_activation_is_computed_in_fp32_and_rounded_once(dtype, tolerance):
    x = torch.linspace(-6, 6, 999).to(dtype).requires_grad_()
    exact = x.detach().float().requires_grad_()
    F.gelu(exact, approximate="tanh").sum().backward()
    ours = gelu_new(x)
    assert ours.dtype == dtype and torch.equal(ours, gelu_new(exact.detach()).to(dtype))
    ours.sum().backward()
    assert (x.grad.float() - exact.grad).abs().max() < tolerance


def test_the_activation_stores_only_its_input_for_the_gradient_and_nothing_without_one():
    x = torch.randn(5, 3)
    assert gelu_new(x).grad_fn is None
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor.shape) or tensor, lambda t: t
    ):
        gelu_new(x.requires_grad_())
    assert stored == [(5, 3)]


def test_the_activation_of_several_parts_is_written_over_its_input_and_the_gradient_is_torchs():
    x = 3 * torch.randn(7, cpu.PART // 3 + 5)  # more than two parts, the last one shorter
    exact = x.double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.sum().backward()
    leaf = x.clone().requires_grad_()
    hidden = leaf * 1
    ours = gelu_new(hidden, inplace=True)
    assert ours.data_ptr() == hidden.data_ptr() and (ours - expected).abs().max() < 2e-6
    ours.sum().backward(retain_graph=True)
    assert (leaf.grad - exact.grad).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ours.sum().backward()  # the first backward pass has used the derivative up
    with torch.no_grad():
        assert torch.equal(gelu_new(x), ours) and torch.equal(gelu_new(x, inplace=True), ours)


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
# one number of elements is a multiple of four, the other is not
@pytest.mark.parametrize("shape", [(301, 7), (4, 1000)])
def test_each_element_is_dropped_with_the_probability_independently_of_others(shape, probability):
    torch.manual_seed(0)
    draws = torch.stack([drop(torch.full(shape, 3.0), probability)[0] for _ in range(200)])
    assert set(draws.unique().tolist()) == {0.0, 3.0}
    dropped = (draws == 0).double()
    spread = (probability * (1 - probability)) ** 0.5
    assert abs(dropped.mean() - probability) < 5 * spread / draws.numel() ** 0.5
    for part in (dropped[..., ::2], dropped[..., 1::2]):
        assert abs(part.mean() - probability) < 5 * spread / part.numel() ** 0.5
    # No correlation: of neighbours, which share a random number of 64 bits, and of the same element
    # in two calls.
    for left, right in ((dropped[..., :-1], dropped[..., 1:]), (dropped[:-1], dropped[1:])):
        correlation = ((left - probability) * (right - probability)).mean() / spread**2
        assert abs(correlation) < 5 / left.numel() ** 0.5


@pytest.mark.parametrize(
    ("probability", "zeroed"), [(0.1, 6554), (0.5, 32768), (1e-9, 0), (0.999999, 65535)]
)
def test_of_the_65536_values_of_16_bits_this_number_drops_an_element(
    monkeypatch, probability, zeroed
):
    all_values = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.int64)
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: self.copy_(all_values))
    remaining, share = drop(torch.ones(65536), probability)
    assert (remaining == 0).sum() == zeroed and share == 1 - zeroed / 65536


def test_the_remaining_share_is_returned_and_the_gradient_uses_the_same_mask():
    assert drop(torch.ones(3), 0.5)[1] == 0.5
    assert drop(torch.ones(3), 0.1)[1] == 1 - 6554 / 65536
    x = torch.randn(50, 4, requires_grad=True)
    remaining, share = drop(x, 0.25)
    (remaining / share).sum().backward()
    assert torch.equal(x.grad, (remaining != 0) / 0.75)


def test_a_seed_gives_the_same_draws():
    draws = []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append(drop(torch.ones(11, 3), 0.5)[0])
    assert torch.equal(*draws)
