"""Progress bars tell the truth: the time left, the longest batches first, a terminal of width 0."""

import re

import numpy as np
from clock import Clock, right_within_a_quarter, seconds_left

from neo_peft.decoding import in_batches
from neo_peft.encoding import Examples
from neo_peft.system.bars import above_bars, show_progress


def examples_of(lengths: list[int]) -> Examples:
    """Return examples with these numbers of tokens; only the lengths matter."""
    empty = np.zeros(0, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Examples(empty, starts, empty, empty, np.zeros(len(lengths) + 1, dtype=np.int64))


# Most texts are short, and few are very long.
LENGTHS = [5 + int(400 * (index / 200) ** 5) for index in np.random.default_rng(0).permutation(200)]


def test_scoring_shows_the_time_left_right_within_a_quarter(monkeypatch, capsys):
    clock, moments, bars = Clock(monkeypatch), [], []

    def progress(*arguments):
        bars.append(show_progress(*arguments))
        return bars[0]

    def predict(chosen):
        if len(moments):
            moments[-1] = (clock.now, seconds_left(bars[0]))
        lengths = np.array(LENGTHS)[chosen]
        clock.advance(3 + lengths.sum() + 0.0005 * (lengths**2).sum())  # attention is quadratic
        moments.append((clock.now, 0))
        return chosen.tolist()

    found = in_batches(predict, examples_of(LENGTHS), 4, progress, "score")
    assert found == list(range(len(LENGTHS)))
    right_within_a_quarter(moments[:-1], clock.now)
    err = capsys.readouterr().err
    assert re.search(r"score: +\d+%.*\[.*<.* tokens/s\]", err)


def test_the_longest_texts_are_scored_first():
    order = []
    in_batches(
        lambda chosen: order.append(chosen) or [0] * len(chosen),
        examples_of(LENGTHS),
        7,
        lambda items, *_: items,
        "score",
    )
    longest = [max(LENGTHS[index] for index in chosen) for chosen in order]
    assert longest == sorted(longest, reverse=True) and longest[0] == max(LENGTHS)
    # The batches are those from the shortest text on, as they were when these came first.
    ascending = np.argsort(LENGTHS, kind="stable")
    expected = [ascending[start : start + 7] for start in range(0, 200, 7)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(order, expected, strict=True))


def test_a_terminal_of_width_0_gets_a_line_every_ten_seconds(monkeypatch, terminal):
    clock, (of_width, written) = Clock(monkeypatch), terminal
    of_width(0)
    run = show_progress((), "run", 30, None, "{l_bar}{bar}| [{elapsed}<{remaining}]")
    print_line = above_bars(print)
    for item in show_progress(range(30), "score", 60, [2] * 30):
        clock.advance(1)
        run.update(1)
        if item == 14:
            print_line("in between")
    run.close()
    text = written()
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 2 + 2 * 3 + 1 and "in between" in lines
    seconds = [re.search(r"\[?(\d\d:\d\d)<(\d\d:\d\d)", line) for line in lines]
    assert [found.groups() for found in seconds if found] == [
        (f"00:{done}", f"00:{30 - done:02d}") for done in (10, 10, 20, 20, 30, 30)
    ]


def test_a_line_is_printed_above_the_open_bars(monkeypatch, terminal):
    of_width, written = terminal
    of_width(60)
    outer = show_progress((), "run", 10)
    for item in show_progress(range(2), "score", 6, [2, 4]):
        if item == 1:
            written()
            above_bars(print)("a line")
    shown = written()
    outer.close()
    cleared, _, after = shown.partition("a line\n")
    assert cleared.replace("\r", "").replace("\n", "").replace("\x1b[A", "").strip() == ""
    assert "run:" in after and "score:" in after  # the bars are drawn again, below the line
    assert all(len(part) <= 60 for part in re.split(r"[\r\n]", after.replace("\x1b[A", "")))


def test_a_bar_that_has_jumped_is_cleared_when_it_closes(terminal):
    of_width, written = terminal
    of_width(60)
    bar = show_progress((), "run", 10)
    bar.jump(4)
    assert " 40%" in written()
    bar.close()
    assert re.fullmatch(r"\r +\r", written())
