"""The line that a command shows while it loads torch and a model, which takes seconds."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class LoadingLine:
    """The line "loading neo-mini" on standard error. It disappears at the first output, as a
    progress bar does at its end.

        with LoadingLine("neo-mini") as line:
            work(print_line=line.before(print))

    what: the model or run that is loaded; None to show nothing.
    """

    def __init__(self, what: str | None):
        self.bar = None
        if what:
            text = f"loading {what}"
            self.bar = tqdm(desc=text, bar_format="{desc}", leave=False, file=sys.stderr)

    def before(self, function: Callable) -> Callable:
        """Return a function that removes the line and then calls the given one."""

        def call(*arguments: Any) -> Any:
            self.remove()
            return function(*arguments)

        return call

    def remove(self) -> None:
        """Remove the line, if it is still there."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> "LoadingLine":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
