"""Predict the examples in lines, and print which lines are wrong or cut."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from tqdm import tqdm

from neo_peft.commands.new_rows import Example, with_prediction
from neo_peft.corpora.new_files import NewFile
from neo_peft.corpora.new_text import is_blank, parse_example, parse_example_of_run
from neo_peft.errors import InputError
from neo_peft.progress import Progress
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation
    from neo_peft.encoding import Encoder
    from neo_peft.runs.loading import LoadedModel
    from neo_peft.runs.texts import Used

SINGLE_RUN = ""  # the name of the run if there is only one
Line = tuple[int, bytes]  # the number of a line, from 1, and its text


class Predictor:
    """Predicts the examples in lines. Prints which lines are wrong or cut, and counts them."""

    def __init__(
        self,
        runs: dict[str, "LoadedModel"],
        evaluate: Callable[..., "Evaluation"],
        flags: argparse.Namespace,
        new_file: NewFile | None,
    ):
        self.runs, self.evaluate, self.in_json = runs, evaluate, flags.jsonl
        self.new_file = new_file
        self.tasks = {name: run.encoder.task for name, run in runs.items()}
        self.from_file = not flags.text  # in a file a blank line is not wrong
        self.blank = self.wrong = self.cut = 0

    def predict(
        self, lines: list[Line], progress: Progress
    ) -> Iterator[tuple[Task, Example, dict]]:
        """Yield the task of each example, the example, and its row with the prediction."""
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
            yield encoder.task, example, with_prediction(encoder.task, example, *prediction)

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
                if self.new_file:
                    row, given, starts = self.new_file.parse(line)
                else:
                    row, given = self._parse(line), []
                    # A JSON row can have a field of this name, which means something else.
                    starts = None if self.in_json else row.pop("starts", None)
                examples.append(Example(number, {"line": number} | row, starts, given))
            except ValueError as error:
                self._refuse(number, str(error))
        return examples

    def _parse(self, line: bytes) -> dict:
        if len(self.tasks) > 1:
            return parse_example_of_run(line, self.tasks)
        columns = self.runs[SINGLE_RUN].settings.columns
        return parse_example(line, self.tasks[SINGLE_RUN], self.in_json, columns)

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
        """Print how many texts were cut, and how many lines were blank or comments. Raises
        InputError if lines were wrong."""
        from neo_peft.runs.texts import cut_note

        if self.cut:
            note = cut_note(self.cut, [run.encoder for run in self.runs.values()])
            print(f"note    {note}", file=sys.stderr)
        if self.blank:
            print(f"note    blank lines, passed over: {self.blank:,}", file=sys.stderr)
        if self.new_file and self.new_file.comments:
            count = f"{self.new_file.comments:,}"
            print(f"note    lines that start with # and are comments: {count}", file=sys.stderr)
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
