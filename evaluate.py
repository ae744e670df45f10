"""Score a run again from its folder, or a bare base model: python evaluate.py runs/ner-lora --split
test"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neo_peft import processes
from neo_peft.commands.flags import (
    OneLineParser,
    add_choice,
    add_run_flags,
    argument,
    changed,
    of_an_adapter,
)
from neo_peft.errors import InputError
from neo_peft.runs.folder import RUN, newest_run
from neo_peft.runs.predictions import reported_split
from neo_peft.settings import filled, make_settings, whole


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
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


def main(argv: Sequence[str] | None = None) -> None:
    flags = processes.decide(lambda: parse_flags(argv))
    speaks = processes.rank == 0
    say = (
        partial(print, file=sys.stderr if flags.json else sys.stdout, flush=True)
        if speaks
        else lambda line: None
    )
    folder = processes.decide(
        lambda: None if flags.zero_shot and not flags.run else find_run(flags)
    )

    from neo_peft import decoding  # after the flags: torch takes seconds to import
    from neo_peft.corpora.sources import limit_rows, load_splits
    from neo_peft.progress import no_progress, show_progress
    from neo_peft.runs import tables  # after the flags: torch takes seconds to import

    found, instruction = load_bare(flags) if folder is None else (load_run(flags, folder), "")
    task, settings = found.encoder.task, found.settings
    decode = choose_decoder(flags, found)
    splits = load_splits(task, settings.data, settings.protocol, settings.seed, settings.labels)
    split = choose_split(flags, splits.named())
    rows = limit_rows(splits.named()[split], settings.eval_limit)
    for note in (*found.notes, *splits.notes):
        say(f"note    {note}")
    say(
        f"{task.name}, {len(rows):,} rows of {split} from {settings.data} (protocol "
        f"{splits.protocol})"
    )
    say(f"{folder or settings.model}{f', decode by {decode}' if decode else ''}\n")

    evaluation = decoding.evaluate(
        found.model,
        found.encoder,
        found.encoder(rows),
        instruction,
        decode or "rank",
        settings.batch_size,
        progress=show_progress if speaks else no_progress,
    )
    predicted = (
        decoding.pad_tags(rows, evaluation.predicted) if task.tags_words else evaluation.predicted
    )
    scores = decoding.score(task, rows, predicted)
    for line in tables.answers(task, rows[: flags.show], predicted, evaluation.said):
        say(line)
    say(tables.scores(task, scores))
    say("\n" + tables.per_label(task, scores))
    processes.decide(
        lambda: write_predictions(flags, folder, task, rows, predicted, evaluation.said)
    )
    if flags.json and speaks:
        per_label = scores.pop("per_label")
        print(
            json.dumps(
                {
                    "task": task.name,
                    "split": split,
                    "decode": decode,
                    "scores": scores,
                    "per_label": per_label,
                }
            )
        )


def choose_split(flags: argparse.Namespace, there: dict[str, list]) -> str:
    """Take the split that is named, else test; of data without one, validation."""
    split = flags.split or reported_split(there)
    if split not in there:
        raise InputError(f"--split {split}: the data has none; it has {', '.join(there)}")
    return split


def find_run(flags: argparse.Namespace) -> Path | None:
    """Find the run's folder: the one that is named, else the newest finished one; None for a bare
    base model."""
    if flags.run:
        return Path(flags.run)
    if flags.model and flags.task:
        return None
    return newest_run(flags.task)


def load_run(flags: argparse.Namespace, folder: Path) -> Any:
    """Load a run; what its run.json holds is used again, except for what the flags say."""
    from neo_peft.runs.loading import load, settings_in

    if flags.zero_shot:
        raise InputError("--zero-shot scores an untuned model: name --task and --model, and no run")
    given = of_an_adapter(flags)
    if flags.task and not (folder / RUN).exists():
        given["labels"] = own_labels(flags)
    return load(folder, changed(settings_in(folder, **given), flags))


def load_bare(flags: argparse.Namespace) -> tuple[Any, str]:
    """Load a bare base model, its NER head seeded and untrained; return it with the instruction for
    its texts."""
    if not (flags.task and flags.model):
        raise InputError("a bare base model needs both --task and --model")
    from neo_peft.runs.loading import load_untuned

    settings = make_settings(method="head", **of_an_adapter(flags) | {"labels": own_labels(flags)})
    found = load_untuned(changed(settings, flags))
    return (
        found,
        found.encoder.task.instruction if flags.zero_shot and found.model.head is None else "",
    )


def own_labels(flags: argparse.Namespace) -> tuple[str, ...] | None:
    """Take the labels of a user's own rows, which no run has written down."""
    from neo_peft.corpora.sources import load_splits
    from neo_peft.tasks import get_task

    if flags.labels or not flags.data:
        return flags.labels
    return load_splits(get_task(flags.task), flags.data, flags.protocol or "clean").labels


def choose_decoder(flags: argparse.Namespace, found: Any) -> str | None:
    """A head is read, not decoded; a language model ranks the labels, or generates."""
    if found.model.head is None:
        return flags.decode or "rank"
    if flags.decode:
        raise InputError(
            f"--decode {flags.decode}: this model reads its answers by a head, which has nothing "
            "to decode"
        )
    return None


def write_predictions(
    flags: argparse.Namespace,
    folder: Path | None,
    task: Any,
    rows: list[dict],
    predicted: list,
    said: list[str] | None,
) -> None:
    """Write each row with its answer, one JSON object a line: into the run's folder, or to
    --out."""
    path = Path(flags.out) if flags.out else folder / "predictions.jsonl" if folder else None
    if path is None:
        return
    from neo_peft.runs.predictions import write_answers

    write_answers(path, rows, predicted, said)


if __name__ == "__main__":
    sys.exit(processes.run_together(main))
