"""What `load_splits` is asked for, and the folder in which a corpus's files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.tasks import Task

PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside PhraseBank's zip


class Request(NamedTuple):
    """The arguments of `load_splits`; each loader uses those that concern it.

    task: the task whose rows are wanted
    data: what `--data` names: "sample", "hub" or a folder
    protocol: how a corpus without official splits is split: "clean" or "paper"
    seed: draws the validation rows where the data has no validation file
    labels: the labels of a user's own rows, in their order; None takes them from train
    """

    task: Task
    data: str
    protocol: str
    seed: int
    labels: Sequence[str] | None

    def find_folder(self, name: str, files: Sequence[str]) -> Path:
        """Return the folder that has any of a corpus's files: `data`/`name`, `data`, or
        PhraseBank's folder in one of these."""
        for below in ((name,), (name, PHRASEBANK), (), (PHRASEBANK,)):
            folder = Path(self.data, *below)
            if any((folder / file).exists() for file in files):
                return folder
        raise InputError(
            f"--data {self.data}: it holds none of {', '.join(files)}, nor does {name}/ below it"
        )
