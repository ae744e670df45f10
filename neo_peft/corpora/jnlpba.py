"""JNLPBA: sentences of biomedical abstracts with a tag for each word (Kim et al. 2004).

A folder has the shared task's IOB2 files. The hub has tner's copy: JSON lines, with a file for each
split.
"""

import json
from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path

from neo_peft.corpora import lines
from neo_peft.corpora.splits import Request, Splits
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import Task

FILES = ("Genia4ERtask1.iob2", "Genia4EReval1.iob2")  # train and test
IN_ARCHIVES = ("train/Genia4ERtask1.iob2", "test/Genia4EReval1.iob2")  # their original places
VALIDATION_SIZE = 1927  # sentences of the train file
DOCUMENT = "-DOCSTART-"  # starts a line between two documents in files in the style of CoNLL 2003


def load_folder(request: Request) -> Splits:
    """Load the IOB2 files. The first sentences of train are validation, as in BioNLP 2004's
    split."""
    folder = request.find_folder("jnlpba", (*FILES, *IN_ARCHIVES))
    paths = [
        folder / (original if (folder / original).exists() else name)
        for name, original in zip(FILES, IN_ARCHIVES)
    ]
    wanted = request.wants("train", "validation"), request.wants("test")
    rows, test = (
        _read_iob2(request.task, path) if is_wanted else []
        for path, is_wanted in zip(paths, wanted)
    )
    notes = [_document_note(path) for path, is_wanted in zip(paths, wanted) if is_wanted]
    size = VALIDATION_SIZE if len(rows) > VALIDATION_SIZE else max(1, len(rows) // 10)
    if 0 < len(rows) <= VALIDATION_SIZE:
        notes.append(
            f"{FILES[0]} is not complete: the first {size:,} of its {len(rows):,} sentences are "
            "validation"
        )
    return Splits(rows[size:], rows[:size], test, notes=tuple(filter(None, notes)))


def _document_note(path: Path) -> str:
    """Return a note with the number of lines between documents; "" if there is none."""
    count = sum(line.startswith(DOCUMENT) for _, line in lines.read_lines(path))
    return f"{path.name}: {count} {DOCUMENT} lines are not sentences; left out" if count else ""


def _read_iob2(task: Task, path: Path) -> list[dict]:
    """Return a row for each sentence. Blank lines separate sentences, and so do the lines between
    abstracts or documents."""
    words = lines.read_rows(path, _parse_word, task.labels, keep_blank=True)
    return [_make_row(sentence) for is_word, sentence in groupby(words, key=bool) if is_word]


def _make_row(words: Iterable[tuple[str, str]]) -> dict:
    """Return the row of a sentence, from the (token, tag) of each word."""
    tokens, tags = zip(*words, strict=True)
    return {"tokens": list(tokens), "tags": list(tags)}


def _parse_word(line: str, labels: Collection) -> tuple[str, str] | None:
    """Return the token and the tag of a line; None for a line between abstracts or documents."""
    if line.startswith(("###MEDLINE:", DOCUMENT)):
        return None
    token, tag = lines.two_parts(line.partition("\t"), "a token, a tab and its tag")
    return lines.check_text(token), lines.check_label(labels, tag)


def load_hub(request: Request) -> Splits:
    """Load tner's copy. Its tags are numbers; label.json has their names."""

    def download(name: str) -> Path:
        return hub.hub_file("tner/bionlp2004", f"dataset/{name}.json", kind="dataset")

    tag_names = _read_tag_names(request.task, download("label"))
    files = {"train": "train", "validation": "valid", "test": "test"}
    return Splits(
        *(
            lines.read_rows(download(file), _parse_json, tag_names) if request.wants(split) else []
            for split, file in files.items()
        )
    )


def _read_tag_names(task: Task, path: Path) -> dict[int, str]:
    """Return the tag of each number. tner's tags have the names of `task.labels`, but another
    order."""
    try:
        numbers = json.loads(path.read_bytes())
        names = {number: name for name, number in numbers.items()}
        if set(numbers) != set(task.labels) or len(names) != len(numbers):
            raise ValueError("the tags differ, or two of them have the same number")
        return names
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a JSON object with a number for each of {', '.join(task.labels)}"
        ) from error


def _parse_json(line: str, tag_names: dict[int, str]) -> dict:
    """Return the row of a JSON object with tokens and numbered tags."""
    wrong = ""
    try:
        row = lines.parse_json(line)
        wrong = lines.wrong_text("tokens", row["tokens"])
        words = zip(row["tokens"], row["tags"], strict=True)
        return _make_row((lines.check_text(token), tag_names[tag]) for token, tag in words)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f'{wrong or repr(line[:40])}; expected {{"tokens": ["..."], "tags": [0]}} with one tag '
            "for each token, numbered as in label.json"
        ) from error
