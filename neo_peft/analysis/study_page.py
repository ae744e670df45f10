"""The page of a study: its tables in Markdown, and a plot for each protocol, from the results that
`study_results.py` makes."""

from pathlib import Path
from statistics import fmean

from neo_peft.runs.bootstrap import FEWEST
from neo_peft.runs.curves import finish, new_figure, write_figure
from neo_peft.runs.tables import markdown, number, shown_name
from neo_peft.system.files import write_text
from neo_peft.tasks import get_task


def write_page(folder: Path, results: dict) -> str:
    """Write the tables and plots into a study's folder; return the tables' text."""
    for protocol, block in results["protocols"].items():
        draw_plot(results, block, folder / plot_name(protocol))
    text = page(results)
    write_text(folder / "table.md", text)
    return text


def plot_name(protocol: str) -> str:
    """Return the name of a protocol's plot."""
    return "plot.png" if protocol == "single" else f"plot-{protocol}.png"


def page(results: dict) -> str:
    """Return all tables of a study, what their numbers are, and the command that made them."""
    # a study that sweeps methods or models names them all
    head = results | {results["swept"]: ", ".join(map(str, results["values"]))}
    parts = [f"# {head['task']}, {head['method']} on {head['model']}, data {head['data']}"]
    named = {
        protocol: f", protocol {protocol}" * (protocol != "single")
        for protocol in results["protocols"]
    }
    for protocol, block in results["protocols"].items():
        parts += beaten(results, block, block["judged"] + named[protocol])
    for protocol, block in results["protocols"].items():
        for split, lines in block["lines"].items():
            parts.append(f"## {split}{named[protocol]}: {block['rows'][split]:,} rows")
            parts.append(split_table(results, lines))
        parts.append(legend(results, block))
        title = metric_title(results, results["metric"])
        parts.append(f"![{title}{named[protocol]}]({plot_name(protocol)})")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    count = len(results["runs"])
    parts.append(
        f"{count} run{'s' if count > 1 else ''} in {results['seconds']:,.0f} seconds on "
        f"{results['device']}, by {versions}:"
    )
    return "\n\n".join([*parts, "    " + results["command"]]) + "\n"


def split_table(results: dict, lines: list[dict]) -> str:
    """Return one split's table: each metric's mean and deviation, and two metrics' intervals."""
    header, rows = [""], [[line["name"] + marks(results, line)] for line in lines]
    for metric in dict.fromkeys(metric for line in lines for metric in line["scores"]):
        with_interval = metric in (results["metric"], "generated")
        header += [metric_title(results, metric), "95 % interval"][: 1 + with_interval]
        for row, line in zip(rows, lines, strict=True):
            score = line["scores"].get(metric, {})
            row.append(mean_and_deviation(score))
            if with_interval:
                row.append(f"{score['low']:.3f} to {score['high']:.3f}" if "low" in score else "")
    return markdown(header, rows)


def metric_title(results: dict, metric: str) -> str:
    """Return a metric's name as a table shows it."""
    if metric == "generated":
        return "accuracy, generated"
    return shown_name(get_task(results["task"]), metric)


def marks(results: dict, line: dict) -> str:
    """Return what stands behind a line's name.

    It is how many seeds have kept this epoch, how many have failed, and * for the value that was
    chosen on validation.
    """
    said = f", kept by {line['kept']}" if line.get("kept") else ""
    for what, count in line.get("failed", {}).items():
        said += f", {count} of {results['seeds']} {what}"
    return said + (" *" if line.get("best") and len(results["values"]) > 1 else "")


def mean_and_deviation(score: dict) -> str:
    """Return a mean as text, with its standard deviation where the seeds differ."""
    if not score:
        return "–"
    return number(score["mean"]) + (f" ± {score['sd']:.3f}" if score["sd"] else "")


# ---- Sentences


