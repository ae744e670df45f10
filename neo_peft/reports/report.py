"""Write the report, a page on finished runs: scores, curves, wrong predictions, cost and recipe.

The page is one HTML file. It has no scripts and loads no other files. `markup.py` escapes all text
from a run's files.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template

from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.reports import browse
from neo_peft.reports.markup import (
    Html,
    element,
    escaped,
    html_table,
    joined,
    name_list,
    note,
    section,
)
from neo_peft.runs.bootstrap import Interval, intervals
from neo_peft.runs.curves import as_svg, draw_loss, draw_validation, read_metrics
from neo_peft.runs.folder import (
    METRICS,
    RUN,
    TIMINGS,
    check_unchanged,
    read_finished_run,
    refuse_unfinished,
    short_name,
)
from neo_peft.runs.predictions import (
    PredictionKind,
    prediction_kinds,
    read_predictions,
    reported_split,
)
from neo_peft.runs.tables import number, shown_name
from neo_peft.settings import flag_name
from neo_peft.system.files import write_text
from neo_peft.tasks import Task

TEMPLATE = ASSETS / "report.html"
AFTER = PredictionKind("after")
# Errors that a run.json with wrong content can cause; its checksum can still be right.
BAD_RECORD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write_report(folders: list[Path], out: Path) -> None:
    """Write the page on finished runs. Raises InputError for a folder without a finished run."""
    refuse_other_file(out)
    runs, articles = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
            articles.append(article(runs[-1], f"run-{len(runs)}"))
        except BAD_RECORD as error:
            raise InputError(
                f"{folder} has no valid results of a run: {type(error).__name__}, {error}"
            ) from None
    title = folders[0]
    if len(runs) > 1:
        title = f"comparison of {len(runs)} runs"
        articles.insert(0, comparison(runs))
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    write_text(out, template.substitute(title=escaped(title), body=joined(articles)))


def refuse_other_file(out: Path) -> None:
    """Raise InputError if the page would replace a file that is not a report."""
    if out.is_file() and b"<title>neo_peft report" not in out.read_bytes()[:1000]:
        raise InputError(
            f"{out} exists and is not a report, so it is not replaced; name another --out"
        )


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path  # the run's folder
    record: dict  # run.json
    task: Task  # its task
    metrics: list[dict]  # the lines of metrics.jsonl
    # the 95 % interval of each metric: {kind of predictions: {split: {metric: interval}}}
    ranges: dict[PredictionKind, dict[str, dict[str, Interval]]]


def read_run(folder: Path) -> Run:
    """Load what the page shows of a run.

    Raises InputError if the run is not finished or if one of its files was changed.
    """
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        runs_inside = sorted(folder.glob(f"*/{RUN}"))  # a study's folder has some
        advice = f"; name runs inside it, such as {runs_inside[0].parent}" if runs_inside else ""
        raise InputError(f"{folder} has no {RUN}: a report needs finished runs{advice}")
    record, task = read_finished_run(folder)

    def ranges_of(kind: PredictionKind, split: str) -> dict[str, Interval]:
        rows = read_predictions(folder, kind, split)
        return intervals(task, rows, [[row["predicted"] for row in rows]])

    ranges = {
        kind: {split: ranges_of(kind, split) for split in kind.scores(record)}
        for kind in prediction_kinds(record)
        # in older runs the majority class has no predictions
        if str(kind.path("validation")) in record["files"]
    }
    metrics = read_metrics(check_unchanged(folder, record, METRICS))
    return Run(folder, record, task, metrics, ranges)


def article(run: Run, name: str) -> Html:
    """Return the part of the page on one run. It shows errors on test, else on validation."""
    split = reported_split(run.ranges[AFTER])
    scores, rows = AFTER.scores(run.record)[split], read_predictions(run.folder, AFTER, split)
    by_class, wrong = browse.by_label, browse.wrong_labels
    if run.task.is_tagging:
        by_class, wrong = browse.by_type, browse.wrong_entities
    return element(
        "article",
        heading(run),
        score_section(run),
        curve_section(run),
        by_class(run.task, scores, split),
        wrong(run.task, rows, split),
        cost_section(run),
        recipe_section(run),
        id=name,
    )


def heading(run: Run) -> Html:
    """Return a line on the run's settings, the verdict, and the run's warnings."""
    # after the flags: torch takes seconds to import
    from neo_peft.runs.summary import kept_moment
    from neo_peft.runs.verdict import verdict_line

    record, flags = run.record, run.record["flags"]
    protocol = "" if record["protocol"] == "single" else f", protocol {record['protocol']}"
    about = (
        f"{flags['method']} on {short_name(record['model'])}, {record['rows']['train']:,} rows of "
        f"{short_name(record['data'])}{protocol}; kept after {kept_moment(record)}, of "
        f"{flags['epochs']} epochs; seed {record['seed']}"
    )
    return element(
        "header",
        element("h2", f"{run.task.name}, {flags['method']}"),
        element("p", run.folder, class_="folder"),
        element("p", about, class_="what"),
        element("p", verdict_line(run.task, record), class_="verdict"),
        *(element("p", f"Warning: {line}", class_="warning") for line in record["warnings"]),
    )


def score_section(run: Run) -> Html:
    """Return a table for each split: scores of the baselines, before and after tuning."""
    kinds, tables = prediction_kinds(run.record), []
    for split, ranges in run.ranges[AFTER].items():
        lines = [
            [shown_name(run.task, name), *(score_cell(run, kind, split, name) for kind in kinds)]
            for name in ranges
        ]
        if run.record["generated"]:
            unanswered = [kind.scores(run.record)[split]["unanswered"] for kind in kinds]
            lines.append(["unanswered", *unanswered])
        head = element("h4", f"{split}, {run.record['rows'][split]:,} rows")
        table = html_table(["", *(kind.title for kind in kinds)], lines, "scores")
        tables.append(element("div", head, table))
    about = (
        "Below each score is its 95 % bootstrap interval: how far the choice of these rows could "
        "move it."
    )
    return section("Scores", *tables, note(about))


def score_cell(run: Run, kind: PredictionKind, split: str, metric: str) -> Html:
    """Return a cell with a score, its interval, and a bar from 0 to 1 that shows both."""
    value = kind.scores(run.record)[split][metric]
    if kind not in run.ranges:
        return element("td", number(value))
    low, high = run.ranges[kind][split][metric]
    at, start, end = (f"{100 * max(0, x):.1f}%" for x in (value, low, high))
    bar = element("i", style=f"--at:{at};--low:{start};--high:{end}")
    return element("td", number(value), element("small", f"{low:.3f}–{high:.3f}"), bar)


def comparison(runs: list[Run]) -> Html:
    """Return a table of several runs: the score after tuning by the metric of each run's task."""
    splits = dict.fromkeys(split for run in runs for split in run.ranges[AFTER])
    lines = []
    for index, run in enumerate(runs, start=1):
        record, metric = run.record, run.task.metric
        about = element("small", f"{run.task.name}, {record['flags']['method']}")
        line = [joined([element("a", run.folder, href=f"#run-{index}"), about])]
        line.append(shown_name(run.task, metric))
        for split in splits:
            has_split = split in run.ranges[AFTER]
            line.append(score_cell(run, AFTER, split, metric) if has_split else "–")
        lines.append([*line, f"{percent(record):.3g} %", f"{record['seconds']:,.0f}"])
    header = ["run", "metric", *splits, "trained parameters", "seconds"]
    return element("article", section("Comparison", html_table(header, lines, "scores")))


