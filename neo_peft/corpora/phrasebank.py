"""The Financial PhraseBank: sentences of financial news and their sentiment (Malo et al. 2014).

A folder has its text files. The hub has them in a zip, which is read like a folder. The files are
nested: 66Agree has the sentences of 50Agree on which at least two thirds of the annotators agreed.
"""

import zipfile
from collections import defaultdict
from collections.abc import Collection

from neo_peft.corpora import lines
from neo_peft.corpora.splits import PHRASEBANK, Request, Splits, deal_tenths
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import Task

FILES = ("Sentences_50Agree.txt", "Sentences_66Agree.txt")


def load_folder(request: Request) -> Splits:
    """Load the text files of a folder."""
    return _load(request, request.find_folder("financial_phrasebank", FILES))


def load_hub(request: Request) -> Splits:
    """Load the text files in the hub's zip."""
    file = hub.hub_file("takala/financial_phrasebank", f"data/{PHRASEBANK}.zip", kind="dataset")
    try:
        return _load(request, zipfile.Path(file, f"{PHRASEBANK}/"))
    except InputError:
        raise
    except Exception as error:  # zipfile and its decompressors have their own exception classes
        raise InputError(
            f"{file}: a broken zip file ({error}); delete it to download it again"
        ) from error


def _load(request: Request, folder: lines.AnyPath) -> Splits:
    """Load the files and split them. There is no official split, so there are two protocols.

    paper: a tenth of 50Agree is validation. 66Agree is test; train has most of its sentences.
    clean: each sentence of 50Agree is used once. The sentences of each label are split 80/10/10.
    """
    full, nested = (folder / name for name in FILES)
    paper = request.protocol == "paper"
    only_nested = paper and not request.wants("train", "validation")
    rows = [] if only_nested else _read(request.task, full)
    if paper:
        if request.wants("test") and not nested.exists():
            raise InputError(
                f"{nested}: there is no such file, which is the test set of --protocol paper; add "
                "it, or use --protocol clean"
            )
        train, validation = deal_tenths(rows, (range(1, 10), range(1)), by_label=False)
        test = _read(request.task, nested) if request.wants("test") else []
        return Splits(train, validation, test, request.protocol)
    groups = defaultdict(list)  # the rows of each sentence, compared by its letters and digits
    for row in rows:
        groups["".join(char for char in row["sentence"].lower() if char.isalnum())].append(row)
    unique = [group[0] for group in groups.values() if len({row["label"] for row in group}) == 1]
    note = (
        f"{full.name}: {len(rows):,} rows have {len(groups):,} different sentences, compared by "
        f"letters and digits; dropped for conflicting labels: {len(groups) - len(unique):,}"
    )
    splits = deal_tenths(unique, (range(2, 10), range(1), range(1, 2)), by_label=True)
    return Splits(*splits, request.protocol, (note,))


def _read(task: Task, path: lines.AnyPath) -> list[dict]:
    return lines.read_rows(path, _parse_row, task.labels, lines.read_lines(path, "latin-1"))


def _parse_row(line: str, labels: Collection) -> dict:
    """Return the row of `sentence@label`. The sentence can contain @ too."""
    sentence, label = lines.two_parts(line.rpartition("@"), "a sentence, @ and its label")
    return {"sentence": lines.check_text(sentence), "label": lines.check_label(labels, label)}
