"""The line that a command shows while it loads torch and a model, which takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from neo_peft.errors import InputError
from neo_peft.formats.base_folder import with_size
from neo_peft.runs.folder import read_record
from neo_peft.system.bars import show_progress


class LoadingLine:
    """The line "loading neo-mini" on standard error. It disappears at the first output, as a
    progress bar does at its end.

        with LoadingLine("neo-mini") as line:
            work(print_line=line.before(print))

    what: the model or run that is loaded; None to show nothing.
    """

    def __init__(self, what: str | None):
        self.text, self.bar = f"loading {what}", None
        if what:
            self.bar = show_progress((), self.text, None, form="{desc}")

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


def run_with_base(folder: Path, model: str | None = None) -> str:
    """Return a run's folder and its base, with its size if it is large: "runs/ner (5.3 GB of
    EleutherAI/gpt-neo-1.3B)"; only the folder if its record does not name the base.

    model: replaces the recorded base.
    """
    try:
        model = model or read_record(folder)["flags"].get("model")
        return f"{folder} ({with_size(model)})" if isinstance(model, str) else str(folder)
    except (InputError, OSError):  # a peft adapter, or an error that loading reports
        return str(folder)
