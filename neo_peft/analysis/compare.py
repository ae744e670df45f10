"""Compare two finished runs: which one is better, or whether chance alone could explain it.

Both runs must have predicted the same rows after tuning. The bootstrap (`runs/bootstrap.py`) shows
how far the choice of these rows could move the scores. It does not show what another seed would
have trained.

A study can stand in the place of a run. Then its scores are means over the seeds of the value that
was best on validation.
"""

from pathlib import Path
from typing import NamedTuple

from neo_peft.analysis.plan import PLAN, RESULTS, read_plan, value_name
from neo_peft.errors import InputError
from neo_peft.runs import tables
from neo_peft.runs.bootstrap import (
    FEWEST,
    count_differing,
    data_fields,
    intervals,
    paired,
    same_rows,
)
from neo_peft.runs.folder import finished, read_record, refuse_unfinished
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.system.files import read_checked_json
from neo_peft.tasks import Task


class Candidate(NamedTuple):
    """One of the two sides of a comparison.

    folder: the run or study that was named.
    runs: the run itself, or the study's runs with its best value.
    about: of a study its best value and the number of seeds, in brackets.
    """

    folder: Path
    runs: list[Path]
    about: str = ""


class Comparison(NamedTuple):
    """Two sides' scores on the same rows.

    task, split: what the rows are of.
    rows: how many there are.
    differ: how many of them not all runs of both sides predicted alike.
    sides: a and b.
    measures: for each metric what `bootstrap.paired` returns, with `a_interval` and `b_interval`.
    """

    task: Task
    split: str
    rows: int
    differ: int
    sides: tuple[Candidate, Candidate]
    metrics: dict[str, dict]

    @property
    def of_task(self) -> dict:
        """The measure of the task's metric."""
        return self.metrics[self.task.metric]


def compare(folder_a: Path, folder_b: Path, split: str | None = None) -> Comparison:
    """Compare two runs or studies on a split: test, or validation where the first run has no test.

    Raises InputError where the two are of different tasks or predicted different rows.
    """
    sides = side_of(folder_a), side_of(folder_b)
    runs = sides[0].runs + sides[1].runs
    task = task_of_all(runs)
    split = split or usual_split(runs[0])
    rows, answers = rows_of_all(task, runs, split)
    count = len(sides[0].runs)
    of_sides = answers[:count], answers[count:]
    metrics = paired(task, rows, *of_sides)
    for side, of_side in zip("ab", of_sides):
        for name, interval in intervals(task, rows, of_side).items():
            metrics[name][f"{side}_interval"] = interval
    return Comparison(task, split, len(rows), count_differing(*of_sides), sides, metrics)


def as_json(found: Comparison) -> dict:
    """Return the object that `--json` prints."""
    shown = {
        "task": found.task.name,
        "split": found.split,
        "rows": found.rows,
        "rows_that_differ": found.differ,
    }
    for name, side in zip("ab", found.sides):
        shown |= {name: str(side.folder), f"{name}_runs": list(map(str, side.runs))}
    return shown | {"better": better(found), "metrics": found.metrics}


def as_text(found: Comparison) -> str:
    """Return what was compared, the table of all metrics, and the conclusion."""
    kind = "sentences" if found.task.tags_words else "rows"
    a, b = (f"{side.folder}{side.about}" for side in found.sides)
    head = (
        f"{found.task.name}, {found.rows:,} {kind} of {found.split}; a is {a}, b is {b}; in "
        "brackets 95 % intervals"
    )
    return "\n\n".join([head, metric_table(found), conclusion(found)])


def side_of(folder: Path) -> Candidate:
    """Return a run as it is, or the runs of a study's value that was best on validation."""
    if not (folder / PLAN).is_file():
        return Candidate(folder, [folder])
    plan = read_plan(folder)
    if not (folder / RESULTS).is_file():
        raise InputError(
            f"{folder} is a study that was not finished; go on with it: python -m neo_peft study "
            f"--resume {folder}"
        )
    results = read_checked_json(folder / RESULTS)
    try:
        best = {name: block["best"] for name, block in results["protocols"].items()}
        ended = set(results["runs"])
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
    return Candidate(folder, runs, about)


