"""Progress bars on standard error. Commands pass `show_progress` to the library.

A bar of batches counts their tokens. The time left is that of the mean speed so far.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat

from tqdm import tqdm

TOKENS = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}, {rate_fmt}]"
SECONDS = 10  # between two lines of a `LineBar`


class Bar(tqdm):
    """A bar that grows by the size of each item as soon as the item is done."""

    sizes: Sequence[int] | None = None  # of the items; None: each counts as 1

    def __iter__(self) -> Iterator:
        try:
            sizes = repeat(1) if self.sizes is None else self.sizes
            for item, size in zip(self.iterable, sizes, strict=self.sizes is not None):
                yield item
                self.update(size)
        finally:
            self.close()

    def jump(self, n: float) -> None:
        """Move the bar to `n`, and measure its speed from here on."""
        self.initial = self.n = self.last_print_n = n
        # A bar that was last printed before its start counts as never printed, and is not cleared.
        self.start_t = self.last_print_t = self._time()
        self.refresh()


class LineBar(Bar):
    """A line every ten seconds in place of a bar, for a terminal that reports the width 0."""

    next_line = 0.0  # the time

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = self._time()
        if msg is None and now >= self.next_line:  # "" would clear the bar
            self.fp.write(f"{self}\n")
            self.next_line = now + SECONDS

    def clear(self, nolock: bool = False) -> None: ...

    def moveto(self, n: int) -> None: ...


def show_progress(
    items: Iterable,
    what: str,
    total: int | None,
    sizes: Sequence[int] | None = None,
    form: str | None = None,
) -> Bar:
    """Return the items with a bar; see `Progress` for the arguments."""
    kind, options = (LineBar, {"ncols": 80}) if has_no_width() else (Bar, {"dynamic_ncols": True})
    if sizes is not None:
        form, options = form or TOKENS, options | {"unit": " tokens", "unit_scale": True}
    options |= {"desc": what, "total": total, "bar_format": form, "file": sys.stderr}
    options |= {"leave": False, "smoothing": 0, "miniters": 1}
    bar = kind(items, **options)
    bar.sizes = sizes
    return bar


def has_no_width() -> bool:
    """Return whether standard error is a terminal that reports the width 0."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError):
        return False


def above_bars(print_line: Callable[[str], None]) -> Callable[[str], None]:
    """Return a `print_line` that prints while bars are open: it hides them for that moment."""

    def print_above(line: str) -> None:
        with tqdm.external_write_mode():
            print_line(line)

    return print_above
