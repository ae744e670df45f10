"""Progress bars, as the library sees them: none by default. Commands pass `bars.show_progress`."""

from collections.abc import Callable, Iterable

from tqdm import tqdm

# (items, label, total, sizes of the items, tqdm's bar_format) -> the same items, with a bar.
# Without sizes, `total` is the number of items.
Progress = Callable[..., tqdm]


def no_progress(items: Iterable, *_: object) -> tqdm:
    return tqdm(items, disable=True)
