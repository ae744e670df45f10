"""The activation and its gradient, compared with torch's."""

import pytest
import torch
import torch.nn.functional as F

from neo_peft.kernels.gelu import PART, gelu_new


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
    x = 3 * torch.randn(7, PART // 3 + 5)  # more than two parts, the last one shorter
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
