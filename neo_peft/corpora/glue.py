"""GLUE (Wang et al. 2019): its TSV files, the hub's parquet files, and MRPC's original files.

GLUE's test files have no labels, except MRPC's. For the other tasks GLUE's dev set is the test
split here. The second part of this file loads MRPC's original files (Dolan and Brockett 2005).
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from neo_peft.corpora import lines
from neo_peft.corpora.splits import NoFiles, Request, Splits, split_off_validation
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import Task

# MRPC's original files: train, test, and the ids of the pairs of GLUE's validation split
MRPC_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv")


class GlueFiles(NamedTuple):
    """The TSV files of a task.

    folder: name of the task's folder.
    columns: the columns of the task's fields, in the order of the fields: names, or indices if the
        files have no header line. () if the columns have the fields' own names.
    files: the file of each split. A name other than train, validation and test is a further test
        set. Without a validation file, a tenth of train becomes validation.
    has_broken_lines: whether GLUE's own files have lines with a wrong number of columns, which all
        programs that read them leave out.
    """

    folder: str
    columns: tuple[str | int, ...] = ()
    files: dict[str, str] = {"train": "train.tsv", "test": "dev.tsv"}
    has_broken_lines: bool = False


FILES = {
    "glue/cola": GlueFiles("CoLA", (3, 1)),
    "glue/sst2": GlueFiles("SST-2"),
    "glue/mrpc": GlueFiles(
        "MRPC",
        ("#1 String", "#2 String", "Quality"),
        {"train": "train.tsv", "validation": "dev.tsv", "test": MRPC_FILES[1]},
    ),
    "glue/qqp": GlueFiles("QQP", ("question1", "question2", "is_duplicate"), has_broken_lines=True),
    "glue/mnli": GlueFiles(
        "MNLI",
        ("sentence1", "sentence2", "gold_label"),
        {"train": "train.tsv", "test": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
    ),
    "glue/qnli": GlueFiles("QNLI"),
    "glue/rte": GlueFiles("RTE"),
    "glue/wnli": GlueFiles("WNLI"),
}


def _files_of(task: Task) -> GlueFiles:
    """Return the TSV files of a task. `similarity` is MRPC."""
    return FILES.get(task.name, FILES["glue/mrpc"])


def load_folder(request: Request) -> Splits:
    """Load a task's TSV files from its folder inside `--data`, or from `--data` itself."""
    task, data = request.task, request.data
    name, tsv_files = FILES[task.name].folder, _tsv_files(task)
    folders = (Path(data, name), Path(data, task.name.removeprefix("glue/")), Path(data))
    found = [folder for folder in folders if any((folder / file).exists() for file in tsv_files)]
    if found:
        return load_tsv_folder(request, found[0])
    if name == "MRPC":
        return load_mrpc_folder(request)
    raise InputError(
        f"--data {data}: there is no {name}/train.tsv and no train.tsv; give a folder with GLUE's "
        "files"
    )


def _tsv_files(task: Task) -> list[str]:
    return [file for file in _files_of(task).files.values() if file.endswith(".tsv")]


def load_hub(request: Request) -> Splits:
    """Load a task's parquet files. On the hub, train and validation are train.tsv and dev.tsv."""

    def read(file: str) -> list[dict]:
        split = file.removesuffix(".tsv").replace("dev", "validation")
        split = "test" if file == MRPC_FILES[1] else split
        return _read_parquet(request.task, request.task.name.removeprefix("glue/"), split)

    return _load(request, read)


def _load(request: Request, read: Callable[[str], list[dict]]) -> Splits:
    """Return a task's splits. `read` returns the rows of a file, given the name of its TSV file."""
    files = _files_of(request.task).files
    for_train = ["train"] if "validation" in files else ["train", "validation"]
    rows = {}
    for split, file in files.items():
        needed = request.wants(*(for_train if split == "train" else [split]))
        rows[split] = read(file) if needed else []
    train, validation, test = rows.pop("train"), rows.pop("validation", []), rows.pop("test")
    splits = Splits(train, validation, test, extra_tests=rows)
    return splits if "validation" in files else split_off_validation(request, splits)


def load_tsv_folder(request: Request, folder: Path) -> Splits:
    """Load the TSV files of a folder."""
    notes = []
    splits = _load(request, lambda file: _read_tsv(request.task, folder / file, notes))
    return replace(splits, notes=(*notes, *splits.notes))


def _read_tsv(task: Task, path: Path, notes: list[str]) -> list[dict]:
    """Return the rows of a TSV file. Its labels are numbers or names; quotes are part of the text.

    A line with a wrong number of columns can be a part of a sentence that has a line break. It is
    refused, or left out where GLUE's own file has such lines; `notes` then gets their number.
    """
    items, columns = lines.read_lines(path), _files_of(task).columns or task.fields
    if isinstance(columns[0], str):
        header = next(items)[1].split("\t")
        columns, width = _find_columns(path, header, columns), len(header)
    else:
        width = max(columns) + 1  # CoLA's last column is the sentence
    labels = _numbered_labels(task) | {label.replace(" ", "_"): label for label in task.labels}
    broken = []

    def parse(line: str, labels: dict[str, str]) -> dict | None:
        values = line.split("\t")
        if len(values) != width:
            if not _files_of(task).has_broken_lines:
                raise ValueError(
                    f"{len(values)} columns in {line[:40]!r}; expected {width}, separated by tabs; "
                    "write each row on one line"
                )
            broken.append(line)
            return None
        return _make_row(task.fields, [values[i] for i in columns], labels)

    rows = lines.read_rows(path, parse, labels, items)
    if broken:
        notes.append(f"{path.name}: lines without {width} columns, left out: {len(broken):,}")
    return rows


