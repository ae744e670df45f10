"""GLUE (Wang et al. 2019): its TSV files, the hub's parquet, and MRPC's original files.

GLUE's test files have no labels, except MRPC's: its dev set is the test here. First GLUE's tasks,
then MRPC as its authors distribute it (Dolan and Brockett 2005).
"""

import tempfile
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from neo_peft.corpora import lines
from neo_peft.corpora.splits import Request, Splits, split_off_validation
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import Task

# MRPC's original files: train, test, and the ids of the pairs that are GLUE's validation
MRPC_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv")


class GlueFiles(NamedTuple):
    """The TSV files of a task.

    folder: the folder that they are in
    columns: those with the task's fields, in their order, where they are not called like these;
        numbers where the files have no heading
    files: of each split; other names are those of further test sets. Where there is none for
        validation, a tenth of train is split off
    """

    folder: str
    columns: tuple[str | int, ...] = ()
    files: dict[str, str] = {"train": "train.tsv", "test": "dev.tsv"}


FILES = {
    "glue/cola": GlueFiles("CoLA", (3, 1)),
    "glue/sst2": GlueFiles("SST-2"),
    "glue/mrpc": GlueFiles(
        "MRPC",
        ("#1 String", "#2 String", "Quality"),
        {"train": "train.tsv", "validation": "dev.tsv", "test": MRPC_FILES[1]},
    ),
    "glue/qqp": GlueFiles("QQP", ("question1", "question2", "is_duplicate")),
    "glue/mnli": GlueFiles(
        "MNLI",
        ("sentence1", "sentence2", "gold_label"),
        {"train": "train.tsv", "test": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
    ),
    "glue/qnli": GlueFiles("QNLI"),
    "glue/rte": GlueFiles("RTE"),
    "glue/wnli": GlueFiles("WNLI"),
}


def load_folder(request: Request) -> Splits:
    """Load the TSV files of a task: from its folder in `--data`, or from `--data` itself."""
    task, data = request.task, request.data
    name = FILES[task.name].folder
    folders = (Path(data, name), Path(data, task.name.removeprefix("glue/")), Path(data))
    if there := [folder for folder in folders if (folder / "train.tsv").exists()]:
        return _load(request, lambda file: _read_tsv(task, there[0] / file))
    if name == "MRPC":
        return load_mrpc_folder(request)
    raise InputError(f"--data {data}: there is no {name}/train.tsv, and no train.tsv, GLUE's files")


def load_hub(request: Request) -> Splits:
    """Load the parquet files of a task: train.tsv is called train there, dev.tsv validation."""

    def read(file: str) -> list[dict]:
        split = file.removesuffix(".tsv").replace("dev", "validation")
        split = "test" if file == MRPC_FILES[1] else split
        return _read_parquet(request.task, request.task.name.removeprefix("glue/"), split)

    return _load(request, read)


def _load(request: Request, read: Callable[[str], list[dict]]) -> Splits:
    """Return the splits of a task, whose rows `read` returns for the name of a TSV file."""
    rows = {split: read(file) for split, file in FILES[request.task.name].files.items()}
    train, validation, test = rows.pop("train"), rows.pop("validation", []), rows.pop("test")
    return split_off_validation(request, Splits(train, validation, test, extra_tests=rows))


def _read_tsv(task: Task, path: Path) -> list[dict]:
    """Return the rows of a TSV file, whose labels are numbers or names. Quotes are text."""
    items, columns = lines.lines_of(path), FILES[task.name].columns or task.fields
    if isinstance(columns[0], str):
        heading = next(items)[1].split("\t")
        if lost := [name for name in columns if name not in heading]:
            raise InputError(
                f"{path}: its heading has no column {', '.join(lost)}, which GLUE's own file has"
            )
        columns = [heading.index(name) for name in columns]
    names = _numbered(task) | {label.replace(" ", "_"): label for label in task.labels}

    def parse(line: str, names: dict[str, str]) -> dict | None:
        values = line.split("\t")
        # QQP's own file has lines that break off; other programs that read GLUE skip them too.
        if len(values) <= max(columns):
            return None
        return _make_row(task.fields, [values[i] for i in columns], names)

    return lines.read_rows(path, parse, names, items)


def _read_parquet(task: Task, name: str, split: str) -> list[dict]:
    """Return the rows of a split on the hub, whose labels are numbers."""
    path = hub.hub_file("nyu-mll/glue", f"{name}/{split}-00000-of-00001.parquet", kind="dataset")
    import datasets  # after hub_file, which sets what huggingface_hub reads at its import

    datasets.disable_progress_bars()
    # bad input is reported in one line, which is ours
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        # The usual cache would keep a second copy of what the hub's cache has; this one is deleted.
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        columns = [table[name] for name in task.fields]
    except Exception as error:  # datasets, pyarrow and fsspec each raise their own
        raise InputError(
            f"{path}: {type(error).__name__}; expected parquet with {', '.join(task.fields)}; "
            "delete it, so that it is fetched again"
        ) from error
    items = enumerate(zip(*columns, strict=True), start=1)
    return lines.read_rows(path, partial(_make_row, task.fields), _numbered(task), items)


def _numbered(task: Task) -> dict[str, str]:
    """Return the label of each number: the task has them in GLUE's order."""
    return {str(number): label for number, label in enumerate(task.labels)}


def _make_row(fields: tuple[str, ...], values: Iterable, names: dict[str, str]) -> dict:
    """Return the row with these values, the last of which is a key of `names`, the labels."""
    *sentences, label = values
    label = names[lines.one_of(names, str(label))]
    return dict(zip(fields, (*map(lines.text_of, sentences), label), strict=True))


# ---- MRPC


def load_mrpc_folder(request: Request) -> Splits:
    """Load the original files. Validation is GLUE's: the pairs of train whose two ids are
    listed."""
    folder = request.find_folder("mrpc", MRPC_FILES)
    train, test, listed = (folder / name for name in MRPC_FILES)
    if not listed.exists() and (folder / "dev_ids.tsv").exists():
        listed = folder / "dev_ids.tsv"  # GLUE's name for it
    names = _numbered(request.task)
    pairs = lines.read_rows(train, _parse_pair, names)
    held_out = set(lines.read_rows(listed, _parse_ids, {ids for ids, _ in pairs}))
    return Splits(
        train=[row for ids, row in pairs if ids not in held_out],
        validation=[row for ids, row in pairs if ids in held_out],
        test=[row for _, row in lines.read_rows(test, _parse_pair, names)],
    )


def load_mrpc_hub(request: Request) -> Splits:
    """Load MRPC from the hub, where it is split already."""
    splits = ("train", "validation", "test")
    return Splits(*(_read_parquet(request.task, "mrpc", split) for split in splits))


def _parse_pair(line: str, names: dict[str, str]) -> tuple[tuple[str, str], dict] | None:
    """Return a pair's two ids and its row; None for the heading."""
    # Not by the csv module: a quote is text here. There, an open quote swallows the lines up to the
    # next one.
    columns = line.split("\t")
    if len(columns) != 5:
        expected = "five, split by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"
        raise ValueError(f"{len(columns)} columns in {line[:40]!r}; expected {expected}")
    label, first_id, second_id, *sentences = columns
    if label == "Quality":
        return None
    row = _make_row(("sentence1", "sentence2", "label"), (*sentences, label), names)
    return (first_id, second_id), row


def _parse_ids(line: str, known: Collection) -> tuple[str, str]:
    """Return the two ids of a listed pair, which must be a pair of the train file."""
    ids = lines.two_parts(line.partition("\t"), "two ids split by a tab")
    if ids not in known:
        raise ValueError(
            f"{line[:40]!r} is no pair of the train file; use the list that comes with it"
        )
    return ids
