"""The statistics of dropout, and its gradient."""

import pytest
import torch

from neo_peft.kernels.dropout import drop


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
