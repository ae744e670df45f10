"""From `--data` to raw rows: the bundled sample, a folder of the corpora as distributed, or the hub.

A row is {"tokens", "tags"}, {"sentence", "label"} or {"sentence1", "sentence2", "label"}; `tasks.py` comes
first. Below, in this order: where the files stand, how they are split, how each kind of file is read.
"""

import codecs
import hashlib
import json
import re
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from neo_peft import hub
from neo_peft.errors import InputError
from neo_peft.tasks import Task

PROTOCOLS = ("clean", "paper")  # two for PhraseBank alone, which has no official split
SAMPLE = Path(__file__).parent / "assets" / "sample"

# The folder that a task's corpus usually stands in, and the files that are read there.
CORPORA = {
    "ner": ("jnlpba", ("Genia4ERtask1.iob2", "Genia4EReval1.iob2")),
    "sentiment": ("financial_phrasebank", ("Sentences_50Agree.txt", "Sentences_66Agree.txt")),
    "similarity": ("mrpc", ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv")),
}
PHRASEBANK = "FinancialPhraseBank-v1.0"  # the folder inside its zip
BIONLP_VALIDATION = 1927  # sentences of JNLPBA's train file
MRPC_QUALITY = {"0": "not equivalent", "1": "equivalent"}


AnyPath = Path | zipfile.Path  # a member of a zip is read like a file


@dataclass(frozen=True)
class Splits:
    """The rows of each split, in the order of their file; `notes` are lines that a user should read."""

    train: list[dict]
    validation: list[dict]
    test: list[dict] | None
    protocol: str = "single"  # "clean", "paper", or "single" where the data has only one
    notes: tuple[str, ...] = ()


def load_splits(task: Task, data: str, protocol: str = "clean") -> Splits:
    """Load a task's splits; `data` is "sample", "hub" or a folder. Raises InputError for bad data."""
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}")
    if data == "sample":
        splits = _load_sample(task)
    elif task.name == "ner":
        splits = _load_tner(task) if data == "hub" else _split_jnlpba(task, _corpus_folder(task, data))
    elif task.name == "similarity":
        splits = _load_glue() if data == "hub" else _split_mrpc(_corpus_folder(task, data))
    elif data == "hub":
        splits = _load_phrasebank_zip(task, protocol)
    else:
        splits = _split_phrasebank(task, _corpus_folder(task, data), protocol)
    for name in ("train", "validation", "test"):
        if not getattr(splits, name):
            raise InputError(f"--data {data}: too few rows, none is left for {name}; use the whole corpus")
    return replace(splits, notes=(*splits.notes, _overlap(task, splits)))


def limit_rows(rows: list[dict], limit: int | None) -> list[dict]:
    """Keep `limit` rows evenly spaced over the file, in order; all of them where there are no more."""
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise InputError(f"a limit of {limit} rows leaves none; give 1 or more")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _overlap(task: Task, splits: Splits) -> str:
    """Say how many rows of test hold a sentence, letter for letter, that train holds too."""

    def sentences(row: dict) -> list:
        return [tuple(row["tokens"])] if task.tags_words else [row[field] for field in task.fields[:-1]]

    known = {sentence for row in splits.train for sentence in sentences(row)}
    count = sum(any(sentence in known for sentence in sentences(row)) for row in splits.test)
    of_pairs = len(task.fields) == 3
    kind, how = ("pairs", "share a sentence with") if of_pairs else ("sentences", "also stand in")
    return f"{count:,} of the {len(splits.test):,} test {kind} {how} train ({len(splits.train):,} {kind})"


# ---- Where the files stand


def _load_sample(task: Task) -> Splits:
    parse = {"ner": _marked_row, "sentiment": _labelled_row, "similarity": _block_row}[task.name]
    items = _blocks if task.name == "similarity" else _lines
    files = [SAMPLE / task.name / f"{split}.txt" for split in ("train", "validation", "test")]
    return Splits(*(_read(file, parse, task.labels, items(file)) for file in files))


def _corpus_folder(task: Task, data: str) -> Path:
    """Find the folder of the task's files: the corpus's in `data`, `data`, or PhraseBank's own in either."""
    if not Path(data).is_dir():
        raise InputError(f"--data {data}: there is no such folder; --data may be sample, hub or a folder")
    name, files = CORPORA[task.name]
    for folder in (Path(data, name), Path(data, name, PHRASEBANK), Path(data), Path(data, PHRASEBANK)):
        if any((folder / file).exists() for file in files):
            return folder
    raise InputError(f"--data {data}: it holds none of {', '.join(files)}, nor does {name}/ below it")


