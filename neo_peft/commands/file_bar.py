"""The bar of predict --file. It counts the bytes of the lines that have been predicted.

The number of tokens is not known before all lines are read. So the bytes of the lines that are
predicted together are counted in proportion to the tokens of their batches.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from tqdm import tqdm

from neo_peft.progress import Progress, no_progress
from neo_peft.system.bars import show_progress

FORM = "{l_bar}{bar}| {remaining} left"


class FileBar:
    """An open bar over a file; without a file (None) it is hidden. Close it at the end."""

    def __init__(self, file: str | None):
        size = os.path.getsize(file) if file else None  # a named pipe has the size 0
        self.bar = show_progress((), "predict", size or None, form=FORM) if file else no_progress()
        self.end = 0  # the bytes of all lines up to the end of those that are predicted now

    def over(self, lines: Iterable[bytes]) -> Progress:
        """Return a progress bar that moves this one over some lines while they are predicted. The
        lines before them are done."""
        start, size = self.end, sum(map(len, lines))
        self.end += size
        self._reach(start)

        def counted(items: Iterable, total: int, sizes: Sequence[int]) -> Iterator:
            for item, done in zip(items, accumulate(sizes), strict=True):
                yield item
                self._reach(start + size * done // total)

        def progress(items: Iterable, what: str, total: int, sizes: Sequence[int]) -> tqdm:
            return no_progress(counted(items, total, sizes))

        return progress

    def _reach(self, count: int) -> None:
        self.bar.update(count - self.bar.n)

    def close(self) -> None:
        self.bar.close()
