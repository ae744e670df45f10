"""Windows: a tagged text that is longer than the model's input is read whole, in parts.

With windows of at most 6 tokens, which share at least 2 (here each word is one token):

    The IL-2 gene is active in T cells of mice .
    The IL-2 gene is active in                      window 1
                     active in T cells of mice      window 2
                                       of mice .    window 3

A window ends where no further word fits. The next one begins at the last word with which the two
share enough tokens. Each word is scored in one window only: where it has most context on its left,
which is the first window that has it. If the model sees both sides of a word (`--echo`), it is the
window in which the shorter side is longest. A side that reaches the end of the text is complete.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Span = tuple[int, int]  # the index of the first word, and of the one after the last


class Windows(NamedTuple):
    """The windows of all rows. They have W words in all, one window behind the other."""

    words: Array  # (W,), the index of each word
    lengths: Array  # (W,), the number of its tokens that are read
    scored: Array  # (W,), whether the word is scored in this window
    starts: Array  # (windows + 1,), the index of each window's first word in these arrays
    of_row: Array | None  # (rows,), the number of windows of each row; None: one for each
    cut: int  # the number of rows of which some tokens are not read


def cut_at_end(lengths: Array, row_starts: Array, limit: int) -> Windows:
    """Return one window for each row, with the row's first `limit` tokens.

    lengths: the number of tokens of each word.
    row_starts: (rows + 1,), the index of each row's first word.
    """
    tokens = bounds(lengths)
    in_front = tokens[:-1] - np.repeat(tokens[row_starts[:-1]], np.diff(row_starts))
    kept = np.clip(limit - in_front, 0, lengths)
    cut, scored = int((np.diff(tokens[row_starts]) > limit).sum()), np.ones(len(lengths), bool)
    return Windows(np.arange(len(lengths)), kept, scored, row_starts, None, cut)


def make_windows(
    lengths: Array, row_starts: Array, limit: int, stride: int, both_sides: bool = False
) -> Windows:
    """Return the windows of all rows: one for a row of at most `limit` tokens, else several.

    lengths, row_starts: as in `cut_at_end`. Of a word with more than `limit` tokens the first ones
        are read.
    stride: how many tokens neighbouring windows share at least. They share fewer where else the
        next word would not fit.
    both_sides: whether the model sees the words on both sides of a word.
    """
    cut_words = np.flatnonzero(lengths > limit)
    cut = len(np.unique(np.searchsorted(row_starts, cut_words, side="right")))
    lengths = np.minimum(lengths, limit)
    totals, found = np.diff(bounds(lengths)[row_starts]), {}
    of_row = np.ones(len(totals), int)
    for row in np.flatnonzero(totals > limit):
        tokens = bounds(lengths[row_starts[row] : row_starts[row + 1]])
        spans = window_spans(tokens, limit, stride)
        found[row] = np.array([spans, scored_spans(tokens, spans, both_sides)])  # (2, windows, 2)
        of_row[row] = len(spans)
    # For each window its words, and those that are scored, as spans (2, windows, 2).
    whole_rows = np.stack([row_starts[:-1], row_starts[1:]], 1)
    spans, first_windows = np.stack([np.repeat(whole_rows, of_row, 0)] * 2), bounds(of_row)
    for row, of_this in found.items():
        spans[:, first_windows[row] : first_windows[row + 1]] = row_starts[row] + of_this
    (first, end), (first_scored, end_scored) = spans.transpose(0, 2, 1)
    counts = end - first
    words = indices_within(counts) + np.repeat(first, counts)
    scored = (np.repeat(first_scored, counts) <= words) & (words < np.repeat(end_scored, counts))
    return Windows(words, lengths[words], scored, bounds(counts), of_row, cut)


def window_spans(tokens: Array, limit: int, stride: int) -> list[Span]:
    """Return the words of each window of one text.

    tokens: (words + 1,), the number of tokens in front of each word, then that of the text. No word
        has more than `limit` tokens.
    """
    spans, first = [], 0
    while True:
        end = int(np.searchsorted(tokens, tokens[first] + limit, side="right")) - 1
        spans.append((first, end))
        if end == len(tokens) - 1:
            return spans
        enough_shared = int(np.searchsorted(tokens, tokens[end] - stride, side="right")) - 1
        next_word_fits = int(np.searchsorted(tokens, tokens[end + 1] - limit))
        first = max(enough_shared, next_word_fits)


def scored_spans(tokens: Array, spans: Sequence[Span], both_sides: bool) -> list[Span]:
    """Return the words that are scored in each window: those with more context than in others.

    tokens: as in `window_spans`, whose result is `spans`.
    """
    count = len(tokens) - 1
    most, window_of = np.full(count, -1.0), np.zeros(count, int)
    for window, (first, end) in enumerate(spans):
        left = tokens[first:end] - tokens[first] if first else np.inf
        right = tokens[end] - tokens[first + 1 : end + 1] if both_sides and end < count else np.inf
        context = np.minimum(left, right)
        better = context > most[first:end]
        most[first:end] = np.where(better, context, most[first:end])
        window_of[first:end] = np.where(better, window, window_of[first:end])
    starts = np.searchsorted(window_of, range(len(spans) + 1)).tolist()
    return list(zip(starts[:-1], starts[1:]))


def bounds(counts: Sequence[int] | Array) -> Array:
    """Return where each part starts and the last one ends: counts [2, 3] give [0, 2, 5]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def indices_within(counts: Array) -> Array:
    """Return 0 … counts[i] - 1 for each i: counts [2, 3] give [0, 1, 0, 1, 2]."""
    ends = bounds(counts)
    return np.arange(ends[-1]) - np.repeat(ends[:-1], counts)
