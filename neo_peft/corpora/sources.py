"""From `--data` to the rows of each split: the bundled sample, a user's own rows, a folder of a
corpus's original files, or the hub.

A row is {"tokens", "tags"}, {"sentence", "label"} or {"sentence1", "sentence2", "label"}, or has
the fields of one of GLUE's tasks; see `tasks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from neo_peft.corpora import glue, jnlpba, own, phrasebank, sample
from neo_peft.corpora.splits import Request, Splits, overlap_note
from neo_peft.errors import InputError
from neo_peft.tasks import Task

PROTOCOLS = ("clean", "paper")  # they differ for PhraseBank only, which has no official split

Loader = Callable[[Request], Splits]

# What loads a user's own rows, by the file that a folder of them has. A new file format is a new
# file and a line here.
OWN: dict[str, Loader] = {own.TRAIN: own.load}
_OWN_OR_SAMPLE = OWN | {"sample": sample.load}
# What loads a task's rows from the sample, from the hub, from a folder of original files, and from
# a folder of the user's own rows. A new corpus is a new file and a line here. A task that is not
# listed takes a user's own rows only.
LOADERS: dict[str, dict[str, Loader]] = {
    "ner": _OWN_OR_SAMPLE | {"folder": jnlpba.load_folder, "hub": jnlpba.load_hub},
    "sentiment": _OWN_OR_SAMPLE | {"folder": phrasebank.load_folder, "hub": phrasebank.load_hub},
    "similarity": _OWN_OR_SAMPLE | {"folder": glue.load_mrpc_folder, "hub": glue.load_mrpc_hub},
    **dict.fromkeys(glue.FILES, {"folder": glue.load_folder, "hub": glue.load_hub}),
}


def load_splits(
    task: Task,
    data: str,
    protocol: str = "clean",
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Splits:
    """Load a task's splits; `data` is "sample", "hub" or a folder. Raises InputError for bad data.

    `seed` draws a validation split that has no file. `labels` are those of a user's own rows, in
    their order; without them train gives the labels.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}"
        )
    load = _find_loader(task, data)
    if labels is not None and load not in OWN.values():
        raise InputError(
            f"--labels belongs to rows of your own, in {own.TRAIN}; those of {task.name} are fixed"
        )
    splits = load(Request(task, data, protocol, seed, labels))
    for name, rows in splits.named().items():
        if not rows:
            raise InputError(
                f"--data {data}: too few rows, none is left for {name}; give more of them"
            )
    if splits.test is None:
        return splits
    return replace(splits, notes=(*splits.notes, overlap_note(task, splits.train, splits.test)))


def _find_loader(task: Task, data: str) -> Loader:
    """Return the loader of a task's rows for what `--data` names."""
    loaders, place = LOADERS.get(task.name, OWN), data
    if data not in ("sample", "hub"):
        if not Path(data).is_dir():
            raise InputError(
                f"--data {data}: there is no such folder; --data may be sample, hub or a folder"
            )
        there = (file for file in OWN if file in loaders and Path(data, file).is_file())
        place = next(there, "folder")
    if place not in loaders:
        instead = (
            f"name a folder with your own {own.TRAIN}"
            if own.TRAIN in loaders
            else "--data may be hub or GLUE's folder"
        )
        raise InputError(f"--data {data} has nothing for {task.name}; {instead}")
    return loaders[place]
