"""A clock for progress bars that a test moves, and the time left that a bar shows."""

import re


class Clock:
    """Replaces tqdm's clock. Only `advance` moves it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


def seconds_left(bar) -> float | None:
    """Return the time left that a bar shows; None while it shows a question mark."""
    if not (shown := re.search(r"[<|] ?([\d:]+)(?:,| left)", str(bar))):
        return None
    *hours, minutes, seconds = map(int, shown[1].split(":"))
    return (hours or [0])[0] * 3600 + minutes * 60 + seconds


def right_within_a_quarter(moments: list[tuple[float, float]], end: float) -> None:
    """Assert that the times left shown at the moments (time, time left) were right, from a tenth of
    the way to nine tenths."""
    start = moments[0][0]
    checked = [
        (left, end - now) for now, left in moments if 0.1 < (now - start) / (end - start) < 0.9
    ]
    assert len(checked) > 5
    for left, actual in checked:
        assert 0.75 * actual < left < 1.25 * actual
