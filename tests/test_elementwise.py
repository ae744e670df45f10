"""The activation against torch's own and its derivative against differences; dropout's draws
against their counts."""

import pytest
import torch
import torch.nn.functional as F

from neo_peft.elementwise import drop, gelu_new


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
def test_in_half_precision_it_is_computed_in_fp32_and_rounded_once(dtype, tolerance):
    x = torch.linspace(-6, 6, 999).to(dtype).requires_grad_()
    exact = x.detach().float().requires_grad_()
    F.gelu(exact, approximate="tanh").sum().backward()
    ours = gelu_new(x)
    assert ours.dtype == dtype and torch.equal(ours, gelu_new(exact.detach()).to(dtype))
    ours.sum().backward()
    assert (x.grad.float() - exact.grad).abs().max() < tolerance


def test_without_gradients_nothing_is_kept_for_them():
    x = torch.randn(5, 3)
    assert gelu_new(x).grad_fn is None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t
    ):
        gelu_new(x.requires_grad_())
    assert kept == [(5, 3)]


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
# of numbers of elements that four does and does not divide
@pytest.mark.parametrize("shape", [(301, 7), (4, 1000)])
def test_each_place_is_dropped_with_its_probability_apart_from_the_others(shape, probability):
    torch.manual_seed(0)
    draws = torch.stack([drop(torch.full(shape, 3.0), probability)[0] for _ in range(200)])
    assert set(draws.unique().tolist()) == {0.0, 3.0}
    gone = (draws == 0).double()
    spread = (probability * (1 - probability)) ** 0.5
    assert abs(gone.mean() - probability) < 5 * spread / draws.numel() ** 0.5
    for part in (gone[..., ::2], gone[..., 1::2]):
        assert abs(part.mean() - probability) < 5 * spread / part.numel() ** 0.5
    # Neighbours that share a random number of 64 bits, and the same place in the next call, know
    # nothing of each other.
    for left, right in ((gone[..., :-1], gone[..., 1:]), (gone[:-1], gone[1:])):
        together = ((left - probability) * (right - probability)).mean() / spread**2
        assert abs(together) < 5 / left.numel() ** 0.5


@pytest.mark.parametrize(
    ("probability", "zeroed"), [(0.1, 6554), (0.5, 32768), (1e-9, 0), (0.999999, 65535)]
)
def test_of_all_values_that_16_bits_take_that_many_drop_an_element(
    monkeypatch, probability, zeroed
):
    every = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.int64)
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: self.copy_(every))
    left, share = drop(torch.ones(65536), probability)
    assert (left == 0).sum() == zeroed and share == 1 - zeroed / 65536


def test_what_stays_is_divided_by_the_share_that_stays():
    assert drop(torch.ones(3), 0.5)[1] == 0.5
    assert drop(torch.ones(3), 0.1)[1] == 1 - 6554 / 65536
    x = torch.randn(50, 4, requires_grad=True)
    left, share = drop(x, 0.25)
    (left / share).sum().backward()
    assert torch.equal(x.grad, (left != 0) / 0.75)


def test_a_seed_gives_the_same_draws():
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(drop(torch.ones(11, 3), 0.5)[0])
    assert torch.equal(*found)
