"""Say which of two finished runs is better, or that chance alone could do it: python -m neo_peft compare RUN RUN

Both answered the same rows, after tuning, by rank; `uncertainty.py` draws the rows again and again. That is the
chance of which rows were asked; what another seed would have trained is not in it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from neo_peft import tables
from neo_peft.errors import InputError
from neo_peft.flags import OneLineParser, argument
from neo_peft.predictions import path_of, read_predictions
from neo_peft.runs import RUN, read_record, recorded_settings, refuse_unfinished
from neo_peft.settings import filled, task_of
from neo_peft.tasks import Task


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m neo_peft compare", allow_abbrev=False,
        description="Compare what two finished runs answered on the same rows: scores, difference, what chance does.",
    )  # fmt: skip
    parser.add_argument("runs", nargs=2, metavar="RUN", type=argument(filled), help="a run's folder")
    parser.add_argument(
        "--split", metavar="NAME", type=argument(filled),
        help="validation, test or another that there is (default: test, else validation)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    runs = [Path(folder) for folder in flags.runs]
    task = task_of_both(runs)
    split = flags.split or usual_split(runs[0])
    rows, *predicted = rows_of_both(task, runs, split)
    from neo_peft.uncertainty import intervals, paired

    compared = paired(task, rows, *predicted)
    of_each = [intervals(task, rows, answers) for answers in predicted]
    for name, found in compared.items():
        found |= {f"{run}_interval": of_run[name] for run, of_run in zip("ab", of_each, strict=True)}
    if flags.json:
        shown = {"task": task.name, "split": split, "rows": len(rows), "a": str(runs[0]), "b": str(runs[1])}
        print(json.dumps(shown | {"better": better(compared[task.metric]), "measures": compared}))
        return
    kind = "sentences" if task.tags_words else "rows"
    print(f"{task.name}, {len(rows):,} {kind} of {split}; a is {runs[0]}, b is {runs[1]}; in brackets 95 % intervals\n")
    print(as_table(task, compared) + "\n")
    print(verdict(task, compared[task.metric], runs))


def task_of_both(runs: list[Path]) -> Task:
    """Take the task of two runs; refuse two of different ones."""
    tasks = []
    for run in runs:
        if not run.is_dir():
            raise InputError(f"there is no run folder {run}")
        refuse_unfinished(run)
        tasks.append(task_of(recorded_settings(run / RUN, read_record(run)["flags"])))
    names, labels = [task.name for task in tasks], [", ".join(task.labels) for task in tasks]
    for what, (a, b) in {"tasks": names, "labels": labels}.items():
        if a != b:
            raise InputError(f"{runs[0]} and {runs[1]} have different {what}: {a} and {b}; compare runs of one task")
    return tasks[0]


def usual_split(run: Path) -> str:
    """Take test; of a run without one, validation."""
    return "test" if str(path_of(Path(), "after", "test")) in read_record(run)["files"] else "validation"


def rows_of_both(task: Task, runs: list[Path], split: str) -> tuple[list[dict], list, list]:
    """Read the rows of a split that two runs answered, and what each said; refuse rows that are not the same."""
    answered = [read_predictions(run, "after", split) for run in runs]
    rows, others = ([{field: row[field] for field in task.fields} for row in part] for part in answered)
    if rows != others:
        differ = f"{len(rows):,} and {len(others):,} rows"
        if len(rows) == len(others):
            differ = f"row {next(n for n, (a, b) in enumerate(zip(rows, others), 1) if a != b)} is the first to differ"
        raise InputError(
            f"{runs[0]} and {runs[1]} answered different rows of {split}: {differ}; compare runs on the same data, "
            "with the same --protocol and --eval-limit"
        )
    return rows, *([row["predicted"] for row in part] for part in answered)


def better(found: dict) -> str | None:
    """Say which run is better, None where the interval of the difference holds zero."""
    return "b" if found["low"] > 0 else "a" if found["high"] < 0 else None


def as_table(task: Task, compared: dict[str, dict]) -> str:
    rows = []
    for name, found in compared.items():
        scores = ["{:.3f} [{:.3f}, {:.3f}]".format(found[run], *found[f"{run}_interval"]) for run in "ab"]
        difference = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        rows.append([tables.shown_name(task, name), *scores, difference, shown_p(found["p"])])
    return tables.table(["", "a", "b", "b - a", "p"], rows)


def shown_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(task: Task, found: dict, runs: list[Path]) -> str:
    """Say in one sentence what the comparison comes to, by the task's own measure."""
    name, difference = tables.shown_name(task, task.metric), abs(found["difference"])
    near, far = sorted((abs(found["low"]), abs(found["high"])))
    if winner := better(found):
        return (
            f"{runs['ab'.index(winner)]} is better: its {name} is {difference:.3f} higher, by {near:.3f} to {far:.3f} "
            f"at 95 % confidence, p {shown_p(found['p'])}."
        )
    if found["low"] == found["high"]:
        return f"There is no difference: {name} is {found['a']:.3f} in both, whichever rows are drawn."
    return (
        f"Chance alone could do it: {name} differs by {found['difference']:+.3f}, which drawing the rows again moves "
        f"between {found['low']:+.3f} and {found['high']:+.3f}, p {shown_p(found['p'])}."
    )