def _find_columns(path: Path, header: list[str], columns: tuple[str, ...]) -> list[int]:
    """Return the index of each column in a header. Raises InputError if it is not there once."""
    for problem, names in (
        ("no column", [name for name in columns if name not in header]),
        ("more than one column", [name for name in columns if header.count(name) > 1]),
    ):
        if names:
            raise NoFiles(
                f"{path}: its header has {problem} {', '.join(names)}; use GLUE's own file"
            )
    return [header.index(name) for name in columns]


def _read_parquet(task: Task, name: str, split: str) -> list[dict]:
    """Return the rows of a split on the hub, where labels are numbers."""
    path = hub.hub_file("nyu-mll/glue", f"{name}/{split}-00000-of-00001.parquet", kind="dataset")
    import datasets  # after hub_file, which sets environment variables that huggingface_hub reads

    datasets.disable_progress_bars()
    # for bad input the only output is our error message, of one line
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        # A temporary cache: the usual one would keep a second copy of the file in the hub's cache.
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        columns = [table[name] for name in task.fields]
    except Exception as error:  # datasets, pyarrow and fsspec have their own exception classes
        raise InputError(
            f"{path}: {type(error).__name__}; expected a parquet file with the columns "
            f"{', '.join(task.fields)}; delete it to download it again"
        ) from error
    items = enumerate(zip(*columns, strict=True), start=1)
    return lines.read_rows(path, partial(_make_row, task.fields), _numbered_labels(task), items)


def _numbered_labels(task: Task) -> dict[str, str]:
    """Return the label of each number in GLUE's files. `task.labels` has GLUE's order."""
    return {str(number): label for number, label in enumerate(task.labels)}


def _make_row(fields: tuple[str, ...], values: Iterable, labels: dict[str, str]) -> dict:
    """Return a row. The last of `values` is the label as the file has it, a key of `labels`."""
    *sentences, label = values
    label = labels[lines.check_label(labels, str(label))]
    return dict(zip(fields, (*map(lines.check_text, sentences), label), strict=True))


# ---- MRPC


def load_mrpc_folder(request: Request) -> Splits:
    """Load MRPC's original files. The pairs of train in the list of ids are validation, as in
    GLUE. Without the original train file, load GLUE's TSV files."""
    tsv_files = _tsv_files(request.task)
    folder = request.find_folder("mrpc", (*MRPC_FILES, *tsv_files))
    train, test, id_list = (folder / name for name in MRPC_FILES)
    if not train.exists() and any((folder / file).exists() for file in tsv_files):
        return load_tsv_folder(request, folder)
    if not id_list.exists() and (folder / "dev_ids.tsv").exists():
        id_list = folder / "dev_ids.tsv"  # GLUE's name for it
    labels, pairs, validation_ids = _numbered_labels(request.task), [], set()
    if request.wants("train", "validation"):
        pairs = lines.read_rows(train, _parse_pair, labels, _without_header(train))
        validation_ids = set(lines.read_rows(id_list, _parse_ids, {ids for ids, _ in pairs}))
    test_pairs = []
    if request.wants("test"):
        test_pairs = lines.read_rows(test, _parse_pair, labels, _without_header(test))
    return Splits(
        train=[row for ids, row in pairs if ids not in validation_ids],
        validation=[row for ids, row in pairs if ids in validation_ids],
        test=[row for _, row in test_pairs],
    )


def load_mrpc_hub(request: Request) -> Splits:
    """Load MRPC from the hub, which has a file for each split."""
    return Splits(
        *(
            _read_parquet(request.task, "mrpc", split) if request.wants(split) else []
            for split in ("train", "validation", "test")
        )
    )


def _without_header(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file of pairs, without its header line if it has one."""
    for number, line in lines.read_lines(path):
        if number > 1 or not line.startswith("Quality\t"):
            yield number, line


def _parse_pair(line: str, labels: dict[str, str]) -> tuple[tuple[str, str], dict]:
    """Return the two ids and the row of a pair."""
    # Not with the csv module: there, one quote mark joins this line with the next ones.
    columns = line.split("\t")
    if len(columns) != 5:
        expected = "five, separated by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"
        raise ValueError(f"{len(columns)} columns in {line[:40]!r}; expected {expected}")
    label, first_id, second_id, *sentences = columns
    row = _make_row(("sentence1", "sentence2", "label"), (*sentences, label), labels)
    return (first_id, second_id), row


def _parse_ids(line: str, train_ids: Collection) -> tuple[str, str]:
    """Return the two ids of a validation pair. Raises ValueError if train has no such pair."""
    ids = lines.two_parts(line.partition("\t"), "two ids separated by a tab")
    if ids not in train_ids:
        raise ValueError(
            f"{line[:40]!r} is not a pair of the train file; use the list that belongs to it"
        )
    return ids
