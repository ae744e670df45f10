"""The windows of long texts, compared with the definition: plain loops over words."""

import random

import numpy as np
import pytest
from windows_by_hand import scored_by_hand, spans_by_hand

from neo_peft.long_texts.windows import bounds, cut_at_end, make_windows

SENTENCE = ["The", "IL-2", "gene", "is", "active", "in", "T", "cells", "of", "mice", "."]


def of_windows(windows) -> list[tuple[list[int], list[int]]]:
    """Return the words of each window, and those that are scored."""
    parts = [slice(*windows.starts[i : i + 2]) for i in range(len(windows.starts) - 1)]
    return [
        (windows.words[part].tolist(), windows.words[part][windows.scored[part]].tolist())
        for part in parts
    ]


def test_the_example_of_the_docstring():
    count = len(SENTENCE)
    one_side, both = (
        of_windows(make_windows(np.ones(count, int), np.array([0, count]), 6, 2, both_sides))
        for both_sides in (False, True)
    )
    texts = [" ".join(SENTENCE[word] for word in words) for words, _ in one_side]
    assert texts == ["The IL-2 gene is active in", "active in T cells of mice", "of mice ."]
    assert [scored for _, scored in one_side] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10]]
    assert [scored for _, scored in both] == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_random_texts_have_the_windows_of_the_definition(seed, both_sides):
    rng = random.Random(seed)
    limit = rng.randint(1, 30)
    stride = rng.randint(0, limit // 2)
    rows = [
        [min(limit, rng.choice((1, 1, 2, 3, rng.randint(1, limit)))) for _ in range(length)]
        for length in (rng.randint(0, 9), rng.randint(10, 200), 0, rng.randint(10, 200), 1)
    ]
    starts = bounds([len(row) for row in rows])
    windows = make_windows(np.array(sum(rows, [])), starts, limit, stride, both_sides)
    found = of_windows(windows)
    assert [word for _, scored in found for word in scored] == list(range(starts[-1]))
    assert windows.cut == 0 and windows.of_row.tolist()[-1] == 1
    for row, counts in enumerate(rows):
        first, number = starts[row], windows.of_row[row]
        spans = spans_by_hand(counts, limit, stride)
        assert number == len(spans)
        by_hand = scored_by_hand(counts, limit, stride, both_sides)
        for (span, scored), (words, found_scored) in zip(by_hand, found[:number], strict=True):
            assert words == list(range(first + span[0], first + span[1]))
            assert found_scored == [first + word for word in scored]
            assert sum(counts[span[0] : span[1]]) <= limit
        for (one, end), (other, _) in zip(spans, spans[1:]):
            shared, next_word = sum(counts[other:end]), counts[end]
            assert one < other <= end
            # Less is shared only where the next word would not fit with one more shared word.
            assert shared >= stride or shared + counts[other - 1] + next_word > limit
        found = found[number:]


def test_without_both_sides_the_first_window_scores_a_word():
    """It has most context on the word's left."""
    windows = of_windows(make_windows(np.full(500, 3), np.array([0, 500]), 50, 12))
    seen = set()
    for words, scored in windows:
        assert scored == [word for word in words if word not in seen]
        seen.update(words)


def test_of_a_word_that_is_longer_than_a_window_the_first_tokens_are_read():
    lengths = np.array([2, 9, 1, 5, 5, 6])
    windows = make_windows(lengths, np.array([0, 3, 6]), 5, 2)
    assert of_windows(windows) == [([0], [0]), ([1], [1]), ([2], [2])] + [
        ([word], [word]) for word in (3, 4, 5)
    ]
    assert windows.lengths.tolist() == [2, 5, 1, 5, 5, 5] and windows.cut == 2


def test_cutting_at_the_end_keeps_the_first_tokens_of_each_row():
    lengths, starts = np.array([2, 3, 2, 1, 4, 6]), np.array([0, 3, 3, 5, 6])
    windows = cut_at_end(lengths, starts, 4)
    assert windows.lengths.tolist() == [2, 2, 0, 1, 3, 4]
    assert windows.cut == 3 and windows.starts is starts and windows.of_row is None
    assert windows.words.tolist() == [0, 1, 2, 3, 4, 5] and windows.scored.all()


def test_no_rows_have_no_windows():
    nothing = np.zeros(0, int)
    for windows in (
        make_windows(nothing, np.array([0]), 5, 2),
        cut_at_end(nothing, np.array([0]), 5),
    ):
        assert len(windows.words) == len(windows.lengths) == windows.cut == 0
