"""A study's results to look at: its tables in Markdown, and a plot for each protocol.
`study_results.py` makes them."""

from pathlib import Path

from neo_peft.runs.bootstrap import FEWEST
from neo_peft.runs.tables import markdown, number, shown_name
from neo_peft.system.files import write_text, write_whole
from neo_peft.tasks import get_task

TABLE = "table.md"
GENERATED = "accuracy, generated"


def write_page(folder: Path, results: dict) -> str:
    """Write the tables and plots into a study's folder, and return the tables' text."""
    for protocol, block in results["protocols"].items():
        plot = folder / plot_name(protocol)
        write_whole(plot, lambda temporary, block=block: draw(results, block, temporary))
    text = page(results)
    write_text(folder / TABLE, text)
    return text


def plot_name(protocol: str) -> str:
    return "plot.png" if protocol == "single" else f"plot-{protocol}.png"


def page(results: dict) -> str:
    """Lay out all of a study's tables, what they show, and what made them."""
    # where several methods, or models, are
    said = results | {results["swept"]: ", ".join(map(str, results["values"]))}
    parts = [f"# {said['task']}, {said['method']} on {said['model']}, data {said['data']}"]
    named = {
        protocol: f", protocol {protocol}" * (protocol != "single")
        for protocol in results["protocols"]
    }
    for protocol, block in results["protocols"].items():
        parts += beaten(results, block, block["judged"] + named[protocol])
    for protocol, block in results["protocols"].items():
        for split, lines in block["lines"].items():
            parts.append(f"## {split}{named[protocol]}: {block['rows'][split]:,} rows")
            parts.append(table(results, lines))
        parts.append(legend(results, block))
        parts.append(
            f"![{title(results, results['metric'])}{named[protocol]}]({plot_name(protocol)})"
        )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    count = len(results["runs"])
    made = (
        f"{count} run{'s' if count > 1 else ''} in {results['seconds']:,.0f} seconds on "
        f"{results['device']}, "
    )
    made += f"by {versions}:"
    return "\n\n".join([*parts, made, "    " + results["command"]]) + "\n"


def table(results: dict, lines: list[dict]) -> str:
    """Lay out one split's lines, each measure's mean and deviation, the interval of the task's own
    one beside it."""
    metric = results["metric"]
    shown = list(dict.fromkeys(measure for line in lines for measure in line["scores"]))
    header = [""]
    for measure in shown:
        header.append(title(results, measure))
        header += ["95 % interval"] if measure in (metric, "generated") else []
    rows = []
    for line in lines:
        cells = [line["name"] + mark(results, line)]
        for measure in shown:
            score = line["scores"].get(measure, {})
            cells.append(mean(score))
            if measure in (metric, "generated"):
                cells.append(f"{score['low']:.3f} to {score['high']:.3f}" if "low" in score else "")
        rows.append(cells)
    return markdown(header, rows)


def title(results: dict, measure: str) -> str:
    """Name a measure as a reader knows it."""
    return GENERATED if measure == "generated" else shown_name(get_task(results["task"]), measure)


def mark(results: dict, line: dict) -> str:
    """Mark what was chosen on validation, a value by the mean over seeds, an epoch by each; and
    what failed."""
    said = f", kept by {line['kept']}" if line.get("kept") else ""
    said += "".join(
        f", {count} of {results['seeds']} {what}" for what, count in line.get("failed", {}).items()
    )
    return said + (" *" if line.get("best") and len(results["values"]) > 1 else "")


def mean(score: dict) -> str:
    """Show a mean, and its deviation where the seeds differ."""
    if not score:
        return "–"
    return number(score["mean"]) + (f" ± {score['sd']:.3f}" if score["sd"] else "")


