"""Where a long text is cut: cases worked by hand."""

import pytest

from neo_peft.long_texts.truncation import PLACES, shorten


@pytest.mark.parametrize("place", PLACES)
def test_the_longer_sentence_of_a_pair_is_cut_first(place):
    a, b = list(range(10, 17)), list(range(20, 24))
    pieces = [[1], a, [2], b, [3]]
    kept = {
        "end": {4: a[:4], 3: a[:3], 2: b[:2]},
        "start": {4: a[3:], 3: a[4:], 2: b[2:]},
        "middle": {4: [10, 11, 15, 16], 3: [10, 11, 16], 2: [20, 23]},
    }[place]
    assert shorten(pieces, 14, place) == pieces
    assert shorten(pieces, 11, place) == [[1], kept[4], [2], b, [3]]
    assert shorten(pieces, 8, place) == [[1], kept[3], [2], kept[2], [3]]
    assert shorten(pieces, 3, place) == shorten(pieces, 1, place) == [[1], [], [2], [], [3]]


@pytest.mark.parametrize("room", range(8))
def test_a_sentence_loses_tokens_at_one_place_only(room):
    sentence, head = list(range(10, 17)), -(-room // 2)
    kept = {place: shorten([[1, 2], sentence, [3]], 3 + room, place)[1] for place in PLACES}
    assert kept == {
        "end": sentence[:room],
        "start": sentence[7 - room :],
        "middle": sentence[:head] + sentence[7 - (room - head) :],
    }