def task_of_all(runs: list[Path]) -> Task:
    """Return the task of the runs. Raises InputError where tasks or labels differ."""
    first = None
    for run in runs:
        if not run.is_dir():
            raise InputError(f"there is no run folder {run}")
        refuse_unfinished(run)
        _, task = finished(run)
        first = first or task
        for what, a, b in (
            ("tasks", first.name, task.name),
            ("labels", ", ".join(first.labels), ", ".join(task.labels)),
        ):
            if a != b:
                raise InputError(
                    f"{runs[0]} and {run} have different {what}: {a} and {b}; compare runs of one "
                    "task"
                )
    return first


def usual_split(run: Path) -> str:
    """Return test, or validation where the run has no predictions of test."""
    files = read_record(run)["files"]
    return reported_split({Path(name).stem.removeprefix("after-") for name in files})


def rows_of_all(task: Task, runs: list[Path], split: str) -> tuple[list[dict], list[list]]:
    """Return the rows of a split, and what each run predicted. Raises InputError where the rows of
    two runs differ."""
    answered = [read_predictions(run, PredictionKind("after"), split) for run in runs]
    if same := same_rows(task, answered):
        return same
    first, *others = (data_fields(task, rows) for rows in answered)
    run, rows = next((run, rows) for run, rows in zip(runs[1:], others) if rows != first)
    if len(rows) == len(first):
        number = next(n for n, (a, b) in enumerate(zip(first, rows), 1) if a != b)
        differ = f"row {number} is the first to differ"
    else:
        differ = f"{len(first):,} and {len(rows):,} rows"
    raise InputError(
        f"{runs[0]} and {run} answered different rows of {split}: {differ}; compare runs on the "
        "same data, with the same --protocol and --eval-limit, and with the same seed where it "
        "draws the split: a validation.jsonl draws none"
    )


def better(found: Comparison) -> str | None:
    """Return the side that is better by the task's metric, "a" or "b".

    It is None where the interval of the difference contains zero, or where too few rows differ.
    """
    if found.differ < FEWEST:
        return None
    return "b" if found.of_task["low"] > 0 else "a" if found.of_task["high"] < 0 else None


def metric_table(found: Comparison) -> str:
    """Return the table of all metrics."""
    lines = []
    for name, of in found.metrics.items():
        line = [tables.shown_name(found.task, name)]
        for side in "ab":
            low, high = of[f"{side}_interval"]
            line.append(f"{of[side]:.3f} [{low:.3f}, {high:.3f}]")
        line.append(f"{of['difference']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]")
        lines.append([*line, shown_p(of["p"])])
    return tables.table(["", "a", "b", "b - a", "p"], lines)


def shown_p(p: float) -> str:
    """Return a p-value as text."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def conclusion(found: Comparison) -> str:
    """Return the result of the comparison by the task's metric, in one sentence."""
    name = tables.shown_name(found.task, found.task.metric)
    difference, low, high = (found.of_task[key] for key in ("difference", "low", "high"))
    p = shown_p(found.of_task["p"])
    if winner := better(found):
        near, far = sorted((abs(low), abs(high)))
        return (
            f"{found.sides['ab'.index(winner)].folder} is better: its {name} is "
            f"{abs(difference):.3f} higher, by {near:.3f} to {far:.3f} at 95 % confidence, p {p}."
        )
    if low == high:
        return (
            f"There is no difference: {name} is {found.of_task['a']:.3f} in both, whichever rows "
            "are drawn."
        )
    if low > 0 or high < 0:
        rows = f"{found.differ} row{'s' if found.differ > 1 else ''}"
        return (
            f"{name} differs by {difference:+.3f}, on {rows} alone: too few to tell which is "
            "better."
        )
    return (
        f"Chance alone could do it: {name} differs by {difference:+.3f}, which drawing the rows "
        f"again moves between {low:+.3f} and {high:+.3f}, p {p}."
    )