def legend(results: dict, block: dict) -> str:
    """Return what the numbers of a table are: those sentences that apply to it."""
    lines = [line for of_split in block["lines"].values() for line in of_split]
    has_interval = any("low" in score for line in lines for score in line["scores"].values())
    several, swept = results["seeds"] > 1, len(results["values"]) > 1
    epochs, keeps = block["kept_epochs"], block["keeps"]
    same = ", the same draws for every seed" if several else ""
    which = "last epoch" if keeps == ["last"] else "best epoch on validation"
    among = " of those with the most seeds" if any(line.get("failed") for line in lines) else ""
    alone = ", and test is shown for it alone" if results["swept"] != "epochs" else ""
    sentences = {
        f"Mean over {results['seeds']} seeds ± standard deviation, where they differ.": several,
        "One seed.": not several,
        f"The interval is the mean's, by a bootstrap over examples{same}.": has_interval,
        "There are no intervals, since each seed draws a validation of its own: a "
        "validation.jsonl does not.": not has_interval,
        "The baseline needs no language model.": True,
        "Of each run the epoch that was best on validation is kept.": (
            keeps == ["best"] and not epochs
        ),
        f'"Kept by" counts the seeds whose {which} it is; test is scored for that alone.': epochs,
        f"* is the best on validation{among}{alone}.": swept and not epochs,
        "Accuracy is by the rank of the labels, or a head's; generated, the model says what it "
        "likes, and unanswered is the share of texts where that names no label, which is wrong by "
        "its form alone.": any("unanswered" in line["scores"] for line in lines),
    }
    return " ".join(sentence for sentence, applies in sentences.items() if applies)


def of_best(block: dict, split: str) -> dict[str, dict]:
    """Return a split's line of each kind. Of several values it is the best value's."""
    return {
        line["kind"]: line
        for line in block["lines"][split]
        if line.get("value", block["best"]) == block["best"]
    }


def beaten(results: dict, block: dict, where: str) -> list[str]:
    """Return sentences that compare the best tuned value with what needs no tuning.

    `where` names the split whose scores are compared: test where there is one.
    """
    metric, over, of_kind = (
        results["metric"],
        block["over_baseline"],
        of_best(block, block["judged"]),
    )
    baseline = of_kind["baseline"]["name"]
    names = {"majority": "majority class"} | ({} if over else {"baseline": f"{baseline},"})
    tuned = of_kind["after"]["scores"][metric]["mean"]
    said = []
    for kind, name in names.items():
        reached = of_kind[kind]["scores"][metric]["mean"]
        if reached >= tuned:
            said.append(
                f"The {name} reaches {reached:.3f} on {where}, no less than the tuned model's "
                f"{tuned:.3f}."
            )
    if not over:
        return said
    ending = "chance alone could do it"
    if over["differ"] < FEWEST:
        ending = f"on {over['differ']} rows alone, too few to tell"
    elif over["low"] > 0:
        ending = "the tuned model is better"
    elif over["high"] < 0:
        ending = f"the {baseline}, is better"
    return [
        *said,
        f"Beside the {baseline}, the tuned model's {metric_title(results, metric)} on {where} "
        f"differs by {over['difference']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f}, a "
        f"paired bootstrap): {ending}.",
    ]


# ---- The plot


def draw_plot(results: dict, block: dict, path: Path) -> None:
    """Draw the task's metric over the swept values as a PNG, with its deviation over the seeds."""
    figure = new_figure(figsize=(7, 4))
    axes, metric = figure.subplots(), results["metric"]
    epochs = [line["value"] for line in block["lines"]["validation"] if line["kind"] == "epoch"]
    for split, lines in block["lines"].items():
        kind = "epoch" if epochs and split == "validation" else "after"
        points = [line for line in lines if line["kind"] == kind and line["scores"]]
        scores = [line["scores"][metric] for line in points]
        axes.errorbar(
            [position(results, block, line) for line in points],
            [score["mean"] for score in scores],
            [score["sd"] or 0 for score in scores],
            marker="o",
            ms=4,
            capsize=3,
            label=f"{split}, the kept epoch" if epochs and kind == "after" else split,
        )
    of_kind = of_best(block, split)
    for kind, style in (("majority", ":"), ("baseline", "--"), ("before", "-.")):
        level, label = of_kind[kind]["scores"][metric]["mean"], f"{of_kind[kind]['name']}, {split}"
        axes.axhline(level, ls=style, color="gray", lw=1, label=label)
    places, names = epochs or range(len(results["values"])), epochs or results["values"]
    axes.set_xticks(places, list(map(str, names)))
    label = results["swept"].replace("_", " ")
    finish(axes, xlabel=label, ylabel=metric_title(results, metric), ylim=(0, 1))
    write_figure(figure, path)


def position(results: dict, block: dict, line: dict) -> float:
    """Return where a line stands on the plot's x-axis.

    An epoch stands at its number, the kept epoch at the seeds' mean, and a swept value at its
    index.
    """
    if line["kind"] == "epoch":
        return line["value"]
    if block["kept_epochs"]:
        return fmean(block["kept_epochs"])
    return results["values"].index(line["value"])
