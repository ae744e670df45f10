"""Tables of your own data through `datasets`: .parquet files, folders of `save_to_disk`, and data
sets of the hub. A row is read as a row of JSON is."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.corpora.checks import NO_LABEL
from neo_peft.corpora.json_rows import rows_of
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request
from neo_peft.errors import InputError
from neo_peft.system import hub

if TYPE_CHECKING:
    from datasets import Dataset


def read_parquet(path: Path, request: Request) -> FileRows:
    """Return the rows of a .parquet file."""
    return dataset_rows(str(path), _load(path, "a parquet file")["all"], request)


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of datasets."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def load_saved(folder: Path) -> dict[str, "Dataset"]:
    """Return the tables of a folder of `save_to_disk` by the names of their splits; "all" is one
    table without splits."""
    return _load(folder, "a folder of save_to_disk")


def load_hub(name: str) -> dict[str, "Dataset"]:
    """Return the tables of a data set of the hub: `owner/name`, then `@revision` and `:config` if
    wanted."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::(.+))?", name)
    if not match:
        raise InputError(f"--data hub:{name}: expected hub:owner/name@revision:config")
    _be_quiet()
    return dict(hub.load_dataset(*match.groups()))


def _be_quiet() -> None:
    """For bad input the only output is our error message, of one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def _load(path: Path, expected: str) -> dict[str, "Dataset"]:
    import datasets

    _be_quiet()
    try:
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
        else:
            with tempfile.TemporaryDirectory() as cache:  # the usual one would keep a second copy
                found = datasets.Dataset.from_parquet(
                    str(path), cache_dir=cache, keep_in_memory=True
                )
    except Exception as error:  # datasets, pyarrow and fsspec have their own exception classes
        raise InputError(f"{path}: {type(error).__name__}; expected {expected}") from error
    return dict(found) if isinstance(found, dict) else {"all": found}


def dataset_rows(name: str, table: "Dataset", request: Request) -> FileRows:
    """Return the rows of a table of datasets. The numbers of classes become their names."""
    classes = {}
    for column, feature in table.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            classes[column] = dict(enumerate(names)) | {-1: NO_LABEL}

    def named(row: dict) -> str:
        for column, names in classes.items():
            value = row[column]
            is_list = isinstance(value, list)
            row[column] = [names.get(v, v) for v in value] if is_list else names.get(value, value)
        return json.dumps(row, default=str)

    items = ((number, named(row)) for number, row in enumerate(_rows_of(table), start=1))
    return rows_of(name, items, request, "row")


def _rows_of(table: "Dataset") -> Iterator[dict]:
    for batch in table.with_format("arrow").iter(1000):
        yield from batch.to_pylist()
