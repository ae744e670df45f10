"""Compare two finished runs: which one is better, or whether chance alone could explain it.

Both runs must have predicted the same rows after tuning. The bootstrap (`runs/bootstrap.py`) shows
how much the scores depend on the choice of these rows. It does not show how much they depend on the
seed.

A study can be compared like a run. Then its scores are means over the seeds of the value that was
best on validation.
"""

from pathlib import Path
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.runs import tables
from neo_peft.runs.bootstrap import (
    MIN_DIFFERING,
    count_differing,
    data_fields,
    intervals,
    paired,
    same_rows,
)
from neo_peft.runs.folder import read_finished_run, read_record, refuse_unfinished
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.studies.plan import PLAN, RESULTS, read_plan
from neo_peft.studies.variants import value_name
from neo_peft.system.files import read_checked_json
from neo_peft.tasks import Task


class Candidate(NamedTuple):
    """One of the two sides of a comparison."""

    folder: Path  # the run or study
    runs: list[Path]  # the run itself, or the study's runs with its best value
    about: str = ""  # of a study: its best value and the number of seeds, in brackets


class Comparison(NamedTuple):
    """The scores of two sides on the same rows."""

    task: Task  # the task of all runs
    split: str  # the split whose rows are compared
    rows: int  # number of rows
    differ: int  # number of rows for which the runs do not all predict the same
    sides: tuple[Candidate, Candidate]  # a and b
    metrics: dict[str, dict]  # of each metric: `paired` plus "a_interval" and "b_interval"

    @property
    def main_metric(self) -> dict:
        """The comparison by the task's own metric."""
        return self.metrics[self.task.metric]


def compare(folder_a: Path, folder_b: Path, split: str | None = None) -> Comparison:
    """Compare two runs or studies on a split: test, or validation if the first run has no test.

    Raises InputError if the two have different tasks or predicted different rows.
    """
    sides = candidate(folder_a), candidate(folder_b)
    runs = sides[0].runs + sides[1].runs
    task = common_task(runs)
    split = split or default_split(runs[0])
    rows, predicted = common_rows(task, runs, split)
    count = len(sides[0].runs)
    predicted_ab = predicted[:count], predicted[count:]
    metrics = paired(task, rows, *predicted_ab)
    for side, predicted_by_side in zip("ab", predicted_ab):
        for name, interval in intervals(task, rows, predicted_by_side).items():
            metrics[name][f"{side}_interval"] = interval
    return Comparison(task, split, len(rows), count_differing(*predicted_ab), sides, metrics)


def as_json(comparison: Comparison) -> dict:
    """Return the object that `--json` prints."""
    shown = {
        "task": comparison.task.name,
        "split": comparison.split,
        "rows": comparison.rows,
        "rows_that_differ": comparison.differ,
    }
    for name, side in zip("ab", comparison.sides):
        shown |= {name: str(side.folder), f"{name}_runs": list(map(str, side.runs))}
    return shown | {"better": better(comparison), "metrics": comparison.metrics}


def as_text(comparison: Comparison) -> str:
    """Return what was compared, the table of all metrics, and the conclusion."""
    kind = "sentences" if comparison.task.is_tagging else "rows"
    a, b = (f"{side.folder}{side.about}" for side in comparison.sides)
    head = (
        f"{comparison.task.name}, {comparison.rows:,} {kind} of {comparison.split}; a is {a}, b is "
        f"{b}; 95 % intervals in brackets"
    )
    return "\n\n".join([head, metric_table(comparison), conclusion(comparison)])


def candidate(folder: Path) -> Candidate:
    """Return a run, or the runs of a study with the value that was best on validation."""
    if not (folder / PLAN).is_file():
        return Candidate(folder, [folder])
    plan = read_plan(folder)
    if not (folder / RESULTS).is_file():
        raise InputError(
            f"{folder} is a study that is not finished; resume it: python -m neo_peft study "
            f"--resume {folder}"
        )
    results = read_checked_json(folder / RESULTS)
    try:
        best = {name: block["best"] for name, block in results["protocols"].items()}
        with_result = set(results["runs"])
        choices = {recipe: found["chosen"] for recipe, found in results.get("choices", {}).items()}
    except (KeyError, TypeError, AttributeError):
        best, with_result, choices = {}, set(), {}
    if len(best) > 1:
        raise InputError(
            f"{folder} is a study with the protocols {' and '.join(best)}; compare single runs in "
            "it"
        )
    planned = [
        run["name"]
        for run in plan["runs"]
        if [run["value"]] == list(best.values()) and run.get("choice") == choices.get(run["value"])
    ]
    runs = [folder / name for name in planned if name in with_result]  # a diverged run has none
    if not runs:
        raise InputError(
            f"{folder / RESULTS} is not a study's results file; write it again: python -m neo_peft "
            f"study --resume {folder}"
        )
    count = f"{len(runs)} of {len(planned)}" if len(runs) < len(planned) else len(runs)
    about = (
        f" ({value_name(plan['swept'], *best.values())}, {count} "
        f"seed{'s' if len(planned) > 1 else ''})"
    )
    return Candidate(folder, runs, about)


