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
from neo_peft.corpora.new_text import is_blank, parse_example, parse_example_of_run
from neo_peft.errors import InputError
from neo_peft.progress import Progress
from neo_peft.runs.folder import is_run, newest_run
from neo_peft.runs.new_rows import Example, as_json, coloured, with_prediction
from neo_peft.system.freed_memory import keep_freed_memory
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation
    from neo_peft.encoding import Encoder
    from neo_peft.runs.loading import LoadedModel
    from neo_peft.runs.texts import Used

SINGLE_RUN = ""  # the name of the run if there is only one
READ_AHEAD = 16  # batches of lines to sort by length: texts of the same length are faster
Line = tuple[int, bytes]  # the number of a line, from 1, and its text


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
    add_text(parser, "--file", "FILE", "a file with one example per line")
    parser.add_argument(
        "--jsonl", action="store_true", help='each line is a JSON row, such as {"tokens": ["IL-2"]}'
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON lines on a terminal as well"
    )
    add_run_flags(parser, ADAPTER_FLAGS + RUN_FLAGS)
    flags = parser.parse_intermixed_args(argv)
    if not flags.run:
        flags.run = list(takewhile(is_run, flags.text))
        flags.text = flags.text[len(flags.run) :]
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
    in_colour = sys.stdout.isatty() and not flags.json
    keep_freed_memory()
    batch_size = runs[next(iter(runs))].settings.batch_size
    predictor = Predictor(runs, partial(evaluate, batch_size=batch_size), flags)
    with closing(FileBar(flags.file)) as bar:
        for received in lines_as_received(read_lines(flags), batch_size * READ_AHEAD):
            progress = bar.over(line for _, line in received)
            printed = [
                coloured(task, row) if in_colour else as_json(row)
                for task, row in predictor.predict(received, progress)
            ]
            if printed:
                tqdm.write("\n".join(printed))
            sys.stdout.flush()
    predictor.print_counts()


class Predictor:
    """Predicts the examples in lines. Prints which lines are wrong or cut, and counts them."""

    def __init__(
        self,
        runs: dict[str, "LoadedModel"],
        evaluate: Callable[..., "Evaluation"],
        flags: argparse.Namespace,
    ):
        self.runs, self.evaluate, self.in_json = runs, evaluate, flags.jsonl
        self.tasks = {name: run.encoder.task for name, run in runs.items()}
        self.from_file = not flags.text  # in a file a blank line is not wrong
        self.blank = self.wrong = self.cut = 0

    def predict(self, lines: list[Line], progress: Progress) -> Iterator[tuple[Task, dict]]:
        """Yield the task and the row of each example, with its prediction."""
        examples = self._read(lines)
        try:
            evaluation = self._evaluate(examples, progress)
        except InputError:  # one of the rows is refused, and so none has a prediction
            examples = self._without_refused(examples)
            evaluation = self._evaluate(examples, progress)
        self.cut += evaluation.cut
        values = zip(evaluation.predicted, evaluation.probabilities, evaluation.used, strict=True)
        for example, prediction in zip(examples, values, strict=True):
            encoder, used = self._run_of(example.row).encoder, prediction[-1]
            if used is not None:
                note = cut_line(encoder, example.row, used)
                print_above_bar(f"note    line {example.number}: {note}")
            yield encoder.task, with_prediction(encoder.task, example, *prediction)

    def _evaluate(self, examples: list[Example], progress: Progress) -> "Evaluation":
        return self.evaluate([example.row for example in examples], progress=progress)

    def _read(self, lines: list[Line]) -> list[Example]:
        """Return the examples of the lines that can be read."""
        examples = []
        for number, line in lines:
            if self.from_file and is_blank(line):
                self.blank += 1
                continue
            try:
                row = {"line": number} | self._parse(line)
                # A JSON row can have a field of this name, which means something else.
                starts = None if self.in_json else row.pop("starts", None)
                examples.append(Example(number, row, starts))
            except ValueError as error:
                self._refuse(number, str(error))
        return examples

    def _parse(self, line: bytes) -> dict:
        if len(self.tasks) > 1:
            return parse_example_of_run(line, self.tasks)
        return parse_example(line, self.tasks[SINGLE_RUN], self.in_json)

    def _without_refused(self, examples: list[Example]) -> list[Example]:
        """Return the examples that the encoder does not refuse."""
        from neo_peft.runs.refused_rows import refusal
        from neo_peft.runs.texts import encode_texts

        accepted = []
        for example in examples:
            encode = partial(encode_texts, self._run_of(example.row).encoder)
            if reason := refusal(encode, example.row):
                self._refuse(example.number, reason)
            else:
                accepted.append(example)
        return accepted

    def _run_of(self, row: dict) -> "LoadedModel":
        return self.runs[row["run"] if len(self.runs) > 1 else SINGLE_RUN]

    def _refuse(self, number: int, reason: str) -> None:
        print_above_bar(f"line {number}: {reason}")
        self.wrong += 1

    def print_counts(self) -> None:
        """Print how many texts were cut and lines were blank. Raises InputError if lines were
        wrong."""
        from neo_peft.runs.texts import cut_note

        if self.cut:
            note = cut_note(self.cut, [run.encoder for run in self.runs.values()])
            print(f"note    {note}", file=sys.stderr)
        if self.blank:
            print(f"note    blank lines, passed over: {self.blank:,}", file=sys.stderr)
        if self.wrong:
            raise InputError(f"{self.wrong} of the lines could not be used and have no prediction")


def print_above_bar(text: str) -> None:
    """Print a line on standard error, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def cut_line(encoder: "Encoder", row: dict, used: "Used") -> str:
    """Return how much of a text was used that was cut."""
    if isinstance(used, int):
        part = f"{used:,} of {len(row['tokens']):,} words have a tag"
    else:
        counts = (f"{n:,} of {len(row[name]):,} of {name}" for name, n in used.items())
        part = f"characters used: {', '.join(counts)}"
    return f"cut to {encoder.text_length} tokens; {part}"


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
