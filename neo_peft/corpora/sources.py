"""From `--data` to raw rows: the bundled sample, a user's own rows, a folder of the corpora as
distributed, or the hub.

A row is {"tokens", "tags"}, {"sentence", "label"} or {"sentence1", "sentence2", "label"};
`tasks.py` comes first. Below, in this order: where the files stand, how they are split.
`readers.py` reads each kind of file.
"""

import hashlib
import lzma
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from neo_peft.corpora import own_rows, readers
from neo_peft.corpora.readers import AnyPath
from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import TASKS, Task

PROTOCOLS = ("clean", "paper")  # two for PhraseBank alone, which has no official split
SAMPLE = ASSETS / "sample"

# The folder that a task's corpus usually stands in, and the files that are read there.
CORPORA = {
    "ner": ("jnlpba", ("Genia4ERtask1.iob2", "Genia4EReval1.iob2")),
    "sentiment": ("financial_phrasebank", ("Sentences_50Agree.txt", "Sentences_66Agree.txt")),
    "similarity": (
        "mrpc",
        ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"),
    ),
}
PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside its zip
BIONLP_VALIDATION = 1927  # sentences of JNLPBA's train file
# a user's rows; the second and the third may be absent
OWN = ("train.jsonl", "validation.jsonl", "test.jsonl")


@dataclass(frozen=True)
class Splits:
    """The rows of each split, in the order of their file; `notes` are lines that a user should
    read.

    `beside` holds further test sets under their names. `labels` are those of a user's own rows,
    else None.
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict] | None
    protocol: str = "single"  # "clean", "paper", or "single" where the data has only one
    notes: tuple[str, ...] = ()
    beside: dict[str, list[dict]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    def named(self) -> dict[str, list[dict]]:
        """Return all splits that there are, train first."""
        splits = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            **self.beside,
        }
        return {name: rows for name, rows in splits.items() if rows is not None}


def load_splits(
    task: Task,
    data: str,
    protocol: str = "clean",
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Splits:
    """Load a task's splits; `data` is "sample", "hub" or a folder. Raises InputError for bad data.

    Of a user's own rows, `labels` and their order come from train where they are not given, and
    `seed` draws a validation split that has no file.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}"
        )
    of_hub, folder = data == "hub", None if data in ("sample", "hub") else Path(data)
    if folder and not folder.is_dir():
        raise InputError(
            f"--data {data}: there is no such folder; --data may be sample, hub or a folder"
        )
    own = folder and not task.glue and (folder / OWN[0]).is_file()
    if not own:
        _check_known(task, data, labels)
    if own:
        splits = _load_own(task, folder, seed, labels)
    elif data == "sample":
        splits = _load_sample(task)
    elif task.glue:
        splits = _load_glue(task, data, seed)
    elif task.name == "ner":
        splits = _load_tner(task) if of_hub else _split_jnlpba(task, _corpus_folder(task, data))
    elif task.name == "similarity":
        splits = _load_mrpc(task) if of_hub else _split_mrpc(_corpus_folder(task, data))
    elif of_hub:
        splits = _load_phrasebank_zip(task, protocol)
    else:
        splits = _split_phrasebank(task, _corpus_folder(task, data), protocol)
    for name, rows in splits.named().items():
        if not rows:
            raise InputError(
                f"--data {data}: too few rows, none is left for {name}; give more of them"
            )
    return replace(splits, notes=(*splits.notes, *_overlap(task, splits)))


def _check_known(task: Task, data: str, labels: Sequence[str] | None) -> None:
    """Refuse data that is not the user's own for a task that has none, and labels where they are
    fixed."""
    if task.glue and data == "sample":
        raise InputError(
            f"--data sample has nothing for {task.name}; --data may be hub or GLUE's folder"
        )
    if not task.glue and task.name not in CORPORA:
        raise InputError(
            f"--data {data} has nothing for {task.name}; name a folder with your own {OWN[0]}"
        )
    if labels is not None:
        raise InputError(
            f"--labels belongs to rows of your own, in {OWN[0]}; those of {task.name} are fixed"
        )


def limit_rows(rows: list[dict], limit: int | None) -> list[dict]:
    """Keep `limit` rows evenly spaced over the file, in order; all of them where there are no
    more."""
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise InputError(f"a limit of {limit} rows leaves none; give 1 or more")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _overlap(task: Task, splits: Splits) -> list[str]:
    """Say how many rows of test hold a sentence, letter for letter, that train holds too."""
    if splits.test is None:
        return []

    def sentences(row: dict) -> list:
        return (
            [tuple(row["tokens"])]
            if task.tags_words
            else [row[field] for field in task.fields[:-1]]
        )

    known = {sentence for row in splits.train for sentence in sentences(row)}
    count = sum(any(sentence in known for sentence in sentences(row)) for row in splits.test)
    of_pairs = len(task.fields) == 3
    kind, how = ("pairs", "share a sentence with") if of_pairs else ("sentences", "also stand in")
    return [
        f"{count:,} of the {len(splits.test):,} test {kind} {how} train ({len(splits.train):,} "
        f"{kind})"
    ]


