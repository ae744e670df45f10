"""Choose which repetitions of a test are slow: the quick tests try every value at least once."""

from collections.abc import Iterable

import pytest


def first_quick(values: Iterable) -> list:
    """Return parameters of which all but the first are slow. A tuple is one value for each name."""
    first, *others = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*first),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in others),
    ]


def pairs(left: Iterable, right: Iterable) -> list:
    """Return all pairs as parameters. Each value is in a pair that is not slow."""
    left, right = list(left), list(right)
    return [
        pytest.param(a, b, marks=() if i % len(right) == j % len(left) else pytest.mark.slow)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
    ]