def _load_tner(task: Task) -> Splits:
    """Load JNLPBA from the hub, where it is split already, and its tags are numbers that label.json names."""
    names = [f"dataset/{name}.json" for name in ("label", "train", "valid", "test")]
    labels, *files = (hub.hub_file("tner/bionlp2004", name, kind="dataset") for name in names)
    tag_names = _read_tag_names(task, labels)
    return Splits(*(_read(file, _tner_row, tag_names) for file in files))


def _load_glue() -> Splits:
    """Load MRPC from the hub, where it is split already."""
    names = [f"mrpc/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")]
    files = [hub.hub_file("nyu-mll/glue", name, kind="dataset") for name in names]
    return Splits(*(_read(file, _glue_row, MRPC_QUALITY, _parquet_rows(file)) for file in files))


def _load_phrasebank_zip(task: Task, protocol: str) -> Splits:
    """Load PhraseBank from the hub's zip, which is read like a folder."""
    file = hub.hub_file("takala/financial_phrasebank", f"data/{PHRASEBANK}.zip", kind="dataset")
    try:
        return _split_phrasebank(task, zipfile.Path(file, f"{PHRASEBANK}/"), protocol)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{file}: a broken zip ({error}); delete it, so that it is fetched again") from error


# ---- How they are split


def _split_jnlpba(task: Task, folder: Path) -> Splits:
    """Split as BioNLP 2004 is commonly used: the train file's first sentences are validation."""
    rows, test = (_read_iob2(task, folder / name) for name in CORPORA["ner"][1])
    held_out = BIONLP_VALIDATION if len(rows) > BIONLP_VALIDATION else max(1, len(rows) // 10)
    return Splits(rows[held_out:], rows[:held_out], test)


def _split_mrpc(folder: Path) -> Splits:
    """Split as GLUE does: the pairs of the train file whose two ids are listed are validation."""
    train, test, listed = (folder / name for name in CORPORA["similarity"][1])
    if not listed.exists() and (folder / "dev_ids.tsv").exists():
        listed = folder / "dev_ids.tsv"  # GLUE's name for it
    pairs = _read(train, _mrpc_pair, MRPC_QUALITY)
    held_out = set(_read(listed, _mrpc_ids, {ids for ids, _ in pairs}))
    return Splits(
        train=[row for ids, row in pairs if ids not in held_out],
        validation=[row for ids, row in pairs if ids in held_out],
        test=[row for _, row in _read(test, _mrpc_pair, MRPC_QUALITY)],
    )


def _split_phrasebank(task: Task, folder: AnyPath, protocol: str) -> Splits:
    """Split PhraseBank by one of two protocols.

    paper: a tenth of 50Agree is validation; test is 66Agree, all of whose rows stand in 50Agree too.
    clean: each sentence of 50Agree counts once, and each label's sentences are split 80/10/10.
    """
    full, nested = (folder / name for name in CORPORA["sentiment"][1])
    rows = _read_phrasebank(task, full)
    if protocol == "paper":
        if not nested.exists():
            raise InputError(f"{nested}: there is no such file to test on; add it, or use --protocol clean")
        dealt = _deal_tenths(rows, by_label=False)
        test = _read_phrasebank(task, nested)
        return Splits(_pick(dealt, range(1, 10)), _pick(dealt, range(1)), test, protocol)
    rows, note = _drop_repeats(rows)
    dealt = _deal_tenths(rows, by_label=True)
    train, validation, test = (_pick(dealt, tenths) for tenths in (range(2, 10), range(1), range(1, 2)))
    return Splits(train, validation, test, protocol, (f"{full.name}: {note}",))


def _drop_repeats(rows: list[dict]) -> tuple[list[dict], str]:
    """Keep the first of rows with the same letters and digits, none if their labels differ; and say so."""
    groups = defaultdict(list)
    for row in rows:
        groups["".join(char for char in row["sentence"].lower() if char.isalnum())].append(row)
    kept = [group[0] for group in groups.values() if len({row["label"] for row in group}) == 1]
    note = f"{len(rows):,} rows are {len(groups):,} sentences that differ in letters or digits"
    return kept, f"{note}; dropped for conflicting labels: {len(groups) - len(kept):,}"


def _deal_tenths(rows: list[dict], by_label: bool) -> list[tuple[int, dict]]:
    """Number rows 0 to 9, as if shuffled and dealt like cards: each label by itself, or all together."""
    # Ordered by the sentences' sha256: the same in every run, whatever its seed, and in every version of
    # Python and numpy, neither of which promises that one seed will always shuffle alike.
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(rows[i]["sentence"].encode()).digest())
    tenths, dealt = [0] * len(rows), Counter()
    for i in order:
        pack = rows[i]["label"] if by_label else "all"
        tenths[i] = dealt[pack] % 10
        dealt[pack] += 1
    return list(zip(tenths, rows, strict=True))


