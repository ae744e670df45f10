"""The unpadded batch against layouts written out by hand, and against torch's own padding."""

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence, unpad_sequence

from neo_peft.packing import Packing
from neo_peft.runs.generation import next_tokens

WIDTH = 5
# every one of them
SMALL_BATCHES = [lengths for texts in (1, 2, 3) for lengths in product((1, 2, 4), repeat=texts)]


def random_rows(lengths):
    return [torch.randn(length, WIDTH) for length in lengths]


def one_grid(*lengths, start=0):
    (grid,) = Packing.of_texts(torch.tensor(lengths), start, together=True).grids
    return grid


def shapes(rows):
    return [(grid.first, grid.batch, grid.longest, grid.size) for grid in rows.grids]


def test_places_and_positions_of_uneven_texts_worked_by_hand():
    rows = Packing.of_texts(torch.tensor([2, 4, 1]), start=3, together=True)
    (grid,) = rows.grids
    # The grid of three texts by four tokens, whose places are counted line by line.
    assert shapes(rows) == [(0, 3, 4, 7)] and rows.sizes == [7]
    assert grid.slots.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert grid.positions.tolist() == [[3, 4, 5, 6]]
    assert rows.positions.tolist() == [3, 4, 3, 4, 5, 6, 3]


def test_apart_neighbours_of_one_length_share_a_grid_without_padding():
    rows = Packing.of_texts(torch.tensor([2, 4, 4, 1, 4]), start=3)
    # the last is no neighbour
    assert shapes(rows) == [(0, 1, 2, 2), (1, 2, 4, 8), (3, 1, 1, 1), (4, 1, 4, 4)]
    assert all(grid.slots is None for grid in rows.grids)
    assert rows.sizes == [2, 8, 1, 4]
    assert rows.positions.tolist() == [3, 4, 3, 4, 5, 6, 3, 4, 5, 6, 3, 3, 4, 5, 6]


def test_a_prompt_leads_with_its_own_grid_at_the_positions_before_the_texts():
    rows = Packing.of_texts(torch.tensor([2, 1]), start=3, prompt=True)
    assert rows.has_prompt and shapes(rows) == [(0, 1, 3, 3), (0, 1, 2, 2), (1, 1, 1, 1)]
    assert rows.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert not Packing.of_texts(torch.tensor([2, 1]), start=3).has_prompt


def test_positions_start_at_zero_unless_told():
    assert Packing.of_texts(torch.tensor([1, 3])).positions.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("together", [False, True])
def test_each_text_may_start_at_a_place_of_its_own(together):
    rows = Packing.of_texts(torch.tensor([2, 3, 3, 1]), torch.tensor([4, 0, 9, 7]), together)
    assert rows.positions.tolist() == [4, 5, 0, 1, 2, 9, 10, 11, 7]
    places = [line for grid in rows.grids for line in grid.positions.tolist()]
    wide = [[4, 5, 6], [0, 1, 2], [9, 10, 11], [7, 8, 9]]
    assert places == (wide if together else [[4, 5], [0, 1, 2], [9, 10, 11], [7]])


def test_a_next_token_stands_at_its_own_texts_position():
    rows = next_tokens(torch.tensor([7, 2, 30]))
    assert shapes(rows) == [(0, 3, 1, 3)] and rows.grids[0].slots is None
    assert rows.positions.tolist() == [7, 2, 30]
    assert rows.grids[0].positions.tolist() == [[7], [2], [30]]


def test_a_grid_takes_its_own_texts_of_what_each_text_has_and_all_of_what_all_share():
    rows = Packing.of_texts(torch.tensor([2, 4, 4, 1]))
    each, shared = torch.arange(8).view(4, 2), torch.tensor([[5, 6]])
    assert [grid.select(each).tolist() for grid in rows.grids] == [
        [[0, 1]],
        [[2, 3], [4, 5]],
        [[6, 7]],
    ]
    assert all(grid.select(shared) is shared for grid in rows.grids)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_scatter_is_torchs_padding_and_gather_takes_it_back(lengths, together):
    rows, texts = Packing.of_texts(torch.tensor(lengths), together=together), random_rows(lengths)
    first = 0
    for grid, part in zip(rows.grids, torch.cat(texts).split(rows.sizes), strict=True):
        own = texts[first : first + grid.batch]
        first += grid.batch
        scattered = grid.scatter(part)
        assert torch.equal(scattered, pad_sequence(own, batch_first=True))
        assert torch.equal(grid.gather(scattered), torch.cat(own))
    assert first == len(texts)


@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_gather_is_torchs_unpadding_and_padding_gets_no_gradient(lengths):
    layout = one_grid(*lengths)
    # garbage in the padding too
    grid = torch.randn(len(lengths), max(lengths), WIDTH, requires_grad=True)
    gathered = layout.gather(grid)
    expected = torch.cat(unpad_sequence(grid, torch.tensor(lengths), batch_first=True))
    assert torch.equal(gathered, expected)
    upstream = torch.randn_like(gathered)
    (gradient,) = torch.autograd.grad(gathered, grid, upstream)
    (their_gradient,) = torch.autograd.grad(expected, grid, upstream)
    assert torch.equal(gradient, their_gradient)


def test_scatters_gradient_is_each_rows_own_place():
    flat = torch.randn(7, WIDTH, requires_grad=True)
    upstream = torch.randn(3, 4, WIDTH)  # also over padding, which no row may see
    one_grid(2, 4, 1).scatter(flat).backward(upstream)
    assert torch.equal(flat.grad, torch.cat([upstream[0, :2], upstream[1], upstream[2, :1]]))


def test_gather_takes_the_transposed_heads_of_attention():
    heads = torch.randn(2, 3, 4, WIDTH)  # (B, heads, T, head_dim), as attention returns them
    gathered = one_grid(4, 2).gather(heads.transpose(1, 2))
    assert gathered.shape == (6, 3 * WIDTH)
    assert torch.equal(gathered[5], torch.cat([heads[1, head, 1] for head in range(3)]))


def test_a_layout_moves_whole():
    meta = torch.device("meta")
    rows = Packing.of_texts(torch.tensor([2, 1]), start=4, together=True, prompt=True).to(meta)
    prompt, texts = rows.grids
    assert rows.has_prompt and shapes(rows) == [(0, 1, 4, 4), (0, 2, 2, 3)]
    assert [texts.slots.shape, rows.positions.shape, texts.positions.shape] == [(3,), (7,), (1, 2)]
    moved = (texts.slots, rows.positions, texts.positions, prompt.positions)
    assert {tensor.device.type for tensor in moved} == {"meta"}