# ---- Where the files stand


def _load_sample(task: Task) -> Splits:
    parse = {
        "ner": readers.marked_row,
        "sentiment": readers.labelled_row,
        "similarity": readers.block_row,
    }[task.name]
    items = readers.blocks_of if task.name == "similarity" else readers.lines_of
    files = [SAMPLE / task.name / f"{split}.txt" for split in ("train", "validation", "test")]
    return Splits(*(readers.read_rows(file, parse, task.labels, items(file)) for file in files))


def _corpus_folder(task: Task, data: str) -> Path:
    """Find the folder of the task's files: the corpus's in `data`, `data`, or PhraseBank's own in
    either."""
    name, files = CORPORA[task.name]
    for folder in (
        Path(data, name),
        Path(data, name, PHRASEBANK),
        Path(data),
        Path(data, PHRASEBANK),
    ):
        if any((folder / file).exists() for file in files):
            return folder
    raise InputError(
        f"--data {data}: it holds none of {', '.join(files)}, nor does {name}/ below it"
    )


def _load_tner(task: Task) -> Splits:
    """Load JNLPBA from the hub, where it is split already, and its tags are numbers that label.json
    names."""
    names = [f"dataset/{name}.json" for name in ("label", "train", "valid", "test")]
    labels, *files = (hub.hub_file("tner/bionlp2004", name, kind="dataset") for name in names)
    tag_names = readers.read_tag_names(task, labels)
    return Splits(*(readers.read_rows(file, readers.tner_row, tag_names) for file in files))


def _load_mrpc(task: Task) -> Splits:
    """Load MRPC from the hub, where it is split already."""
    return Splits(*(_hub_glue(task, "mrpc", split) for split in ("train", "validation", "test")))


def _hub_glue(task: Task, name: str, split: str) -> list[dict]:
    """Load a split of one of GLUE's tasks from the hub; its labels are numbers."""
    file = hub.hub_file("nyu-mll/glue", f"{name}/{split}-00000-of-00001.parquet", kind="dataset")
    numbers = {str(number): label for number, label in enumerate(task.labels)}
    return readers.read_rows(
        file,
        partial(readers.glue_row, task.fields),
        numbers,
        readers.parquet_rows(file, task.fields),
    )


def _load_glue(task: Task, data: str, seed: int) -> Splits:
    """Load one of GLUE's tasks, from its own TSV files or from the hub."""
    glue, name = task.glue, task.name.removeprefix("glue/")
    names = {
        "train": "train.tsv",
        "validation": glue.validation,
        "test": glue.test,
        "beside": glue.beside,
    }
    if data == "hub":
        stems = {"dev.tsv": "validation", "train.tsv": "train", "msr_paraphrase_test.txt": "test"}

        def read(file: str) -> list[dict]:
            split = stems.get(file) or file[:-4].replace("dev", "validation")
            return _hub_glue(task, name, split)

    else:
        folders = [Path(data, glue.folder), Path(data, name), Path(data)]
        folder = next((folder for folder in folders if (folder / "train.tsv").exists()), None)
        if folder is None and glue.corpus:
            return _split_mrpc(_corpus_folder(TASKS[glue.corpus], data))
        if folder is None:
            raise InputError(
                f"--data {data}: there is no {glue.folder}/train.tsv, and no train.tsv, GLUE's "
                "files"
            )

        def read(file: str) -> list[dict]:
            return readers.read_tsv(task, folder / file)

    rows = {split: read(file) for split, file in names.items() if file}
    if not glue.validation:
        rows["train"], rows["validation"] = _split_off(task, rows["train"], seed)
    beside = (
        {glue.beside.removeprefix("dev_").removesuffix(".tsv"): rows["beside"]}
        if glue.beside
        else {}
    )
    return Splits(rows["train"], rows["validation"], rows["test"], beside=beside)


def _load_own(task: Task, folder: Path, seed: int, labels: Sequence[str] | None) -> Splits:
    """Load rows of the user's own: their labels, and the labels' order, come from train unless they
    are given."""
    train, *others = (folder / name for name in OWN)
    parse = partial(own_rows.own_row, task)
    rows = readers.read_rows(train, parse, labels)
    labels = tuple(labels) if labels else own_rows.labels_in(task, rows)
    if len(labels) < 2:
        raise InputError(f"{train}: every label is {labels[0]}; there is nothing to tell apart")
    validation, test = (
        readers.read_rows(file, parse, labels) if file.exists() else None for file in others
    )
    if validation is None:
        rows, validation = _split_off(task, rows, seed)
    return Splits(rows, validation, test, labels=labels)


def _load_phrasebank_zip(task: Task, protocol: str) -> Splits:
    """Load PhraseBank from the hub's zip, which is read like a folder."""
    file = hub.hub_file("takala/financial_phrasebank", f"data/{PHRASEBANK}.zip", kind="dataset")
    try:
        return _split_phrasebank(task, zipfile.Path(file, f"{PHRASEBANK}/"), protocol)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{file}: a broken zip ({error}); delete it, so that it is fetched again"
        ) from error


