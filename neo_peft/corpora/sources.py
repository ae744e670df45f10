"""Load the splits that `--data` names: the bundled sample, your own rows, a folder with a corpus's
original files, or the hub.

A row is {"tokens", "tags"}, {"sentence", "label"} or {"sentence1", "sentence2", "label"}, or has
the fields of a GLUE task; see `tasks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from neo_peft.corpora import glue, jnlpba, own_rows, phrasebank, sample
from neo_peft.corpora.splits import Request, Splits, overlap_note
from neo_peft.errors import InputError
from neo_peft.tasks import Task

PROTOCOLS = ("clean", "paper")  # they differ only for PhraseBank, which has no official splits

Loader = Callable[[Request], Splits]

# The loaders of your own rows, by the name of their train file. A new file format is a new module
# and a line here.
OWN_LOADERS: dict[str, Loader] = {own_rows.TRAIN: own_rows.load}
_OWN_AND_SAMPLE = OWN_LOADERS | {"sample": sample.load}
# The loaders of each task, by the kind of data: "sample", "hub", "folder" (original files), or the
# name of the train file of your own rows. A new corpus is a new module and a line here. A task that
# is not listed can only load your own rows.
LOADERS: dict[str, dict[str, Loader]] = {
    "ner": _OWN_AND_SAMPLE | {"folder": jnlpba.load_folder, "hub": jnlpba.load_hub},
    "sentiment": _OWN_AND_SAMPLE | {"folder": phrasebank.load_folder, "hub": phrasebank.load_hub},
    "similarity": _OWN_AND_SAMPLE | {"folder": glue.load_mrpc_folder, "hub": glue.load_mrpc_hub},
    **dict.fromkeys(glue.FILES, {"folder": glue.load_folder, "hub": glue.load_hub}),
}


def load_splits(
    task: Task,
    data: str,
    protocol: str = "clean",
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Splits:
    """Load a task's splits. Raises InputError for bad data.

    task: load rows of this task.
    data: "sample", "hub" or a folder.
    protocol: one of `PROTOCOLS`.
    seed: seed for choosing the validation rows, if the data has no validation file.
    labels: the labels of your own rows, in their order; None to take them from train.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}"
        )
    load = _find_loader(task, data)
    if labels is not None and load not in OWN_LOADERS.values():
        raise InputError(
            f"--labels is only for your own {own_rows.TRAIN}; the labels of {task.name} are fixed"
        )
    splits = load(Request(task, data, protocol, seed, labels))
    for name, rows in splits.named().items():
        if not rows:
            raise InputError(f"--data {data}: too few rows, none remain for {name}; add more rows")
    if splits.test is None:
        return splits
    return replace(splits, notes=(*splits.notes, overlap_note(task, splits.train, splits.test)))


def _find_loader(task: Task, data: str) -> Loader:
    """Return the loader for a task and a value of `--data`."""
    loaders, kind = LOADERS.get(task.name, OWN_LOADERS), data
    if data not in ("sample", "hub"):
        if not Path(data).is_dir():
            raise InputError(
                f"--data {data}: there is no such folder; --data can be sample, hub or a folder"
            )
        train_files = (
            name for name in OWN_LOADERS if name in loaders and Path(data, name).is_file()
        )
        kind = next(train_files, "folder")
    if kind not in loaders:
        advice = (
            f"give a folder with your own {own_rows.TRAIN}"
            if own_rows.TRAIN in loaders
            else "--data can be hub or GLUE's folder"
        )
        raise InputError(f"--data {data} has no data for {task.name}; {advice}")
    return loaders[kind]
