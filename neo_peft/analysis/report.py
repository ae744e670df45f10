"""The page on finished runs: scores, curves, wrong predictions, cost and recipe.

The page is one file without scripts. It loads nothing. All text from a run's files is escaped by
`markup.py`.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template

from neo_peft.analysis import browse
from neo_peft.analysis.markup import (
    Html,
    element,
    escaped,
    facts,
    html_table,
    joined,
    note,
    section,
)
from neo_peft.defaults import ASSETS
from neo_peft.errors import InputError
from neo_peft.runs.bootstrap import Interval, intervals
from neo_peft.runs.curves import as_svg, draw_loss, draw_validation, read_metrics
from neo_peft.runs.folder import (
    METRICS,
    RUN,
    TIMINGS,
    finished,
    refuse_unfinished,
    short_name,
    unchanged,
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
# Errors from the record of something else than a run; its checksum may be right all the same.
NO_RECORD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write_report(folders: list[Path], out: Path) -> None:
    """Write the page on finished runs. Raises InputError for a folder that holds none."""
    refuse_other(out)
    runs, articles = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
            articles.append(article(runs[-1], f"run-{len(runs)}"))
        except NO_RECORD as error:
            raise InputError(
                f"{folder} holds no results of a run: {type(error).__name__}, {error}"
            ) from None
    title = folders[0]
    if len(runs) > 1:
        title = f"{len(runs)} runs side by side"
        articles.insert(0, comparison(runs))
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    write_text(out, template.substitute(title=escaped(title), body=joined(articles)))


def refuse_other(out: Path) -> None:
    """Refuse to write over a file that is no report."""
    if out.is_file() and b"<title>neo_peft report" not in out.read_bytes()[:1000]:
        raise InputError(
            f"{out} is there and is no report, which alone is written anew: name another --out"
        )


@dataclass(frozen=True)
class Run:
    """A finished run.

    folder, record, task: where it is, its run.json, and its task.
    metrics: the lines of its metrics.jsonl.
    ranges: for each kind of answers, split and metric the 95 % interval.
    """

    folder: Path
    record: dict
    task: Task
    metrics: list[dict]
    ranges: dict[PredictionKind, dict[str, dict[str, Interval]]]


def read_run(folder: Path) -> Run:
    """Return all that is shown of a run. Raises InputError where the run is not finished or a file
    was changed."""
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        within = sorted(folder.glob(f"*/{RUN}"))  # of a study
        advice = f"; name those in it, as {within[0].parent}" if within else ""
        raise InputError(
            f"{folder} holds no {RUN}: a report shows runs that train.py has finished{advice}"
        )
    record, task = finished(folder)

    def ranges_of(kind: PredictionKind, split: str) -> dict[str, Interval]:
        rows = read_predictions(folder, kind, split)
        return intervals(task, rows, [[row["predicted"] for row in rows]])

    ranges = {
        kind: {split: ranges_of(kind, split) for split in kind.scores(record)}
        for kind in prediction_kinds(record)
        if kind.when != "majority"
    }
    metrics = read_metrics(unchanged(folder, record, METRICS))
    return Run(folder, record, task, metrics, ranges)


def article(run: Run, name: str) -> Html:
    """Return the part of the page on one run. Predictions are shown of one split: test if any."""
    split = reported_split(run.ranges[AFTER])
    found, rows = AFTER.scores(run.record)[split], read_predictions(run.folder, AFTER, split)
    by_class, wrong = browse.by_label, browse.wrong_answers
    if run.task.tags_words:
        by_class, wrong = browse.by_type, browse.wrong_entities
    return element(
        "article",
        heading(run),
        score_section(run),
        curve_section(run),
        by_class(run.task, found, split),
        wrong(run.task, rows, split),
        cost_section(run),
        recipe_section(run),
        id=name,
    )


def heading(run: Run) -> Html:
    """Return a line on what was run, the verdict, and the run's warnings."""
    from neo_peft.runs.summary import verdict  # after the flags: torch takes seconds to import

    record, flags = run.record, run.record["flags"]
    protocol = "" if record["protocol"] == "single" else f", protocol {record['protocol']}"
    what = (
        f"{flags['method']} on {short_name(record['model'])}, {record['rows']['train']:,} rows of "
        f"{short_name(record['data'])}{protocol}; epoch {record['kept_epoch']} of "
        f"{flags['epochs']} kept; seed {record['seed']}"
    )
    said = verdict(run.task, record["scores"], record["rows"]["validation"])
    return element(
        "header",
        element("h2", f"{run.task.name}, {flags['method']}"),
        element("p", run.folder, class_="folder"),
        element("p", what, class_="what"),
        element("p", said, class_="verdict"),
        *(element("p", f"Warning: {line}", class_="warning") for line in record["warnings"]),
    )


