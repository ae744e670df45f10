"""Score a finished run again, or an untuned base model: python -m neo_peft evaluate runs/ner-lora

In a checkout, python evaluate.py does the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.commands.flags import (
    ADAPTER_FLAGS,
    DATA_FLAGS,
    RUN_FLAGS,
    OneLineParser,
    add_json,
    add_run_flags,
    add_text,
    argument,
    given_settings,
    settings_of_run,
    with_flags,
)
from neo_peft.commands.loading_line import LoadingLine, run_with_base
from neo_peft.corpora.sources import load_scored, train_labels
from neo_peft.corpora.splits import Splits, limit_rows
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import with_size
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import tables
from neo_peft.runs.folder import RUN, newest_run
from neo_peft.runs.predictions import write_rows
from neo_peft.settings import FOR_TAGGING, choice, make_settings, whole
from neo_peft.system import processes
from neo_peft.system.bars import show_progress
from neo_peft.tasks import get_task

if TYPE_CHECKING:
    from neo_peft.runs.loading import LoadedModel


def parse_flags(argv: Sequence[str], prog: str) -> argparse.Namespace:
    """Return the flags, with the run's folder or None as `run`.

    Raises InputError if --out cannot be written.
    """
    parser = OneLineParser(
        prog=prog,
        description="Score a finished run again (%(prog)s runs/ner-lora), or an untuned base "
        "model.",
    )
    add_text(
        parser, "run", "RUN", "a run folder (default: the newest finished one in runs/)", nargs="?"
    )
    add_text(
        parser,
        "--split",
        "NAME",
        "train, validation, test or another split (default: test, or validation without a test "
        "split)",
    )
    parser.add_argument(
        "--decode",
        metavar="{labels,generate}",
        type=argument(decoder),
        help="labels: compare the labels' probabilities; generate: the label that the "
        "generated text starts with (default: labels)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="an entity starts only at B- (IOB2), as in seqeval's strict mode",
    )
    parser.add_argument(
        "--zero-shot",
        action="store_true",
        help="score the untuned model, in classification with an instruction before each text",
    )
    parser.add_argument(
        "--show",
        metavar="N",
        type=argument(whole(1)),
        default=0,
        help="print the first N predictions",
    )
    add_json(parser)
    add_text(parser, "--out", "FILE", "file of the predictions (default: RUN/predictions.jsonl)")
    add_run_flags(parser, ADAPTER_FLAGS + RUN_FLAGS + DATA_FLAGS)
    flags = parser.parse_args(argv)
    if flags.out:
        refuse_out(flags.out)
    flags.run = find_run(flags)
    return flags


def decoder(text: str) -> str:
    """Return the value of --decode; `rank` is the old name of `labels`."""
    if text == "rank":
        print("note    --decode rank is now called --decode labels", file=sys.stderr)
        return "labels"
    return choice(("labels", "generate"))(text)


def refuse_out(out: str) -> None:
    """Raise InputError if a file cannot be written: at once, not after minutes of scoring."""
    path = Path(out).resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"--out {out} is not a plain file, so it is not replaced; name a file")
    if not path.parent.is_dir():
        raise InputError(
            f"--out {out}: {Path(out).parent} is not a folder; make it first, or name another"
        )


def main(argv: Sequence[str], prog: str = "python -m neo_peft evaluate") -> None:
    """Score a run, or an untuned base model, and print the scores."""
    flags = processes.on_first_process(lambda: parse_flags(argv, prog))
    is_first = processes.process_index == 0

    def print_line(line: str) -> None:
        if is_first:
            print(line, file=sys.stderr if flags.json else sys.stdout, flush=True)

    if flags.run:
        what = run_with_base(flags.run, flags.model)
    else:
        what = flags.model and with_size(flags.model)
    with LoadingLine(what if is_first else None):
        # imported after the flags are checked, since torch takes seconds to import
        from neo_peft.decoding import evaluate, score
        from neo_peft.runs.generation import evaluate_generated
        from neo_peft.runs.refused_rows import encode_split
        from neo_peft.runs.texts import text_notes

        tuned, instruction = load_run(flags) if flags.run else load_untuned_base(flags)
    task, settings = tuned.encoder.task, tuned.settings
    if flags.strict and not task.is_tagging:
        raise InputError(f"--strict {FOR_TAGGING}; the task here is {task.name}")
    decode = choose_decoder(flags, tuned)
    progress = show_progress if is_first else no_progress
    split, splits = load_split(tuned, flags.split, progress)
    rows = limit_rows(splits.named()[split], settings.eval_limit)
    examples = encode_split(tuned.encoder, rows, split, splits.named()[split])
    for line in splits.read:
        print_line(f"data    {line}")
    for note in (*tuned.notes, *splits.notes, *text_notes(tuned.encoder, [examples])):
        print_line(f"note    {note}")
    protocol = f", protocol {splits.protocol}" if splits.protocol != "single" else ""
    print_line(f"{task.name}, {len(rows):,} rows of {split} from {settings.data}{protocol}")
    shown = f", --decode {decode}" if decode else ", --strict" if flags.strict else ""
    print_line(f"{flags.run or settings.model}{shown}\n")

    evaluate_rows = evaluate_generated if decode == "generate" else evaluate
    evaluation = evaluate_rows(
        tuned.model, tuned.encoder, examples, instruction, settings.batch_size, progress=progress
    )
    predicted, generated = evaluation.predicted, evaluation.generated
    scores = score(task, rows, predicted, flags.strict)
    for line in tables.example_lines(task, rows[: flags.show], predicted, generated):
        print_line(line)
    print_line(tables.scores(task, scores))
    print_line("\n" + tables.per_label(task, scores))
    path = Path(flags.out) if flags.out else flags.run and flags.run / "predictions.jsonl"
    if path:
        processes.on_first_process(lambda: write_rows(path, rows, predicted, generated))
    if flags.json and is_first:
        per_label = scores.pop("per_label")
        record = {"task": task.name, "split": split, "decode": decode}
        record |= ({"strict": True} if flags.strict else {}) | {"scores": scores}
        print(json.dumps(record | {"per_label": per_label}))


def load_split(tuned: "LoadedModel", name: str | None, progress: Progress) -> tuple[str, Splits]:
    """Load the split that is scored, or the default one; return its name and the splits."""
    task, of_run = tuned.encoder.task, tuned.settings
    data = (of_run.data, of_run.protocol, of_run.seed, of_run.labels)
    return load_scored(task, *data, name, of_run.columns, progress)


def find_run(flags: argparse.Namespace) -> Path | None:
    """Return the run's folder: that of the flag, else the newest finished run's.

    Return None for an untuned base model.
    """
    if flags.run:
        return Path(flags.run)
    if flags.zero_shot or (flags.model and flags.task):
        return None
    return newest_run(flags.task)


def load_run(flags: argparse.Namespace) -> tuple["LoadedModel", str]:
    """Load a run, in which flags replace recorded settings; return it and "", its instruction."""
    from neo_peft.runs.loading import load

    if flags.zero_shot:
        raise InputError(
            "--zero-shot scores an untuned model: name --task and --model instead of a run"
        )
    notes = take_labels(flags) if flags.task and not (flags.run / RUN).exists() else []
    tuned = load(flags.run, settings_of_run(flags.run, flags))
    tuned.notes += notes
    return tuned, ""


def load_untuned_base(flags: argparse.Namespace) -> tuple["LoadedModel", str]:
    """Load an untuned base model; return it with the instruction for its texts.

    A tagging task gets a head with seeded random weights, and no instruction.
    """
    if not (flags.task and flags.model):
        raise InputError("an untuned base model needs both --task and --model")
    from neo_peft.runs.loading import load_untuned

    notes = take_labels(flags)
    settings = make_settings(method="head", **given_settings(flags, ADAPTER_FLAGS))
    tuned = load_untuned(with_flags(settings, flags))
    tuned.notes += notes
    with_instruction = flags.zero_shot and tuned.model.head is None
    return tuned, tuned.encoder.task.instruction if with_instruction else ""


def take_labels(flags: argparse.Namespace) -> list[str]:
    """Set --labels to those of the user's own train file, since no run.json has the labels. Return
    a note on them."""
    if flags.labels or not flags.data:
        return []
    flags.labels = train_labels(get_task(flags.task), flags.data, flags.columns)
    if not flags.labels:
        return []
    return [
        f"the labels are taken from train, in the order {', '.join(flags.labels)}; --labels names "
        "another order"
    ]


def choose_decoder(flags: argparse.Namespace, tuned: "LoadedModel") -> str | None:
    """Return the value of --decode, or None if the model predicts with a head."""
    if tuned.model.head is None:
        return flags.decode or "labels"
    if flags.decode:
        raise InputError(
            f"--decode {flags.decode}: this model predicts with a head; leave out --decode"
        )
    return None
