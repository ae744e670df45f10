"""Progress bars on standard error. Commands pass `show_progress`; the library's default is none."""

import sys
from collections.abc import Callable, Iterable

from tqdm import tqdm

# (items, label of the bar, number of items) -> the same items, with a bar
Progress = Callable[[Iterable, str, int], tqdm]


def show_progress(items: Iterable, what: str, total: int) -> tqdm:
    return tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True, file=sys.stderr)


def no_progress(items: Iterable, what: str, total: int) -> tqdm:
    return tqdm(items, disable=True)
