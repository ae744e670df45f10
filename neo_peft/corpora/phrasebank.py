"""The Financial PhraseBank: sentences of financial news and their sentiment (Malo et al. 2014).

A folder has its text files. The hub has them in a zip, which is read like a folder. The files are
nested: 66Agree has those sentences of 50Agree on which two thirds of the annotators agreed.
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
    """Load the text files of the hub's zip."""
    file = hub.hub_file("takala/financial_phrasebank", f"data/{PHRASEBANK}.zip", kind="dataset")
    try:
        return _load(request, zipfile.Path(file, f"{PHRASEBANK}/"))
    except InputError:
        raise
    except Exception as error:  # zipfile and what unpacks each raise their own
        raise InputError(
            f"{file}: a broken zip ({error}); delete it, so that it is fetched again"
        ) from error


def _load(request: Request, folder: lines.AnyPath) -> Splits:
    """Load and split by one of two protocols, since there is no official split.

    paper: a tenth of 50Agree is validation; test is 66Agree, so train has most of its sentences
    clean: each sentence of 50Agree counts once, and each label's sentences are split 80/10/10
    """
    full, nested = (folder / name for name in FILES)
    rows = _read(request.task, full)
    if request.protocol == "paper":
        if not nested.exists():
            raise InputError(
                f"{nested}: there is no such file to test on; add it, or use --protocol clean"
            )
        train, validation = deal_tenths(rows, (range(1, 10), range(1)), by_label=False)
        return Splits(train, validation, _read(request.task, nested), request.protocol)
    groups = defaultdict(list)
    for row in rows:
        groups["".join(char for char in row["sentence"].lower() if char.isalnum())].append(row)
    kept = [group[0] for group in groups.values() if len({row["label"] for row in group}) == 1]
    note = (
        f"{full.name}: {len(rows):,} rows are {len(groups):,} sentences that differ in letters or "
        f"digits; dropped for conflicting labels: {len(groups) - len(kept):,}"
    )
    splits = deal_tenths(kept, (range(2, 10), range(1), range(1, 2)), by_label=True)
    return Splits(*splits, request.protocol, (note,))


def _read(task: Task, path: lines.AnyPath) -> list[dict]:
    return lines.read_rows(path, _parse_row, task.labels, lines.lines_of(path, "latin-1"))


def _parse_row(line: str, labels: Collection) -> dict:
    """Return the row of `sentence@label`; the sentence may contain @ too."""
    sentence, label = lines.two_parts(line.rpartition("@"), "a sentence, @ and its label")
    return {"sentence": lines.text_of(sentence), "label": lines.one_of(labels, label)}
