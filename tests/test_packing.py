"""The packed batch, compared with grids worked by hand and with torch's padding."""

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence, unpad_sequence

from neo_peft.packing import Packing

WIDTH = 5
# all batches of up to three texts of these lengths
SMALL_BATCHES = [lengths for texts in (1, 2, 3) for lengths in product((1, 2, 4), repeat=texts)]


def random_tokens(lengths):
    return [torch.randn(length, WIDTH) for length in lengths]


def one_grid(*lengths, start=0):
    (grid,) = Packing.of_texts(torch.tensor(lengths), start, together=True).grids
    return grid


def shapes(packing):
    return [(grid.first, grid.batch, grid.longest, grid.size) for grid in packing.grids]


def test_indices_and_positions_of_uneven_texts_worked_by_hand():
    packing = Packing.of_texts(torch.tensor([2, 4, 1]), start=3, together=True)
    (grid,) = packing.grids
    # A grid of three texts by four tokens; indices are counted row by row.
    assert shapes(packing) == [(0, 3, 4, 7)] and packing.sizes == [7]
    assert grid.indices.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert grid.positions.tolist() == [[3, 4, 5, 6]]
    assert packing.positions.tolist() == [3, 4, 3, 4, 5, 6, 3]


def test_consecutive_texts_of_one_length_share_a_grid_without_padding():
    packing = Packing.of_texts(torch.tensor([2, 4, 4, 1, 4]), start=3)
    # the last text of length 4 does not follow the others
    assert shapes(packing) == [(0, 1, 2, 2), (1, 2, 4, 8), (3, 1, 1, 1), (4, 1, 4, 4)]
    assert all(grid.indices is None for grid in packing.grids)
    assert packing.sizes == [2, 8, 1, 4]
    assert packing.positions.tolist() == [3, 4, 3, 4, 5, 6, 3, 4, 5, 6, 3, 3, 4, 5, 6]


def test_a_prompt_has_the_first_grid_and_the_positions_before_the_texts():
    packing = Packing.of_texts(torch.tensor([2, 1]), start=3, prompt=True)
    assert packing.has_prompt and shapes(packing) == [(0, 1, 3, 3), (0, 1, 2, 2), (1, 1, 1, 1)]
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert not Packing.of_texts(torch.tensor([2, 1]), start=3).has_prompt


def test_positions_start_at_zero_by_default():
    assert Packing.of_texts(torch.tensor([1, 3])).positions.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("together", [False, True])
def test_each_text_can_have_its_own_start_position(together):
    packing = Packing.of_texts(torch.tensor([2, 3, 3, 1]), torch.tensor([4, 0, 9, 7]), together)
    assert packing.positions.tolist() == [4, 5, 0, 1, 2, 9, 10, 11, 7]
    positions = [line for grid in packing.grids for line in grid.positions.tolist()]
    padded = [[4, 5, 6], [0, 1, 2], [9, 10, 11], [7, 8, 9]]
    assert positions == (padded if together else [[4, 5], [0, 1, 2], [9, 10, 11], [7]])


def test_a_grid_selects_the_entries_of_its_texts_and_shares_a_tensor_of_size_one():
    packing = Packing.of_texts(torch.tensor([2, 4, 4, 1]))
    each, shared = torch.arange(8).view(4, 2), torch.tensor([[5, 6]])
    assert [grid.select(each).tolist() for grid in packing.grids] == [
        [[0, 1]],
        [[2, 3], [4, 5]],
        [[6, 7]],
    ]
    assert all(grid.select(shared) is shared for grid in packing.grids)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_scatter_pads_as_torch_does_and_gather_is_its_inverse(lengths, together):
    packing = Packing.of_texts(torch.tensor(lengths), together=together)
    texts = random_tokens(lengths)
    first = 0
    for grid, part in zip(packing.grids, torch.cat(texts).split(packing.sizes), strict=True):
        in_grid = texts[first : first + grid.batch]
        first += grid.batch
        scattered = grid.scatter(part)
        assert torch.equal(scattered, pad_sequence(in_grid, batch_first=True))
        assert torch.equal(grid.gather(scattered), torch.cat(in_grid))
    assert first == len(texts)


@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_gather_unpads_as_torch_does_and_padding_gets_no_gradient(lengths):
    grid = one_grid(*lengths)
    # random values in the padding too
    padded = torch.randn(len(lengths), max(lengths), WIDTH, requires_grad=True)
    gathered = grid.gather(padded)
    expected = torch.cat(unpad_sequence(padded, torch.tensor(lengths), batch_first=True))
    assert torch.equal(gathered, expected)
    upstream = torch.randn_like(gathered)
    (gradient,) = torch.autograd.grad(gathered, padded, upstream)
    (their_gradient,) = torch.autograd.grad(expected, padded, upstream)
    assert torch.equal(gradient, their_gradient)


def test_the_gradient_of_scatter_is_that_of_each_tokens_slot():
    flat = torch.randn(7, WIDTH, requires_grad=True)
    upstream = torch.randn(3, 4, WIDTH)  # nonzero in padding too, where it must have no effect
    one_grid(2, 4, 1).scatter(flat).backward(upstream)
    assert torch.equal(flat.grad, torch.cat([upstream[0, :2], upstream[1], upstream[2, :1]]))


def test_gather_concatenates_the_heads_of_attention():
    heads = torch.randn(2, 3, 4, WIDTH)  # (B, heads, T, head_dim), as attention returns them
    gathered = one_grid(4, 2).gather(heads.transpose(1, 2))
    assert gathered.shape == (6, 3 * WIDTH)
    assert torch.equal(gathered[5], torch.cat([heads[1, head, 1] for head in range(3)]))


def test_all_tensors_of_a_packing_move_to_the_device():
    meta = torch.device("meta")
    packing = Packing.of_texts(torch.tensor([2, 1]), start=4, together=True, prompt=True).to(meta)
    prompt, texts = packing.grids
    assert packing.has_prompt and shapes(packing) == [(0, 1, 4, 4), (0, 2, 2, 3)]
    assert [texts.indices.shape, packing.positions.shape, texts.positions.shape] == [
        (3,),
        (7,),
        (1, 2),
    ]
    moved = (texts.indices, packing.positions, texts.positions, prompt.positions)
    assert {tensor.device.type for tensor in moved} == {"meta"}