def curve_section(run: Run) -> Html:
    """Return the plots of the losses and of the validation scores."""
    loss = as_svg(draw_loss, run.metrics)
    scores = as_svg(draw_validation, run.metrics, run.task)
    figures = element("figure", Html(loss)), element("figure", Html(scores))
    return section("Learning curves", element("div", *figures, class_="columns"))


def cost_section(run: Run) -> Html:
    """Return the number of trained parameters, the file size, and the time and memory used."""
    record, speed = run.record, tokens_per_second(run)
    peak = record.get("memory", {}).get("peak_bytes")
    weights = [name for name in record["files"] if name.endswith(".safetensors")]
    stored = sum((run.folder / name).stat().st_size for name in weights)
    shown = {
        "parameters": f"{record['trainable']:,} of {record['total']:,}, {percent(record):.4g} %",
        "on disk": f"{stored / 1e6:,.2f} MB; the full model in fp32: "
        f"{4 * record['base']['parameters'] / 1e6:,.2f} MB",
        "time": f"{record['seconds']:,.0f} seconds, with loading and scoring",
        "tokens per second": "–" if speed is None else f"{speed:,.0f} in training",
        "peak memory": "–" if peak is None else f"{peak / 1e6:,.0f} MB",
        "hardware": f"{record['precision']} on {record['device']}, threads {record['threads']}, "
        f"processes {record['processes']}",
    }
    return section("Parameters, time and memory", name_list(shown))


def percent(record: dict) -> float:
    """Return the share of trained parameters, in percent."""
    return 100 * record["trainable"] / record["total"]


def tokens_per_second(run: Run) -> float | None:
    """Return the speed of training, or None if it is unknown.

    The first step of each epoch and after each scoring is left out: the time before it is not that
    of training alone.
    """
    text = check_unchanged(run.folder, run.record, TIMINGS).read_text(encoding="utf-8")
    epochs = {line["step"]: line["epoch"] for line in run.metrics if "loss" in line}
    scored = {line["step"] for line in run.metrics if "validation" in line}
    tokens = seconds = 0
    for previous, line in pairwise(map(json.loads, text.splitlines())):
        before = previous["step"]
        if epochs[before] == epochs[line["step"]] and before not in scored:
            tokens += line["tokens"]
            seconds += line["seconds"] - previous["seconds"]
    return tokens / seconds if seconds > 0 else None


def recipe_section(run: Run) -> Html:
    """Return all that is needed to repeat the run."""
    record = run.record
    shown = {
        "base": f"{short_name(record['model'])}, fingerprint {record['base']['fingerprint']}",
        "seed": record["seed"],
        "finished": record["finished"],
        "commit": record["commit"] or "–",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    lines = [
        [flag_name(name), value, "assumed" if name in record["assumed"] else ""]
        for name, value in record["flags"].items()
    ]
    summary = element("summary", element("b", "all flags"))
    flags = element("details", summary, html_table(["flag", "value", ""], lines, "flags"))
    return section("Recipe", name_list(shown), flags)
