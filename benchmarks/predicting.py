"""How the cost of predicting grows: python -m benchmarks.predicting

With neo-mini, on one thread, in CPU seconds of this process:

  labels    labels that share their first tokens, predicted by their words for 64 texts. The line:
            the seconds of a linear head, times (tokens of the text + those of the labels' tree) /
            tokens of the text
  adapters  LoRA adapters in a mixed batch: 64 texts with `AdapterSet`. The line: one adapter
  rows      rows to encode. The line: the seconds of the fewest rows, times the number of rows

"over the line" is the cost divided by that of the line. A record is written in benchmarks/records/.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import peak_memory
from benchmarks.peers import RECORDS, hardware, versions
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.formats.adapter import save_adapter
from neo_peft.kernels.label_tree import LabelTree
from neo_peft.runs.adapter_set import AdapterSet
from neo_peft.runs.folder import write_record
from neo_peft.runs.loading import load_untuned
from neo_peft.runs.record import commit
from neo_peft.runs.tables import table
from neo_peft.settings import make_settings
from neo_peft.tasks import get_task

TEXTS, WORDS, BATCH = 64, 20, 16  # texts of a measurement, words of a text, texts of a batch
LABELS, ADAPTERS = (2, 10, 40, 77, 150), (1, 2, 4, 8, 16, 32)
ROWS = (1_000, 10_000, 100_000, 1_000_000)


def cpu_seconds(call: Callable) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def in_turn(*calls: Callable, repeats: int = 5) -> list[float]:
    """Return the median CPU seconds of each call. The calls run in turn; the first turn is not
    counted."""
    turns = [[cpu_seconds(call) for call in calls] for _ in range(repeats + 1)]
    return [median(seconds) for seconds in zip(*turns[1:], strict=True)]


def random_rows(count: int, words: int) -> list[dict]:
    """Return rows whose sentences are random words of the sample, half to one and a half times as
    many as `words`."""
    rows = load_splits(get_task("sentiment"), "sample").train
    vocabulary = [word for row in rows for word in row["sentence"].split()]
    draw = random.Random(0)
    lengths = (draw.randint(words // 2, 3 * words // 2) for _ in range(count))
    return [{"sentence": " ".join(draw.choices(vocabulary, k=length))} for length in lengths]


def label_texts(count: int) -> tuple[str, ...]:
    """Return labels of three words, in random order, so that most share their first token."""
    first, second, third = (
        ("card", "account", "transfer", "payment", "savings"),
        ("lost", "late", "failed", "refused", "missing", "pending"),
        ("today", "here", "abroad", "again", "often"),
    )
    labels = [" ".join(words) for words in product(first, second, third)]
    random.Random(0).shuffle(labels)
    return (*labels[: count - 2], "card lost twice", "card lost today again")


def labels_curve() -> Iterator[dict]:
    rows = random_rows(TEXTS, WORDS)
    for count in LABELS:
        runs = []
        for readout in ("words", "head"):
            settings = make_settings(
                task="classification", method="lora", labels=label_texts(count), readout=readout
            )
            runs.append(load_untuned(settings, with_method=True))
        examples = [run.encoder(rows) for run in runs]
        by_words, by_head = (
            partial(evaluate, run.model, run.encoder, encoded, batch_size=BATCH)
            for run, encoded in zip(runs, examples, strict=True)
        )
        seconds, head_seconds = in_turn(by_words, by_head)
        text_tokens = examples[0].lengths.mean()
        line = (text_tokens + tree_size(runs[0].encoder)) / text_tokens
        yield {"x": count, "seconds": seconds, "line": head_seconds * line}


def tree_size(encoder) -> int:
    """Return the number of tokens in the tree of the labels that share their first token."""
    tokens = list(encoder.label_tokens.values())
    firsts = [ids[0] for ids in tokens]
    tied = [ids for ids in tokens if firsts.count(ids[0]) > 1]
    return len(LabelTree.of_labels(tied, torch.device("cpu")).tokens)


def adapters_curve() -> Iterator[dict]:
    rows, first = random_rows(TEXTS, WORDS), None
    with tempfile.TemporaryDirectory() as folder:
        for count in ADAPTERS:
            runs = AdapterSet(save_run(Path(folder) / f"{count}-{i}") for i in range(count))
            named = [{"run": f"{count}-{i % count}", **row} for i, row in enumerate(rows)]
            [seconds] = in_turn(partial(runs.evaluate, named, BATCH))
            first = first or seconds
            yield {"x": count, "seconds": seconds, "line": first}


def save_run(folder: Path) -> Path:
    """Save a run of LoRA with its initial weights."""
    flags = {"task": "sentiment", "method": "lora", "threads": 1}
    settings = make_settings(**flags)
    tuned = load_untuned(settings, with_method=True)
    save_adapter(folder, tuned.model, settings)
    labels, base = list(tuned.encoder.task.labels), {"fingerprint": tuned.base.fingerprint}
    record = {"task": "sentiment", "labels": labels, "flags": flags, "base": base, "files": {}}
    write_record(folder, record)
    return folder


def rows_curve() -> Iterator[dict]:
    encoder, per_row = load_untuned(make_settings(task="sentiment", method="lora")).encoder, None
    encoder(random_rows(100, WORDS))  # the first call is slower
    for count in ROWS:
        rows, seconds = random_rows(count, WORDS), []
        encode = partial(encoder, rows)
        peak = peak_memory(lambda: seconds.append(cpu_seconds(encode)))  # noqa: B023
        per_row = per_row or seconds[0] / count
        yield {"x": count, "seconds": seconds[0], "line": per_row * count, "bytes": peak}


CURVES = {"labels": labels_curve, "adapters": adapters_curve, "rows": rows_curve}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predicting", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--curve", choices=(*CURVES, "all"), default="all")
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    curves = {name: list(CURVES[name]()) for name in CURVES if flags.curve in (name, "all")}
    record = {"hardware": hardware("cpu"), "versions": versions(), "commit": commit()}
    record |= {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "curves": curves}
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / f"predicting-{flags.curve}.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        [
            name,
            f"{point['x']:,}",
            f"{point['seconds']:.2f}",
            f"{point['seconds'] / point['line']:.2f}",
            f"{point['bytes'] / 1e6:,.0f}" if "bytes" in point else "",
        ]
        for name, points in curves.items()
        for point in points
    ]
    print(table(("what grows", "number", "CPU seconds", "over the line", "peak MB"), lines))


if __name__ == "__main__":
    main()
