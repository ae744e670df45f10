"""When a difference from the run's own score is called certain."""

import pytest

from neo_peft.look.score_parts import is_certain


@pytest.mark.parametrize(
    ("low", "high", "rows", "certain"),
    [
        (0.01, 0.05, 10, True),
        (-0.05, -0.01, 10, True),
        (-0.01, 0.05, 500, False),
        (0.0, 0.05, 500, False),
        (0.01, 0.05, 9, False),
    ],
)
def test_a_difference_is_certain_beyond_zero_and_on_at_least_ten_rows(low, high, rows, certain):
    assert is_certain({"low": low, "high": high, "rows_that_differ": rows}) == certain
