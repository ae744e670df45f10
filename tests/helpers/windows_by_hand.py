"""The windows of a text by their definition: plain loops over words."""

import math


def spans_by_hand(counts: list[int], limit: int, stride: int) -> list[tuple[int, int]]:
    """Return the first word of each window and the one after its last, word by word."""
    spans, first = [], 0
    while True:
        end = first
        while end < len(counts) and sum(counts[first : end + 1]) <= limit:
            end += 1
        spans.append((first, end))
        if end == len(counts):
            return spans
        first = end
        while first and sum(counts[first:end]) < stride:
            first -= 1
        while sum(counts[first : end + 1]) > limit:  # room for one more word
            first += 1


def context(counts: list[int], span: tuple[int, int], word: int, both_sides: bool) -> float:
    """Return the number of tokens around a word in a window; a complete side has no limit."""
    first, end = span
    left = sum(counts[first:word]) if first else math.inf
    right = sum(counts[word + 1 : end]) if both_sides and end < len(counts) else math.inf
    return min(left, right)


def scored_by_hand(
    counts: list[int], limit: int, stride: int, both_sides: bool
) -> list[tuple[tuple[int, int], list[int]]]:
    """Return each window's span, and the words that are scored in it."""
    spans = spans_by_hand(counts, limit, stride)
    scored = [[] for _ in spans]
    for word in range(len(counts)):
        contexts = [
            context(counts, span, word, both_sides) if span[0] <= word < span[1] else -1
            for span in spans
        ]
        scored[contexts.index(max(contexts))].append(word)
    return list(zip(spans, scored, strict=True))