# ---- How they are split


def _split_jnlpba(task: Task, folder: Path) -> Splits:
    """Split as BioNLP 2004 is commonly used: the train file's first sentences are validation."""
    rows, test = (readers.read_iob2(task, folder / name) for name in CORPORA["ner"][1])
    held_out = BIONLP_VALIDATION if len(rows) > BIONLP_VALIDATION else max(1, len(rows) // 10)
    return Splits(rows[held_out:], rows[:held_out], test)


def _split_mrpc(folder: Path) -> Splits:
    """Split as GLUE does: the pairs of the train file whose two ids are listed are validation."""
    train, test, listed = (folder / name for name in CORPORA["similarity"][1])
    if not listed.exists() and (folder / "dev_ids.tsv").exists():
        listed = folder / "dev_ids.tsv"  # GLUE's name for it
    pairs = readers.read_rows(train, readers.mrpc_pair, readers.MRPC_QUALITY)
    held_out = set(readers.read_rows(listed, readers.mrpc_ids, {ids for ids, _ in pairs}))
    return Splits(
        train=[row for ids, row in pairs if ids not in held_out],
        validation=[row for ids, row in pairs if ids in held_out],
        test=[row for _, row in readers.read_rows(test, readers.mrpc_pair, readers.MRPC_QUALITY)],
    )


def _split_phrasebank(task: Task, folder: AnyPath, protocol: str) -> Splits:
    """Split PhraseBank by one of two protocols.

    paper: a tenth of 50Agree is validation; test is 66Agree, all of whose rows stand in 50Agree
    too. clean: each sentence of 50Agree counts once, and each label's sentences are split 80/10/10.
    """
    full, nested = (folder / name for name in CORPORA["sentiment"][1])
    rows = readers.read_phrasebank(task, full)
    if protocol == "paper":
        if not nested.exists():
            raise InputError(
                f"{nested}: there is no such file to test on; add it, or use --protocol clean"
            )
        dealt = _deal_tenths(rows, by_label=False)
        test = readers.read_phrasebank(task, nested)
        return Splits(_pick(dealt, range(1, 10)), _pick(dealt, range(1)), test, protocol)
    rows, note = _drop_repeats(rows)
    dealt = _deal_tenths(rows, by_label=True)
    train, validation, test = (
        _pick(dealt, tenths) for tenths in (range(2, 10), range(1), range(1, 2))
    )
    return Splits(train, validation, test, protocol, (f"{full.name}: {note}",))


def _drop_repeats(rows: list[dict]) -> tuple[list[dict], str]:
    """Keep the first of rows with the same letters and digits, none if their labels differ; and say
    so."""
    groups = defaultdict(list)
    for row in rows:
        groups["".join(char for char in row["sentence"].lower() if char.isalnum())].append(row)
    kept = [group[0] for group in groups.values() if len({row["label"] for row in group}) == 1]
    note = f"{len(rows):,} rows are {len(groups):,} sentences that differ in letters or digits"
    return kept, f"{note}; dropped for conflicting labels: {len(groups) - len(kept):,}"


def _deal_tenths(rows: list[dict], by_label: bool) -> list[tuple[int, dict]]:
    """Number rows 0 to 9, as if shuffled and dealt like cards: each label by itself, or all
    together."""
    # Ordered by the sentences' sha256: the same in every run, whatever its seed, and in every
    # version of Python and numpy, neither of which promises that one seed will always shuffle
    # alike.
    order = sorted(
        range(len(rows)), key=lambda i: hashlib.sha256(rows[i]["sentence"].encode()).digest()
    )
    tenths, dealt = [0] * len(rows), Counter()
    for i in order:
        pack = rows[i]["label"] if by_label else "all"
        tenths[i] = dealt[pack] % 10
        dealt[pack] += 1
    return list(zip(tenths, rows, strict=True))


def _split_off(task: Task, rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Split a tenth off as validation, of each label a tenth, but none of a label's only text.

    A text that stands in several rows goes one way with all of them: validation would else be known
    from train.
    """
    text_in = lambda row: str([row[field] for field in task.fields[:-1]])  # noqa: E731
    label_of = {text_in(row): "" if task.tags_words else row["label"] for row in rows}
    texts = defaultdict(list)
    for text, label in label_of.items():
        texts[label].append(text)
    chosen = set()
    for of_label in texts.values():
        # see _deal_tenths
        of_label.sort(key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
        chosen.update(of_label[: max(1, round(len(of_label) / 10)) if len(of_label) > 1 else 0])
    return [row for row in rows if text_in(row) not in chosen], [
        row for row in rows if text_in(row) in chosen
    ]


def _pick(dealt: list[tuple[int, dict]], tenths: range) -> list[dict]:
    return [row for tenth, row in dealt if tenth in tenths]