def _pick(dealt: list[tuple[int, dict]], tenths: range) -> list[dict]:
    return [row for tenth, row in dealt if tenth in tenths]


# ---- How each kind of file is read


def _read(path: AnyPath, parse: Callable, allowed: Collection, items: Iterable | None = None) -> list:
    """Parse a file's lines, or the numbered items given in their place; what is no row is left out."""
    return [row for row in _parse(path, parse, allowed, items or _lines(path)) if row]


def _parse(path: AnyPath, parse: Callable, allowed: Collection, items: Iterable) -> list:
    """Parse numbered items, giving None for a blank one. `parse` raises ValueError for what is wrong."""
    rows = []
    for number, item in items:
        try:
            rows.append(parse(item, allowed) if item else None)
        except ValueError as error:
            unit = "row" if path.suffix == ".parquet" else "line"
            raise InputError(f"{path}, {unit} {number}: {error}") from error
    if not any(rows):
        raise InputError(f"{path}: the file holds no rows; put the corpus's own file there")
    return rows


def _lines(path: AnyPath, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Read a file's lines, numbered from 1, without their ends and without a byte order mark."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; put it beside the task's other files") from error
    if raw.startswith(codecs.BOM_UTF8):
        raw, encoding = raw.removeprefix(codecs.BOM_UTF8), "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not {encoding}; save the file as {encoding}") from error
    # Not splitlines(): it also splits at characters that stand inside sentences, such as Latin-1's 0x85.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        yield number, line if line.strip(" ") else ""


def _two(parts: tuple[str, str, str], expected: str) -> tuple[str, str]:
    """Take what stands before and behind a separator from `str.partition`."""
    before, separator, behind = parts
    if not separator:
        raise ValueError(f"{(before + behind)[:40]!r}; expected {expected}")
    return before, behind


def _one_of(allowed: Collection, label: str) -> str:
    if label not in allowed:
        raise ValueError(f"unknown label {label[:40]!r}; expected one of {', '.join(allowed)}")
    return label


