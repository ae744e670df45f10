"""Score a run again from its folder, or a bare base model: python -m neo_peft evaluate
runs/ner-lora --split test, or python evaluate.py in a checkout."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft import processes
from neo_peft.commands.flags import (
    OneLineParser,
    add_choice,
    add_run_flags,
    argument,
    changed,
    of_an_adapter,
)
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.errors import InputError
from neo_peft.progress import no_progress, show_progress
from neo_peft.runs import tables
from neo_peft.runs.folder import RUN, newest_run
from neo_peft.runs.predictions import reported_split, write_answers
from neo_peft.settings import filled, make_settings, whole
from neo_peft.tasks import get_task

if TYPE_CHECKING:
    from neo_peft.decoding import Evaluation
    from neo_peft.runs.loading import Tuned

PROG = "python -m neo_peft evaluate"


def parse_flags(argv: Sequence[str], prog: str = PROG) -> argparse.Namespace:
    """Read the flags; refuse an --out that cannot be written."""
    parser = OneLineParser(
        prog=prog,
        description="Score a run again from its folder, or a bare base model: "
        "%(prog)s runs/ner-lora --split test",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        type=argument(filled),
        help="a run folder (default: the newest finished one in runs/)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        type=argument(filled),
        help="train, validation, test or another that there is (default: test, else validation)",
    )
    add_choice(parser, "--decode", ("rank", "generate"), "how an answer is read (default: rank)")
    parser.add_argument(
        "--zero-shot", action="store_true", help="score the untuned model, the instruction in front"
    )
    parser.add_argument(
        "--show", metavar="N", type=argument(whole(1)), default=0, help="print the first N answers"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=argument(filled),
        help="write the answers here (default: RUN/predictions.jsonl)",
    )
    again = add_run_flags(parser)
    again.add_argument(
        "--data",
        type=argument(filled),
        help="sample, hub, or a folder: your own rows, or original files",
    )
    add_choice(again, "--protocol", ("clean", "paper"), "PhraseBank's split")
    again.add_argument(
        "--eval-limit",
        metavar="N",
        type=argument(whole(1)),
        help="score this many rows, evenly spaced",
    )
    flags = parser.parse_args(argv)
    refuse_out(flags.out)
    return flags


def refuse_out(out: str | None) -> None:
    """Refuse a file that cannot be written, before minutes of scoring."""
    path = Path(out or ".").resolve()
    if out and path.exists() and not path.is_file():
        raise InputError(f"--out {out} is no plain file, and is not replaced by one; name a file")
    if not path.parent.is_dir():
        raise InputError(
            f"--out {out}: {Path(out).parent} is no folder; make it first, or name another"
        )


def main(argv: Sequence[str], prog: str = PROG) -> None:
    """Score a run, or a bare base model, and print the scores."""
    flags = processes.on_first_process(lambda: parse_flags(argv, prog))
    folder = processes.on_first_process(lambda: find_run(flags))
    speaks = processes.process_index == 0
    say = (
        partial(print, file=sys.stderr if flags.json else sys.stdout, flush=True)
        if speaks
        else lambda line: None
    )

    from neo_peft.decoding import score  # after the flags: torch takes seconds to import

    tuned, instruction = load_bare(flags) if folder is None else (load_run(flags, folder), "")
    task, settings = tuned.encoder.task, tuned.settings
    decode = choose_decoder(flags, tuned)
    splits = load_splits(task, settings.data, settings.protocol, settings.seed, settings.labels)
    split = choose_split(flags, splits.named())
    rows = limit_rows(splits.named()[split], settings.eval_limit)
    for note in (*tuned.notes, *splits.notes):
        say(f"note    {note}")
    say(
        f"{task.name}, {len(rows):,} rows of {split} from {settings.data} (protocol "
        f"{splits.protocol})"
    )
    say(f"{folder or settings.model}{f', decode by {decode}' if decode else ''}\n")

    found = answer(tuned, rows, instruction, generated=decode == "generate")
    scores = score(task, rows, found.predicted)
    for line in tables.answers(task, rows[: flags.show], found.predicted, found.generated):
        say(line)
    say(tables.scores(task, scores))
    say("\n" + tables.per_label(task, scores))
    path = Path(flags.out) if flags.out else folder and folder / "predictions.jsonl"
    if path:
        processes.on_first_process(
            lambda: write_answers(path, rows, found.predicted, found.generated)
        )
    if flags.json and speaks:
        per_label = scores.pop("per_label")
        record = {"task": task.name, "split": split, "decode": decode}
        print(json.dumps(record | {"scores": scores, "per_label": per_label}))


def answer(tuned: "Tuned", rows: list[dict], instruction: str, generated: bool) -> "Evaluation":
    """Answer rows by the labels' probabilities or a head, or by free generation."""
    from neo_peft.decoding import evaluate
    from neo_peft.runs.generation import evaluate_generated

    way = evaluate_generated if generated else evaluate
    return way(
        tuned.model,
        tuned.encoder,
        tuned.encoder(rows),
        instruction,
        tuned.settings.batch_size,
        progress=no_progress if processes.process_index else show_progress,
    )


def choose_split(flags: argparse.Namespace, there: dict[str, list]) -> str:
    """Return the name of the split to score: the flag's, else test, or validation where there is no
    test."""
    split = flags.split or reported_split(there)
    if split not in there:
        raise InputError(f"--split {split}: the data has none; it has {', '.join(there)}")
    return split


def find_run(flags: argparse.Namespace) -> Path | None:
    """Return the run's folder: the one that is named, else the newest finished one; None for a bare
    base model."""
    if flags.run:
        return Path(flags.run)
    if flags.zero_shot or (flags.model and flags.task):
        return None
    return newest_run(flags.task)


def load_run(flags: argparse.Namespace, folder: Path) -> "Tuned":
    """Load a run with the settings in its run.json, except for those that the flags give."""
    from neo_peft.runs.loading import load, settings_in

    if flags.zero_shot:
        raise InputError("--zero-shot scores an untuned model: name --task and --model, and no run")
    given = of_an_adapter(flags)
    if flags.task and not (folder / RUN).exists():
        given["labels"] = own_labels(flags)
    return load(folder, changed(settings_in(folder, **given), flags))


def load_bare(flags: argparse.Namespace) -> tuple["Tuned", str]:
    """Load a bare base model, its NER head seeded and untrained; return it with the instruction for
    its texts."""
    if not (flags.task and flags.model):
        raise InputError("a bare base model needs both --task and --model")
    from neo_peft.runs.loading import load_untuned

    settings = make_settings(method="head", **of_an_adapter(flags) | {"labels": own_labels(flags)})
    tuned = load_untuned(changed(settings, flags))
    with_instruction = flags.zero_shot and tuned.model.head is None
    return tuned, tuned.encoder.task.instruction if with_instruction else ""


def own_labels(flags: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the labels of a user's own rows, where no run has written them down."""
    if flags.labels or not flags.data:
        return flags.labels
    return load_splits(get_task(flags.task), flags.data, flags.protocol or "clean").labels


def choose_decoder(flags: argparse.Namespace, tuned: "Tuned") -> str | None:
    """Return how a language model answers, "rank" or "generate"; None for a head, which decodes
    nothing."""
    if tuned.model.head is None:
        return flags.decode or "rank"
    if flags.decode:
        raise InputError(
            f"--decode {flags.decode}: this model reads its answers by a head, which has nothing "
            "to decode"
        )
    return None
