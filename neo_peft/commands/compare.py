"""Say which of two finished runs is better, or that chance alone could do it: python -m neo_peft
compare RUN RUN

Both answered the same rows, after tuning, by rank; `uncertainty.py` draws the rows again and again.
That is the chance of which rows were asked; what another seed would have trained is not in it. In
the place of a run a study's folder stands for the seeds of the value that was best on validation,
and its scores are their means.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neo_peft.analysis.plan import PLAN, RESULTS, read_plan, value_name
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.errors import InputError
from neo_peft.runs import tables
from neo_peft.runs.bootstrap import FEWEST, differing, intervals, paired
from neo_peft.runs.folder import read_record, refuse_unfinished, task_of_run
from neo_peft.runs.predictions import path_of, read_predictions
from neo_peft.settings import filled
from neo_peft.system.files import read_sealed
from neo_peft.tasks import Task


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m neo_peft compare",
        allow_abbrev=False,
        description="Compare what two runs, or two studies, answered on the same rows: scores and "
        "their difference.",
    )
    parser.add_argument(
        "runs", nargs=2, metavar="RUN", type=argument(filled), help="a run's folder, or a study's"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        type=argument(filled),
        help="validation, test or another that there is (default: test, else validation)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    sides = [side_of(Path(folder)) for folder in flags.runs]
    runs = sides[0].runs + sides[1].runs
    task = task_of_all(runs)
    split = flags.split or usual_split(runs[0])
    rows, answers = rows_of_all(task, runs, split)
    count = len(sides[0].runs)
    answers_a, answers_b = answers[:count], answers[count:]
    compared, differ = paired(task, rows, answers_a, answers_b), differing(answers_a, answers_b)
    of_each = [intervals(task, rows, of_side) for of_side in (answers_a, answers_b)]
    for name, found in compared.items():
        found |= {
            f"{side}_interval": of_side[name] for side, of_side in zip("ab", of_each, strict=True)
        }
    if flags.json:
        shown = {"task": task.name, "split": split, "rows": len(rows), "rows_that_differ": differ}
        for name, side in zip("ab", sides):
            shown |= {name: str(side.folder), f"{name}_runs": [str(run) for run in side.runs]}
        print(
            json.dumps(
                shown | {"better": better(compared[task.metric], differ), "measures": compared}
            )
        )
        return
    kind = "sentences" if task.tags_words else "rows"
    a, b = (f"{side.folder}{side.about}" for side in sides)
    print(
        f"{task.name}, {len(rows):,} {kind} of {split}; a is {a}, b is {b}; in brackets 95 % "
        "intervals\n"
    )
    print(as_table(task, compared) + "\n")
    print(verdict(task, compared[task.metric], differ, [side.folder for side in sides]))


class Side(NamedTuple):
    """One side of a comparison: the folder that was named, the runs that it stands for, and what is
    said of them."""

    folder: Path
    runs: list[Path]
    about: str = ""


def side_of(folder: Path) -> Side:
    """Take a run as it is, and of a study the runs of the value that was best on validation."""
    if not (folder / PLAN).is_file():
        return Side(folder, [folder])
    plan = read_plan(folder)
    if not (folder / RESULTS).is_file():
        raise InputError(
            f"{folder} is a study that was not finished; go on with it: python -m neo_peft study "
            f"--resume {folder}"
        )
    results = read_sealed(folder / RESULTS)
    try:
        best, ended = (
            {name: block["best"] for name, block in results["protocols"].items()},
            set(results["runs"]),
        )
    except (KeyError, TypeError, AttributeError):
        best, ended = {}, set()
    if len(best) > 1:
        raise InputError(
            f"{folder} is a study of the protocols {' and '.join(best)}; compare runs in it"
        )
    planned = [run["name"] for run in plan["runs"] if [run["value"]] == list(best.values())]
    runs = [folder / name for name in planned if name in ended]  # without those that have diverged
    if not runs:
        raise InputError(
            f"{folder / RESULTS} is no study's results; make them again: python -m neo_peft study "
            f"--resume {folder}"
        )
    count = f"{len(runs)} of {len(planned)}" if len(runs) < len(planned) else len(runs)
    about = (
        f" ({value_name(plan['swept'], *best.values())}, {count} "
        f"seed{'s' if len(planned) > 1 else ''})"
    )
    return Side(folder, runs, about)


def task_of_all(runs: list[Path]) -> Task:
    """Take the task of the runs; refuse those of different ones."""
    first = None
    for run in runs:
        if not run.is_dir():
            raise InputError(f"there is no run folder {run}")
        refuse_unfinished(run)
        task = task_of_run(run, read_record(run))
        first = first or task
        differ = [
            ("tasks", first.name, task.name),
            ("labels", ", ".join(first.labels), ", ".join(task.labels)),
        ]
        for what, a, b in differ:
            if a != b:
                raise InputError(
                    f"{runs[0]} and {run} have different {what}: {a} and {b}; compare runs of one "
                    "task"
                )
    return first


def usual_split(run: Path) -> str:
    """Take test; of a run without one, validation."""
    return (
        "test"
        if str(path_of(Path(), "after", "test")) in read_record(run)["files"]
        else "validation"
    )


def rows_of_all(task: Task, runs: list[Path], split: str) -> tuple[list[dict], list[list]]:
    """Read the rows of a split that all runs answered, and what each said; refuse rows that are not
    the same."""
    rows, answers = None, []
    for run in runs:
        answered = read_predictions(run, "after", split)
        asked = [{field: row[field] for field in task.fields} for row in answered]
        rows = asked if rows is None else rows
        if asked != rows:
            differ = f"{len(rows):,} and {len(asked):,} rows"
            if len(rows) == len(asked):
                differ = (
                    f"row {next(n for n, (a, b) in enumerate(zip(rows, asked), 1) if a != b)} "
                    "is the first to differ"
                )
            raise InputError(
                f"{runs[0]} and {run} answered different rows of {split}: {differ}; compare runs "
                "on the same data, "
                "with the same --protocol and --eval-limit, and with the same seed where it draws "
                "the split: a "
                "validation.jsonl draws none"
            )
        answers.append([row["predicted"] for row in answered])
    return rows, answers


def better(found: dict, differ: int) -> str | None:
    """Say which run is better, None where the interval of the difference holds zero, or too few
    rows differ."""
    if differ < FEWEST:
        return None
    return "b" if found["low"] > 0 else "a" if found["high"] < 0 else None


def as_table(task: Task, compared: dict[str, dict]) -> str:
    rows = []
    for name, found in compared.items():
        scores = [
            "{:.3f} [{:.3f}, {:.3f}]".format(found[run], *found[f"{run}_interval"]) for run in "ab"
        ]
        difference = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        rows.append([tables.shown_name(task, name), *scores, difference, shown_p(found["p"])])
    return tables.table(["", "a", "b", "b - a", "p"], rows)


def shown_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(task: Task, found: dict, differ: int, sides: list[Path]) -> str:
    """Say in one sentence what the comparison comes to, by the task's own measure."""
    name, difference = tables.shown_name(task, task.metric), abs(found["difference"])
    near, far = sorted((abs(found["low"]), abs(found["high"])))
    if winner := better(found, differ):
        return (
            f"{sides['ab'.index(winner)]} is better: its {name} is {difference:.3f} higher, by "
            f"{near:.3f} to {far:.3f} "
            f"at 95 % confidence, p {shown_p(found['p'])}."
        )
    if found["low"] == found["high"]:
        return (
            f"There is no difference: {name} is {found['a']:.3f} in both, whichever rows are drawn."
        )
    if found["low"] > 0 or found["high"] < 0:
        rows = f"{differ} row{'s' if differ > 1 else ''}"
        return (
            f"{name} differs by {found['difference']:+.3f}, on {rows} alone: too few to tell "
            "which is better."
        )
    return (
        f"Chance alone could do it: {name} differs by {found['difference']:+.3f}, which drawing "
        "the rows again moves "
        f"between {found['low']:+.3f} and {found['high']:+.3f}, p {shown_p(found['p'])}."
    )