def _text(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("an empty token or sentence; fill it, or remove what it belongs to")
    return text


def _read_iob2(task: Task, path: Path) -> list[dict]:
    """Read JNLPBA's sentences: the words between blank lines, or lines that number an abstract."""
    words = _parse(path, _iob2_word, task.labels, _lines(path))
    sentences = [zip(*run, strict=True) for is_word, run in groupby(words, key=bool) if is_word]
    return [{"tokens": list(tokens), "tags": list(tags)} for tokens, tags in sentences]


def _iob2_word(line: str, labels: Collection) -> tuple[str, str] | None:
    """Parse JNLPBA: a token, a tab and its tag."""
    if line.startswith("###MEDLINE:"):
        return None
    token, tag = _two(line.partition("\t"), "a token, a tab and its tag")
    return _text(token), _one_of(labels, tag)


def _read_phrasebank(task: Task, path: AnyPath) -> list[dict]:
    return _read(path, _phrasebank_row, task.labels, _lines(path, "latin-1"))


def _phrasebank_row(line: str, labels: Collection) -> dict:
    """Parse PhraseBank: a sentence, @ and its label."""
    sentence, label = _two(line.rpartition("@"), "a sentence, @ and its label")  # the last @ of several
    return {"sentence": _text(sentence), "label": _one_of(labels, label)}


def _mrpc_pair(line: str, qualities: dict[str, str]) -> tuple[tuple[str, str], dict] | None:
    """Parse MRPC: a pair's ids, and its row. The heading is no row."""
    # Not by the csv module: a quote is text here, and there an open one swallows the lines up to the next.
    columns = line.split("\t")
    if len(columns) != 5:
        expected = "five, split by tabs: Quality, #1 ID, #2 ID, #1 String, #2 String"
        raise ValueError(f"{len(columns)} columns in {line[:40]!r}; expected {expected}")
    quality, first_id, second_id, *sentences = columns
    if quality == "Quality":
        return None
    return (first_id, second_id), _glue_row((quality, *sentences), qualities)


def _mrpc_ids(line: str, known: Collection) -> tuple[str, str]:
    """Parse MRPC's list of validation pairs: the two ids of a pair of the train file."""
    ids = _two(line.partition("\t"), "two ids split by a tab")
    if ids not in known:
        raise ValueError(f"{line[:40]!r} is no pair of the train file; use the list that comes with it")
    return ids


def _glue_row(columns: tuple, qualities: dict[str, str]) -> dict:
    """Parse a pair of MRPC: its quality and its two sentences."""
    quality, first, second = columns
    label = qualities[_one_of(qualities, str(quality))]
    return {"sentence1": _text(first), "sentence2": _text(second), "label": label}


def _parquet_rows(path: Path) -> Iterable[tuple[int, tuple]]:
    """Read the rows of GLUE's parquet, numbered from 1."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # bad input is one line, and that one is ours
    try:
        # A cache that is thrown away: the usual one would keep a second copy of what the hub's cache holds.
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        columns = [table[name] for name in ("label", "sentence1", "sentence2")]
    except Exception as error:  # datasets, pyarrow and fsspec each raise their own
        expected = "expected parquet with sentence1, sentence2, label; delete it, so that it is fetched again"
        raise InputError(f"{path}: {type(error).__name__}; {expected}") from error
    return enumerate(zip(*columns, strict=True), start=1)


def _read_tag_names(task: Task, path: Path) -> dict[int, str]:
    """Read which tag each number of tner's files stands for: the numbers are its own, the names ours too."""
    try:
        numbers = json.loads("\n".join(line for _, line in _lines(path)))
        names = {number: name for name, number in numbers.items()}
        if set(numbers) != set(task.labels) or len(names) != len(numbers):
            raise ValueError("other tags, or one number for two of them")
        return names
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON number for each of {', '.join(task.labels)}") from error


def _tner_row(line: str, tag_names: dict[int, str]) -> dict:
    """Parse tner's JNLPBA: a JSON object with tokens and numbered tags."""
    try:
        row = json.loads(line)
        words = zip(row["tokens"], row["tags"], strict=True)
        tokens, tags = zip(*((_text(token), tag_names[tag]) for token, tag in words), strict=True)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        expected = '{"tokens": ["..."], "tags": [0]}, as many tags as tokens, numbered as in label.json'
        raise ValueError(f"{line[:40]!r}; expected {expected}") from error
    return {"tokens": list(tokens), "tags": list(tags)}


def _marked_row(line: str, labels: Collection) -> dict:
    """Parse the sample's tagged sentences: `[protein NF-kappa B] binds the [DNA IL-2 promoter] .`"""
    pieces = list(re.finditer(r"\[(\w+) ([^][]+)\]|[^][ ]+", line))
    if " ".join(piece[0] for piece in pieces) != line:
        expected = "words split by single spaces, and marks such as [protein NF-kappa B]"
        raise ValueError(f"a stray bracket or space in {line[:40]!r}; expected {expected}")
    tokens, tags = [], []
    for piece in pieces:
        kind, words = piece[1], (piece[2] or piece[0]).split(" ")
        tokens += [_text(word) for word in words]
        tags += [_one_of(labels, f"B-{kind}"), *[f"I-{kind}"] * (len(words) - 1)] if kind else ["O"]
    return {"tokens": tokens, "tags": tags}


def _labelled_row(line: str, labels: Collection) -> dict:
    """Parse the sample's labelled sentences: a label, a tab and a sentence."""
    label, sentence = _two(line.partition("\t"), "a label, a tab and a sentence")
    return {"sentence": _text(sentence), "label": _one_of(labels, label)}


def _block_row(lines: list[str], labels: Collection) -> dict:
    """Parse the sample's pairs: three lines, the label and the two sentences."""
    if len(lines) != 3:
        raise ValueError(f"a block of {len(lines)} lines; expected a label, two sentences, a blank line")
    return {"sentence1": lines[1], "sentence2": lines[2], "label": _one_of(labels, lines[0])}


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the runs of lines between blank lines, each with the number of its first."""
    for blank, block in groupby(_lines(path), key=lambda item: not item[1]):
        if not blank:
            numbers, lines = zip(*block, strict=True)
            yield numbers[0], list(lines)
