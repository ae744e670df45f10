"""Load the splits that `--data` names: the bundled sample, your own rows, a folder with a corpus's
original files, or the hub.

A row is {"tokens", "tags"}, {"sentence", "label"} or {"sentence1", "sentence2", "label"}, or has
the fields of a GLUE task; see `tasks.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from neo_peft.corpora import glue, jnlpba, own_files, own_rows, phrasebank, sample
from neo_peft.corpora.splits import NoFiles, Request, Splits, conflict_notes, overlap_notes
from neo_peft.errors import InputError
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task

PROTOCOLS = ("clean", "paper")  # they differ only for PhraseBank, which has no official splits

Loader = Callable[[Request], Splits]

# The loader of your own rows; its file formats are in own_files.py.
OWN_LOADERS: dict[str, Loader] = {"own": own_rows.load}
_OWN_AND_SAMPLE = OWN_LOADERS | {"sample": sample.load}
# The loaders of each task, by the kind of data: "sample", "hub", "folder" (a corpus's original
# files), "own" (your own rows). A new corpus is a new module and a line here. A task that is not
# listed can only load your own rows.
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
    columns: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Splits:
    """Load a task's splits. Raises InputError for bad data.

    task: load rows of this task.
    data: "sample", "hub", a folder, a file, or a data set of the hub: "hub:owner/name".
    protocol: one of `PROTOCOLS`.
    seed: seed for choosing the validation rows, if the data has no validation file.
    labels: the labels of your own rows, in their order; None to take them from train.
    columns: the columns of your own rows, such as `text=body`; None to find them by their names.
    progress: shows a bar while a large file is read.
    """
    splits = _load(Request(task, data, protocol, seed, labels, None, columns, progress))
    for name, rows in splits.named().items():
        if not rows:
            raise InputError(f"--data {data}: too few rows, none remain for {name}; add more rows")
    return replace(
        splits,
        notes=(*splits.notes, *conflict_notes(task, splits.train), *overlap_notes(task, splits)),
    )


def load_scored(
    task: Task,
    data: str,
    protocol: str,
    seed: int,
    labels: Sequence[str] | None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> tuple[str, Splits]:
    """Load the split on which a model is scored. Return its name, and splits of which only this
    one must have rows: the files of the others are not read.

    task: the model's task, with its labels.
    split: the name of the split; None for test, or for validation if the data has no test file.
    columns, progress: as in `load_splits`.
    """
    request = Request(task, data, protocol, seed, labels, split or "test", columns, progress)
    try:
        splits = _load(request)
    except InputError as error:
        if split in (None, "test"):
            raise
        raise type(error)(f"--split {split}: {error}") from error
    if not split and splits.test is None:
        return load_scored(task, data, protocol, seed, labels, "validation", columns, progress)
    name = split or "test"
    if not splits.named().get(name):
        raise InputError(f"--split {name}: the data has only {', '.join(_split_names(request))}")
    return name, splits


def _split_names(request: Request) -> list[str]:
    """Return the names of the splits that can be loaded."""
    names = {}
    for split in ("train", "validation", "test"):
        with suppress(InputError):
            splits = _load(request._replace(split=split))
            names |= dict.fromkeys([split] if splits.named().get(split) else [])
            names |= dict.fromkeys(splits.extra_tests)
    return list(names) or ["no split"]


def train_labels(
    task: Task, data: str, columns: Sequence[str] | None = None
) -> tuple[str, ...] | None:
    """Return the labels of your own rows of train; None if `data` has no such rows."""
    loaders = _find_loaders(task, data)
    if loaders[-1] != own_rows.load or not own_files.train_files(task, data):
        return None
    # without labels in the task, so that they are those of train
    request = Request(replace(task, labels=()), data, "clean", 0, None, "train", columns)
    return own_rows.load(request).labels


def _load(request: Request) -> Splits:
    """Return the splits by the first loader that finds its files."""
    task, data, protocol, missing = request.task, request.data, request.protocol, None
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}"
        )
    loaders = _find_loaders(task, data)
    for flag, value in (("--labels", request.labels), ("--columns", request.columns)):
        if value is not None:
            loaders = [load for load in loaders if load in OWN_LOADERS.values()]
        if not loaders:
            fixed = "labels" if flag == "--labels" else "columns"
            raise InputError(
                f"{flag} is only for your own rows; the {fixed} of {task.name} are fixed"
            )
    for load in loaders:
        try:
            splits = load(request)
        except NoFiles as error:
            missing = missing or error
            continue
        if load != loaders[-1] and _not_glue(own_files.own_files(task, data)):
            note = f"{data} has the files of a corpus, so your own rows in it were not read"
            splits = replace(splits, notes=(*splits.notes, note))
        return splits
    raise missing


def _find_loaders(task: Task, data: str) -> list[Loader]:
    """Return the loaders for a task and a value of `--data`, in the order in which to try them."""
    loaders, kinds = LOADERS.get(task.name, OWN_LOADERS), [data]
    if data not in ("sample", "hub"):
        if not (Path(data).exists() or data.startswith(own_files.HUB)):
            raise InputError(
                f"--data {data}: there is no such file or folder; --data can be sample, hub, a "
                "file or a folder"
            )
        # GLUE's files are called train.tsv and dev.tsv too, so a corpus is looked for first.
        is_own = own_files.is_one(data) or _not_glue(own_files.train_files(task, data))
        kinds = ["own"] if is_own else ["folder"]
        if not is_own and own_files.own_files(task, data):
            kinds.append("own")
    found = [loaders[kind] for kind in kinds if kind in loaders]
    if not found:
        suffixes = ", ".join(own_files.readers_of(task))
        advice = (
            "give a file with your own rows, or a folder with such a file called train "
            f"({suffixes})"
            if "own" in loaders
            else "--data can be hub or GLUE's folder"
        )
        raise InputError(f"--data {data} has no data for {task.name}; {advice}")
    return found


def _not_glue(files: Sequence[str]) -> list[str]:
    """Return the files that cannot be files of GLUE."""
    return [name for name in files if not name.endswith(".tsv")]
