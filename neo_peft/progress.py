"""Progress bars on standard error. Passing them in keeps the library silent unless a command asks
for them."""

import sys
from collections.abc import Callable, Iterable

from tqdm import tqdm

# (items, what they are, how many) -> the same items, with a bar
Progress = Callable[[Iterable, str, int], tqdm]


def show_progress(items: Iterable, what: str, total: int) -> tqdm:
    return tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True, file=sys.stderr)


def no_progress(items: Iterable, what: str, total: int) -> tqdm:
    return tqdm(items, disable=True)
