"""Score a run again from its folder, or an untuned base model: python -m neo_peft evaluate
runs/ner-lora --split test, or python evaluate.py in a checkout."""

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft import processes
from neo_peft.commands.flags import (
    OF_A_RUN,
    OF_AN_ADAPTER,
    OF_THE_DATA,
    OneLineParser,
    add_json,
    add_run_flags,
    add_text,
    argument,
    changed,
    given,
    settings_of_run,
)
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.errors import InputError
from neo_peft.progress import no_progress, show_progress
from neo_peft.runs import tables
from neo_peft.runs.folder import RUN, newest_run
from neo_peft.runs.predictions import reported_split, write_rows
from neo_peft.settings import choice, make_settings, whole
from neo_peft.tasks import get_task

if TYPE_CHECKING:
    from neo_peft.runs.loading import Tuned


def parse_flags(argv: Sequence[str], prog: str) -> argparse.Namespace:
    """Return the flags, with the run's folder or None as `run`. Refuse an --out that cannot be
    written."""
    parser = OneLineParser(
        prog=prog,
        description="Score a run again from its folder, or an untuned base model: "
        "%(prog)s runs/ner-lora --split test",
    )
    add_text(
        parser, "run", "RUN", "a run folder (default: the newest finished one in runs/)", nargs="?"
    )
    add_text(
        parser,
        "--split",
        "NAME",
        "train, validation, test or another that there is (default: test, else validation)",
    )
    parser.add_argument(
        "--decode",
        metavar="{labels,generate}",
        type=argument(decoder),
        help="labels: the most probable label; generate: the label that free generation starts "
        "with (default: labels)",
    )
    parser.add_argument(
        "--zero-shot", action="store_true", help="score the untuned model, the instruction in front"
    )
    parser.add_argument(
        "--show", metavar="N", type=argument(whole(1)), default=0, help="print the first N answers"
    )
    add_json(parser)
    add_text(parser, "--out", "FILE", "write the answers here (default: RUN/predictions.jsonl)")
    add_run_flags(parser, OF_AN_ADAPTER + OF_A_RUN + OF_THE_DATA)
    flags = parser.parse_args(argv)
    if flags.out:
        refuse_out(flags.out)
    flags.run = find_run(flags)
    return flags


def decoder(text: str) -> str:
    """Return the value of --decode. `rank` is the former name of `labels`."""
    if text == "rank":
        print("note    --decode rank is now called --decode labels", file=sys.stderr)
        return "labels"
    return choice(("labels", "generate"))(text)


def refuse_out(out: str) -> None:
    """Refuse a file that cannot be written, before minutes of scoring."""
    path = Path(out).resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"--out {out} is no plain file, and is not replaced by one; name a file")
    if not path.parent.is_dir():
        raise InputError(
            f"--out {out}: {Path(out).parent} is no folder; make it first, or name another"
        )


def main(argv: Sequence[str], prog: str = "python -m neo_peft evaluate") -> None:
    """Score a run, or an untuned base model, and print the scores."""
    flags = processes.on_first_process(lambda: parse_flags(argv, prog))
    speaks = processes.process_index == 0

    def print_line(line: str) -> None:
        if speaks:
            print(line, file=sys.stderr if flags.json else sys.stdout, flush=True)

    # after the flags: torch takes seconds to import
    from neo_peft.decoding import evaluate, score
    from neo_peft.runs.generation import evaluate_generated

    tuned, instruction = load_run(flags) if flags.run else load_untuned_base(flags)
    task, settings = tuned.encoder.task, tuned.settings
    decode = choose_decoder(flags, tuned)
    splits = load_splits(task, settings.data, settings.protocol, settings.seed, settings.labels)
    split = choose_split(flags, splits.named())
    rows = limit_rows(splits.named()[split], settings.eval_limit)
    for note in (*tuned.notes, *splits.notes):
        print_line(f"note    {note}")
    print_line(
        f"{task.name}, {len(rows):,} rows of {split} from {settings.data} (protocol "
        f"{splits.protocol})"
    )
    print_line(f"{flags.run or settings.model}{f', decode by {decode}' if decode else ''}\n")

    answer = evaluate_generated if decode == "generate" else evaluate
    found = answer(
        tuned.model,
        tuned.encoder,
        tuned.encoder(rows),
        instruction,
        settings.batch_size,
        progress=show_progress if speaks else no_progress,
    )
    scores = score(task, rows, found.predicted)
    for line in tables.answers(task, rows[: flags.show], found.predicted, found.generated):
        print_line(line)
    print_line(tables.scores(task, scores))
    print_line("\n" + tables.per_label(task, scores))
    path = Path(flags.out) if flags.out else flags.run and flags.run / "predictions.jsonl"
    if path:
        processes.on_first_process(lambda: write_rows(path, rows, found.predicted, found.generated))
    if flags.json and speaks:
        per_label = scores.pop("per_label")
        record = {"task": task.name, "split": split, "decode": decode, "scores": scores}
        print(json.dumps(record | {"per_label": per_label}))


def choose_split(flags: argparse.Namespace, there: Collection[str]) -> str:
    """Return the name of the split to score: the flag's, else test, or validation where there is no
    test."""
    split = flags.split or reported_split(there)
    if split not in there:
        raise InputError(f"--split {split}: the data has none; it has {', '.join(there)}")
    return split


def find_run(flags: argparse.Namespace) -> Path | None:
    """Return the run's folder: the one that is named, else the newest finished one; None for an untuned base model."""
    if flags.run:
        return Path(flags.run)
    if flags.zero_shot or (flags.model and flags.task):
        return None
    return newest_run(flags.task)


def load_run(flags: argparse.Namespace) -> tuple["Tuned", str]:
    """Load a run with the settings in its run.json, except for those that the flags give; it needs
    no instruction."""
    from neo_peft.runs.loading import load

    if flags.zero_shot:
        raise InputError("--zero-shot scores an untuned model: name --task and --model, and no run")
    if flags.task and not (flags.run / RUN).exists():
        flags.labels = own_labels(flags)
    return load(flags.run, settings_of_run(flags.run, flags)), ""


def load_untuned_base(flags: argparse.Namespace) -> tuple["Tuned", str]:
    """Load an untuned base model, its NER head seeded and untrained; return it with the instruction for
    its texts."""
    if not (flags.task and flags.model):
        raise InputError("an untuned base model needs both --task and --model")
    from neo_peft.runs.loading import load_untuned

    flags.labels = own_labels(flags)
    settings = make_settings(method="head", **given(flags, OF_AN_ADAPTER))
    tuned = load_untuned(changed(settings, flags))
    with_instruction = flags.zero_shot and tuned.model.head is None
    return tuned, tuned.encoder.task.instruction if with_instruction else ""


def own_labels(flags: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the labels of a user's own rows, where no run has written them down."""
    if flags.labels or not flags.data:
        return flags.labels
    return load_splits(get_task(flags.task), flags.data, flags.protocol or "clean").labels


def choose_decoder(flags: argparse.Namespace, tuned: "Tuned") -> str | None:
    """Return how a language model answers, "labels" or "generate"; None for a head, which decodes
    nothing."""
    if tuned.model.head is None:
        return flags.decode or "labels"
    if flags.decode:
        raise InputError(
            f"--decode {flags.decode}: this model reads its answers by a head, which has nothing "
            "to decode"
        )
    return None
