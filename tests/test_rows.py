"""The unpadded batch against layouts written out by hand, and against torch's own padding."""

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence, unpad_sequence

from neo_peft.rows import Rows

WIDTH = 5
SMALL_BATCHES = [lengths for texts in (1, 2, 3) for lengths in product((1, 2, 4), repeat=texts)]  # every one of them


def random_rows(lengths):
    return [torch.randn(length, WIDTH) for length in lengths]


def test_places_and_positions_of_uneven_texts_worked_by_hand():
    rows = Rows.of_texts(torch.tensor([2, 4, 1]), start=3)
    # The rectangle of three texts by four tokens, whose places are counted line by line.
    assert (rows.batch, rows.longest) == (3, 4)
    assert rows.slots.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert rows.positions.tolist() == [3, 4, 3, 4, 5, 6, 3]
    assert rows.rectangle.tolist() == [[3, 4, 5, 6]]


def test_positions_start_at_zero_unless_told():
    rows = Rows.of_texts(torch.tensor([1, 3]))
    assert rows.positions.tolist() == [0, 0, 1, 2]
    assert rows.rectangle.tolist() == [[0, 1, 2]]


def test_each_text_may_start_at_a_place_of_its_own():
    rows = Rows.of_texts(torch.tensor([2, 3, 1]), start=torch.tensor([4, 0, 7]))
    assert rows.slots.tolist() == [0, 1, 3, 4, 5, 6]
    assert rows.positions.tolist() == [4, 5, 0, 1, 2, 7]
    assert rows.rectangle.tolist() == [[4, 5, 6], [0, 1, 2], [7, 8, 9]]


def test_a_next_token_stands_at_its_own_texts_position():
    rows = Rows.of_next_tokens(torch.tensor([7, 2, 30]))
    assert (rows.batch, rows.longest) == (3, 1)
    assert rows.slots.tolist() == [0, 1, 2]
    assert rows.positions.tolist() == [7, 2, 30]
    assert rows.rectangle.tolist() == [[7], [2], [30]]


@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_scatter_is_torchs_padding_and_gather_takes_it_back(lengths):
    rows, texts = Rows.of_texts(torch.tensor(lengths)), random_rows(lengths)
    rectangle = rows.scatter(torch.cat(texts))
    assert torch.equal(rectangle, pad_sequence(texts, batch_first=True))
    assert torch.equal(rows.gather(rectangle), torch.cat(texts))


@pytest.mark.parametrize("lengths", SMALL_BATCHES)
def test_gather_is_torchs_unpadding_and_padding_gets_no_gradient(lengths):
    rows = Rows.of_texts(torch.tensor(lengths))
    rectangle = torch.randn(len(lengths), max(lengths), WIDTH, requires_grad=True)  # garbage in the padding too
    gathered = rows.gather(rectangle)
    expected = torch.cat(unpad_sequence(rectangle, torch.tensor(lengths), batch_first=True))
    assert torch.equal(gathered, expected)
    upstream = torch.randn_like(gathered)
    (gradient,) = torch.autograd.grad(gathered, rectangle, upstream)
    (their_gradient,) = torch.autograd.grad(expected, rectangle, upstream)
    assert torch.equal(gradient, their_gradient)


def test_scatters_gradient_is_each_rows_own_place():
    lengths = [2, 4, 1]
    rows, flat = Rows.of_texts(torch.tensor(lengths)), torch.randn(7, WIDTH, requires_grad=True)
    upstream = torch.randn(3, 4, WIDTH)  # also over padding, which no row may see
    rows.scatter(flat).backward(upstream)
    assert torch.equal(flat.grad, torch.cat([upstream[0, :2], upstream[1], upstream[2, :1]]))


def test_gather_takes_the_transposed_heads_of_attention():
    heads = torch.randn(2, 3, 4, WIDTH)  # (B, heads, T, head_dim), as attention returns them
    gathered = Rows.of_texts(torch.tensor([4, 2])).gather(heads.transpose(1, 2))
    assert gathered.shape == (6, 3 * WIDTH)
    assert torch.equal(gathered[5], torch.cat([heads[1, head, 1] for head in range(3)]))


def test_a_layout_moves_whole():
    rows = Rows.of_texts(torch.tensor([2, 1]), start=4).to(torch.device("meta"))
    assert (rows.batch, rows.longest) == (2, 2)
    assert [rows.slots.shape, rows.positions.shape, rows.rectangle.shape] == [(3,), (3,), (1, 2)]
    assert {tensor.device.type for tensor in (rows.slots, rows.positions, rows.rectangle)} == {"meta"}