def common_task(runs: list[Path]) -> Task:
    """Return the task of all runs. Raises InputError if tasks or labels differ."""
    first = None
    for run in runs:
        if not run.is_dir():
            raise InputError(f"there is no run folder {run}")
        refuse_unfinished(run)
        _, task = read_finished_run(run)
        first = first or task
        for name, a, b in (
            ("tasks", first.name, task.name),
            ("labels", ", ".join(first.labels), ", ".join(task.labels)),
        ):
            if a != b:
                raise InputError(
                    f"{runs[0]} and {run} have different {name}: {a} and {b}; compare runs of one "
                    "task"
                )
    return first


def default_split(run: Path) -> str:
    """Return "test", or "validation" if the run has no predictions on test."""
    files = read_record(run)["files"]
    return reported_split({Path(name).stem.removeprefix("after-") for name in files})


def common_rows(task: Task, runs: list[Path], split: str) -> tuple[list[dict], list[list]]:
    """Return the rows of a split, and the predictions of each run on them.

    Raises InputError if two runs have predicted different rows.
    """
    rows_of_runs = [read_predictions(run, PredictionKind("after"), split) for run in runs]
    if same := same_rows(task, rows_of_runs):
        return same
    first, *others = (data_fields(task, rows) for rows in rows_of_runs)
    run, rows = next((run, rows) for run, rows in zip(runs[1:], others) if rows != first)
    if len(rows) == len(first):
        number = next(n for n, (a, b) in enumerate(zip(first, rows), 1) if a != b)
        difference = f"the first difference is in row {number}"
    else:
        difference = f"{len(first):,} and {len(rows):,} rows"
    raise InputError(
        f"{runs[0]} and {run} predicted different rows of {split}: {difference}; compare runs with "
        "the same --data, --protocol and --eval-limit, and with the same --seed if the data has no "
        "validation file"
    )


def better(comparison: Comparison) -> str | None:
    """Return the side that is better by the task's metric, "a" or "b".

    Return None if the interval of the difference contains zero, or if too few rows differ.
    """
    if comparison.differ < MIN_DIFFERING:
        return None
    metric = comparison.main_metric
    return "b" if metric["low"] > 0 else "a" if metric["high"] < 0 else None


def metric_table(comparison: Comparison) -> str:
    """Return the table of all metrics."""
    lines = []
    for name, metric in comparison.metrics.items():
        line = [tables.shown_name(comparison.task, name)]
        for side in "ab":
            low, high = metric[f"{side}_interval"]
            line.append(f"{metric[side]:.3f} [{low:.3f}, {high:.3f}]")
        line.append(f"{metric['difference']:+.3f} [{metric['low']:+.3f}, {metric['high']:+.3f}]")
        lines.append([*line, shown_p(metric["p"])])
    return tables.table(["", "a", "b", "b - a", "p"], lines)


def shown_p(p: float) -> str:
    """Return a p-value as text."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def conclusion(comparison: Comparison) -> str:
    """Return the result of the comparison by the task's metric, in one sentence."""
    name = tables.shown_name(comparison.task, comparison.task.metric)
    metric = comparison.main_metric
    difference, low, high = (metric[key] for key in ("difference", "low", "high"))
    p = shown_p(metric["p"])
    if winner := better(comparison):
        near, far = sorted((abs(low), abs(high)))
        return (
            f"{comparison.sides['ab'.index(winner)].folder} is better: its {name} is "
            f"{abs(difference):.3f} higher, 95 % interval {near:.3f} to {far:.3f}, p {p}."
        )
    if low == high == 0:
        return (
            f"There is no difference: {name} is {metric['a']:.3f} in both, and equal in every "
            "bootstrap resample."
        )
    if low > 0 or high < 0:
        rows = f"{comparison.differ} row{'s' if comparison.differ > 1 else ''}"
        return (
            f"{name} differs by {difference:+.3f}, but the predictions differ in {rows} only: too "
            "few to tell which is better."
        )
    return (
        f"Chance alone could explain the difference: {name} differs by {difference:+.3f}, 95 % "
        f"interval {low:+.3f} to {high:+.3f}, p {p}."
    )