def score_section(run: Run) -> Html:
    """Return a table for each split: the majority's scores, and those before and after tuning."""
    kinds, tables = prediction_kinds(run.record), []
    for split, ranges in run.ranges[AFTER].items():
        lines = [
            [shown_name(run.task, name), *(scored(run, kind, split, name) for kind in kinds)]
            for name in ranges
        ]
        if run.record["generated"]:
            unanswered = [kind.scores(run.record)[split]["unanswered"] for kind in kinds]
            lines.append(["unanswered", *unanswered])
        head = element("h4", f"{split}, {run.record['rows'][split]:,} rows")
        table = html_table(["", *(kind.title for kind in kinds)], lines, "scores")
        tables.append(element("div", head, table))
    about = (
        "Below a score its 95 % interval: how far the choice of these rows alone could move it "
        "(bootstrap)."
    )
    return section("Scores", element("div", *tables, class_="beside"), note(about))


def scored(run: Run, kind: PredictionKind, split: str, metric: str) -> Html:
    """Return a score, its interval, and a bar that shows both between 0 and 1."""
    value = kind.scores(run.record)[split][metric]
    if kind not in run.ranges:
        return element("td", number(value))
    low, high = run.ranges[kind][split][metric]
    at, begin, end = (f"{100 * max(0, of):.1f}%" for of in (value, low, high))
    bar = element("i", style=f"--at:{at};--low:{begin};--high:{end}")
    return element("td", number(value), element("small", f"{low:.3f}–{high:.3f}"), bar)


def comparison(runs: list[Run]) -> Html:
    """Return a table that compares several runs by their tasks' metrics after tuning."""
    splits = dict.fromkeys(split for run in runs for split in run.ranges[AFTER])
    lines = []
    for place, run in enumerate(runs, start=1):
        record, metric = run.record, run.task.metric
        what = element("small", f"{run.task.name}, {record['flags']['method']}")
        line = [joined([element("a", run.folder, href=f"#run-{place}"), what])]
        line.append(shown_name(run.task, metric))
        for split in splits:
            there = split in run.ranges[AFTER]
            line.append(scored(run, AFTER, split, metric) if there else "–")
        lines.append([*line, f"{percent(record):.3g} %", f"{record['seconds']:,.0f}"])
    compared = html_table(["run", "measure", *splits, "trained", "seconds"], lines, "scores")
    return element("article", section("Side by side", compared))


def curve_section(run: Run) -> Html:
    """Return the plots of the losses and of the validation scores."""
    loss = as_svg(draw_loss, run.metrics)
    scores = as_svg(draw_validation, run.metrics, run.task)
    figures = element("figure", Html(loss)), element("figure", Html(scores))
    return section("Learning curves", element("div", *figures, class_="beside"))


def cost_section(run: Run) -> Html:
    """Return how many parameters were trained, and the time and memory that it took."""
    record, speed = run.record, tokens_a_second(run)
    peak = record.get("memory", {}).get("peak_bytes")
    weights = [name for name in record["files"] if name.endswith(".safetensors")]
    stored = sum((run.folder / name).stat().st_size for name in weights)
    shown = {
        "parameters": f"{record['trainable']:,} of {record['total']:,}, {percent(record):.4g} %",
        "on disk": f"{stored / 1e6:,.2f} MB; the full model, in fp32 as well, "
        f"{4 * record['base']['parameters'] / 1e6:,.2f} MB",
        "time": f"{record['seconds']:,.0f} seconds, loading and scoring included",
        "tokens a second": "–" if speed is None else f"{speed:,.0f} in training",
        "peak memory": "–" if peak is None else f"{peak / 1e6:,.0f} MB",
        "computed": f"{record['precision']} on {record['device']}, threads {record['threads']}, "
        f"processes {record['processes']}",
    }
    return section("What was trained, and what it took", facts(shown))


def percent(record: dict) -> float:
    """Return the share of the parameters that were trained, in percent."""
    return 100 * record["trainable"] / record["total"]


def tokens_a_second(run: Run) -> float | None:
    """Return the speed of training, None where it is not known.

    The first step of an epoch is left out: the time before it is spent on scoring.
    """
    text = unchanged(run.folder, run.record, TIMINGS).read_text(encoding="utf-8")
    epochs = {line["step"]: line["epoch"] for line in run.metrics if "loss" in line}
    tokens = seconds = 0
    for one, two in pairwise(map(json.loads, text.splitlines())):
        if epochs[one["step"]] == epochs[two["step"]]:
            tokens += two["tokens"]
            seconds += two["seconds"] - one["seconds"]
    return tokens / seconds if seconds > 0 else None


def recipe_section(run: Run) -> Html:
    """Return all that is needed to repeat the run."""
    record = run.record
    shown = {
        "base": f"{short_name(record['model'])}, fingerprint {record['base']['fingerprint']}",
        "seed": record["seed"],
        "finished": record["finished"],
        "commit": record["commit"] or "–",
        "versions": ", ".join(f"{name} {of}" for name, of in record["versions"].items()),
    }
    lines = [
        [flag_name(name), value, "assumed" if name in record["assumed"] else ""]
        for name, value in record["flags"].items()
    ]
    summary = element("summary", element("b", "all flags"))
    flags = element("details", summary, html_table(["flag", "value", ""], lines, "flags"))
    return section("Recipe", facts(shown), flags)