def legend(results: dict, block: dict) -> str:
    """Say what the numbers of a table are."""
    seeds = results["seeds"]
    said = [
        f"Mean over {seeds} seeds ± standard deviation, where they differ."
        if seeds > 1
        else "One seed."
    ]
    scores = [
        score
        for lines in block["lines"].values()
        for line in lines
        for score in line["scores"].values()
    ]
    if any("low" in score for score in scores):
        same = ", the same draws for every seed" if seeds > 1 else ""
        said.append(f"The interval is the mean's, by a bootstrap over examples{same}.")
    else:
        said.append(
            "There are no intervals, since each seed draws a validation of its own: a "
            "validation.jsonl does not."
        )
    said.append("The floor needs no language model.")
    if block["keeps"] == ["best"] and not block["kept_epochs"]:
        said.append("Of each run the epoch that was best on validation is kept.")
    if block["kept_epochs"]:
        which = "last epoch" if block["keeps"] == ["last"] else "best epoch on validation"
        said.append(
            f'"Kept by" counts the seeds whose {which} it is; test is scored for that alone.'
        )
    elif len(results["values"]) > 1:
        some = any(line.get("failed") for lines in block["lines"].values() for line in lines)
        among = " of those with the most seeds" if some else ""
        alone = ", and test is shown for it alone" if results["swept"] != "epochs" else ""
        said.append(f"* is the best on validation{among}{alone}.")
    if any("unanswered" in line["scores"] for lines in block["lines"].values() for line in lines):
        said.append(
            "Accuracy is by the rank of the labels, or a head's; generated, the model says what it "
            "likes, and "
            "unanswered is the share of texts where that names no label, which is wrong by its "
            "form alone."
        )
    return " ".join(said)


def of_best(block: dict, split: str) -> dict[str, dict]:
    """Take a split's line of each kind, {kind: line}: where there are several, that of the best
    value."""
    return {
        line["kind"]: line
        for line in block["lines"][split]
        if line.get("value", block["best"]) == block["best"]
    }


def beaten(results: dict, block: dict, where: str) -> list[str]:
    """Say plainly how the best that was tuned stands beside what needs no tuning: on test, where
    there is one."""
    metric, over, of_kind = results["metric"], block["over_floor"], of_best(block, block["judged"])
    reached = {
        kind: of_kind[kind]["scores"][metric]["mean"] for kind in ("majority", "floor", "after")
    }
    named = {"majority": "the majority class", "floor": f"the {of_kind['floor']['name']},"}
    said = []
    for kind, name in named.items():
        if reached[kind] >= reached["after"] and not (kind == "floor" and over):
            said.append(
                f"{name[0].upper()}{name[1:]} reaches {reached[kind]:.3f} on {where}, no less than "
                "the tuned model's "
                f"{reached['after']:.3f}."
            )
    if over:
        ending = "chance alone could do it"
        if over["differ"] < FEWEST:
            ending = f"on {over['differ']} rows alone, too few to tell"
        elif over["low"] > 0 or over["high"] < 0:
            ending = f"{'the tuned model' if over['low'] > 0 else named['floor']} is better"
        said.append(
            f"Beside {named['floor']} the tuned model's {title(results, metric)} on {where} "
            "differs by "
            f"{over['difference']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f}, a paired "
            f"bootstrap): {ending}."
        )
    return said


def draw(results: dict, block: dict, path: Path) -> None:
    """Draw the task's own score over the epochs, or what was swept, with its deviation over the
    seeds, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, metric = figure.subplots(), results["metric"]
    for split, lines in block["lines"].items():
        kind = "epoch" if any(line["kind"] == "epoch" for line in lines) else "after"
        points = [line for line in lines if line["kind"] == kind and line["scores"]]
        scores = [line["scores"][metric] for line in points]
        alone = block["kept_epochs"] and kind == "after"
        axes.errorbar(
            [position(results, block, line) for line in points],
            [score["mean"] for score in scores],
            [score["sd"] or 0 for score in scores],
            marker="o",
            ms=4,
            capsize=3,
            label=f"{split}, the kept epoch" if alone else split,
        )
    last = list(block["lines"])[-1]
    of_kind = of_best(block, last)
    for kind, style in (("majority", ":"), ("floor", "--"), ("before", "-.")):
        line = of_kind[kind]
        axes.axhline(
            line["scores"][metric]["mean"],
            ls=style,
            color="gray",
            lw=1,
            label=f"{line['name']}, {last}",
        )
    epochs = [line["value"] for line in block["lines"]["validation"] if line["kind"] == "epoch"]
    axes.set_xticks(
        epochs or range(len(results["values"])), list(map(str, epochs or results["values"]))
    )
    axes.set(xlabel=results["swept"].replace("_", " "), ylabel=title(results, metric), ylim=(0, 1))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def position(results: dict, block: dict, line: dict) -> float:
    """Place a line on the plot: an epoch at its number, the kept one at the seeds' mean, a swept
    value in its order."""
    if line["kind"] == "epoch":
        return line["value"]
    if block["kept_epochs"]:
        return sum(block["kept_epochs"]) / len(block["kept_epochs"])
    return results["values"].index(line["value"])
