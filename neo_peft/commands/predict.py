"""Predict the labels or tags of new text with a finished run: python -m neo_peft predict
runs/ner-lora "The IL-2 gene is active."

Several runs can share one base; then each JSON row names its run. See `runs/adapter_set.py`.
"""

import argparse
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from neo_peft.commands.file_bar import FileBar
from neo_peft.commands.flags import (
    ADAPTER_FLAGS,
    RUN_FLAGS,
    OneLineParser,
    add_run_flags,
    add_text,
    settings_of_run,
)
from neo_peft.commands.loading_line import LoadingLine, run_with_base
from neo_peft.commands.new_rows import FORMATS, Writer
from neo_peft.commands.predictor import SINGLE_RUN, Line, Predictor
from neo_peft.corpora.new_files import NewFile, open_new
from neo_peft.errors import InputError
from neo_peft.runs.folder import is_run, newest_run
from neo_peft.settings import Settings
from neo_peft.system.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation
    from neo_peft.runs.loading import LoadedModel

READ_AHEAD = 16  # batches of lines to sort by length: texts of the same length are faster


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags, with the run folders as `run` and the examples as `text`."""
    parser = OneLineParser(
        prog="python -m neo_peft predict",
        description="Predict the labels or tags of new text with a finished run. Prints text on a "
        "terminal, JSON lines otherwise.",
    )
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="an example; a tab separates two sentences (default: the lines of standard input). "
        "Run folders can come before the examples",
    )
    add_text(
        parser,
        "--run",
        "RUN",
        "a run's folder (default: the newest finished one in runs/); can be repeated: then each "
        'row names its run, {"run": ...}',
        action="append",
        default=[],
    )
    add_text(
        parser,
        "--file",
        "FILE",
        "a file with one example per line; .csv and .tsv are tables with a heading; .conll, .iob, "
        ".iob2, .bio, and for tags .tsv, have one word per line",
    )
    parser.add_argument(
        "--jsonl", action="store_true", help='each line is a JSON row, such as {"tokens": ["IL-2"]}'
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="what to print. text: the label, or the marked entities; jsonl: JSON lines; conll: a "
        "word and its tag per line; csv: a table (default: text on a terminal, else jsonl)",
    )
    parser.add_argument("--json", action="store_true", help="the same as --format jsonl")
    add_run_flags(parser, (*ADAPTER_FLAGS, *RUN_FLAGS, "columns"))
    flags = parser.parse_intermixed_args(argv)
    if not flags.run:
        flags.run = list(takewhile(is_run, flags.text))
        flags.text = flags.text[len(flags.run) :]
    if flags.json and flags.format not in (None, "jsonl"):
        parser.error(f"--json and --format {flags.format} differ: use only one of them")
    if flags.json or not (flags.format or sys.stdout.isatty()):
        flags.format = "jsonl"
    if len(flags.run) > 1 and not flags.jsonl:
        parser.error(
            'several runs need --jsonl, and each row must name its run: {"run": "ner-lora", '
            '"tokens": ["IL-2"]}'
        )
    if flags.text and flags.file:
        parser.error("TEXT and --file both give examples: use only one of them")
    if flags.file and (not os.path.exists(flags.file) or os.path.isdir(flags.file)):
        parser.error(
            f"--file {flags.file}: there is no such file; name one with one example per line"
        )
    if len(flags.text) == 1 and os.path.isfile(flags.text[0]):
        parser.error(f"{flags.text[0]} is a file: read it with --file {flags.text[0]}")
    if flags.text and re.fullmatch(r"\S*/\S*|\S+\.(txt|tsv|jsonl?)", flags.text[0]):
        parser.error(f"{flags.text[0]} looks like a path, but there is no run and no file there")
    return flags


def main(argv: Sequence[str]) -> None:
    """Print the prediction of each example, one line each, as the examples come in."""
    flags = parse_flags(argv)
    folders = [Path(folder) for folder in flags.run] or [newest_run(flags.task)]
    with LoadingLine(", ".join(run_with_base(folder, flags.model) for folder in folders)):
        runs, evaluate = load_runs(folders, flags)
    for note in dict.fromkeys(note for run in runs.values() for note in run.notes):
        print(f"note    {note}", file=sys.stderr)
    if not flags.run:
        print(f"with {folders[0]}", file=sys.stderr)
    settings = runs[next(iter(runs))].settings
    new_file = open_file(flags, runs, settings)
    writer = Writer(flags.format or "text", [run.encoder.task for run in runs.values()], new_file)
    keep_freed_memory()
    batch_size = settings.batch_size
    predictor = Predictor(runs, partial(evaluate, batch_size=batch_size), flags, new_file)
    lines = new_file.records() if new_file else read_lines(flags)
    with closing(FileBar(flags.file)) as bar:
        for received in lines_as_received(lines, batch_size * READ_AHEAD):
            progress = bar.over(line for _, line in received)
            printed = [writer.text(*row) for row in predictor.predict(received, progress)]
            if printed:
                tqdm.write("\n".join(printed))
            sys.stdout.flush()
    predictor.print_counts()


def open_file(
    flags: argparse.Namespace, runs: dict[str, "LoadedModel"], settings: Settings
) -> NewFile | None:
    """Return the file of `--file` if it is a table or has words in columns, else None."""
    new_file = None
    if flags.file and not flags.jsonl and os.path.isfile(flags.file):
        task = next(iter(runs.values())).encoder.task
        new_file = open_new(Path(flags.file), task, settings.columns)
    if flags.columns and not (new_file or flags.jsonl):
        raise InputError("--columns needs --jsonl, or a --file that is a table or has columns")
    for note in new_file.notes if new_file else ():
        print(f"note    {note}", file=sys.stderr)
    return new_file


def load_runs(
    folders: list[Path], flags: argparse.Namespace
) -> tuple[dict[str, "LoadedModel"], Callable[..., "Evaluation"]]:
    """Return the runs by name, and a function that predicts rows.

    A single run has the name `SINGLE_RUN`. With several runs, each row names its run.
    """
    from neo_peft.runs.adapter_set import AdapterSet
    from neo_peft.runs.loading import load
    from neo_peft.runs.texts import evaluate_texts

    if len(folders) == 1:
        tuned = load(folders[0], settings_of_run(folders[0], flags))
        return {SINGLE_RUN: tuned}, partial(evaluate_texts, tuned.model, tuned.encoder)
    runs = AdapterSet()
    for folder in folders:
        runs.add(folder, settings=settings_of_run(folder, flags))
    return {name: runs[name] for name in runs}, runs.evaluate


def read_lines(flags: argparse.Namespace) -> Iterator[Line]:
    """Yield the numbered examples of the arguments, the file, or standard input."""
    if flags.text:
        yield from enumerate(map(os.fsencode, flags.text), start=1)
        return
    if not flags.file and sys.stdin.isatty():
        print("enter one example per line; Ctrl-D ends the input", file=sys.stderr)
    # Not sys.stdin.buffer: a thread reads the lines (`lines_as_received`), and Python aborts if it
    # ends while a thread waits within that object.
    source = flags.file or sys.stdin.fileno()
    with open(source, "rb", closefd=bool(flags.file)) as file:
        yield from enumerate(file, start=1)


def lines_as_received(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """Yield lists of the lines that have come in so far, at most `size` each.

    A line from a slow pipe does not wait for others.
    """
    received = queue.Queue(maxsize=size)

    def read() -> None:
        try:
            for line in lines:
                received.put(line)
            received.put(None)
        except Exception as error:  # raised again in the main thread
            received.put(error)

    threading.Thread(target=read, daemon=True).start()
    waiting = []
    while isinstance(item := received.get(), tuple):
        waiting.append(item)
        if len(waiting) == size or received.empty():
            yield waiting
            waiting = []
    if waiting:
        yield waiting
    if item is not None:
        raise item
