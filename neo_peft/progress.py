"""Progress bars, as the library sees them: none by default. Commands pass `bars.show_progress`."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Returns the items with a bar. Without the sizes of the items, `total` is their number."""

    def __call__(
        self,
        items: Iterable,
        what: str,
        total: int | None,
        sizes: Sequence[int] | None = None,
        form: str | None = None,  # tqdm's bar_format
        /,
    ) -> tqdm: ...


def no_progress(items: Iterable = (), *_: object) -> tqdm:
    return tqdm(items, disable=True)
