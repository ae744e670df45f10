"""Write the page of a study: its tables in Markdown, and a plot for each protocol. Recipes and two
sweeps have other pictures (`pictures.py`) and an HTML page too.

The results are those that `study_results.py` computes.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

from neo_peft.runs.bootstrap import MIN_DIFFERING
from neo_peft.runs.curves import finish, new_figure, write_figure
from neo_peft.runs.tables import markdown, shown_name
from neo_peft.runs.verdict import BEFORE_MISSING
from neo_peft.studies.heat_map import grid_table
from neo_peft.studies.original import ORIGINAL, original_lines
from neo_peft.studies.pictures import COSTS, heat_map_name, pareto_name, pictures, write_pictures
from neo_peft.studies.recipe_table import (
    choice_table,
    explanation,
    interval,
    mean_and_deviation,
    points,
    recipe_table,
)
from neo_peft.studies.study_report import write_study_report
from neo_peft.studies.variants import GRID, RECIPE
from neo_peft.system.files import write_text
from neo_peft.tasks import get_task


def write_page(folder: Path, results: dict) -> str:
    """Write the tables and plots into a study's folder; return the text of the tables."""
    metric, text = metric_title(results, results["metric"]), page(results)
    if results["swept"] in (RECIPE, GRID):
        found = {name: pictures(results, name, metric) for name in results["protocols"]}
        for drawn in found.values():
            write_pictures(folder, drawn)
        sentences = {
            protocol: verdict_sentence(results, block, block["judged"])
            for protocol, block in results["protocols"].items()
        }
        write_study_report(folder, results, page_title(results), sentences, found, metric)
    else:
        for protocol, block in results["protocols"].items():
            draw_plot(results, block, folder / plot_name(protocol))
    write_text(folder / "table.md", text)
    return text


def plot_name(protocol: str) -> str:
    """Return the file name of a protocol's plot."""
    return "plot.png" if protocol == "single" else f"plot-{protocol}.png"


def page(results: dict) -> str:
    """Return all tables of a study, their explanation, and the command that made them."""
    parts = [f"# {page_title(results)}"]
    protocol_text = {
        protocol: f", protocol {protocol}" * (protocol != "single")
        for protocol in results["protocols"]
    }
    for protocol, block in results["protocols"].items():
        where = block["judged"] + protocol_text[protocol]
        parts.append(verdict_sentence(results, block, where))
    for protocol, block in results["protocols"].items():
        parts += recipe_parts(results, block)
        for split, lines in block["lines"].items():
            parts.append(f"## {split}{protocol_text[protocol]}: {block['rows'][split]:,} rows")
            parts.append(split_table(results, lines))
        parts.append(legend(results, block))
        header, rows = original_lines(results, protocol, block)
        if rows:
            where = "GPT-Neo 1.3B, as the original study prints it, and this study"
            parts += [f"## {where}", markdown(header, rows), ORIGINAL[results["task"]].note]
        if results["swept"] == GRID:
            parts += ["## heat map, validation", markdown(*grid_table(results, block))]
            parts.append(f"![the same as a picture]({heat_map_name(protocol)})")
        elif results["swept"] != RECIPE:
            title = metric_title(results, results["metric"])
            parts.append(f"![{title}{protocol_text[protocol]}]({plot_name(protocol)})")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    count = len(results["runs"]) + len(results["not_compared"])
    parts.append(
        f"{count} run{'s' if count > 1 else ''} in {results['seconds']:,.0f} seconds on "
        f"{results['device']}, with {versions}:"
    )
    return "\n\n".join([*parts, "    " + results["command"]]) + "\n"


def page_title(results: dict) -> str:
    """Return what was studied. If methods or models are swept, all of them are named."""
    head = results | {results["swept"]: ", ".join(map(str, results["values"]))}
    return f"{head['task']}, {head['method']} on {head['model']}, data {head['data']}"


def recipe_parts(results: dict, block: dict) -> list[str]:
    """Return the tables and pictures of a comparison of recipes; [] for another study."""
    if "recipes" not in block:
        return []
    metric, rows = metric_title(results, results["metric"]), block["rows"][block["judged"]]
    parts = [f"## recipes, {block['judged']}: {rows:,} rows"]
    parts += [markdown(*recipe_table(results, block, metric)), explanation(results)]
    for field, title, _ in COSTS:
        if points(results, block, field):
            parts.append(f"![{metric} against {title}]({pareto_name(title)})")
    if results.get("choices"):
        about = "The score on validation with the first seed. * is the chosen value."
        parts += ["## values that were tried", markdown(*choice_table(results)), about]
    return parts


def split_table(results: dict, lines: list[dict]) -> str:
    """Return the table of a split: mean and deviation of each metric, intervals of two."""
    header, rows = [""], [[line["name"] + marks(results, line)] for line in lines]
    for metric in dict.fromkeys(metric for line in lines for metric in line["scores"]):
        with_interval = metric in (results["metric"], "generated")
        header += [metric_title(results, metric), "95 % interval"][: 1 + with_interval]
        for row, line in zip(rows, lines, strict=True):
            score = line["scores"].get(metric, {})
            row.append(mean_and_deviation(score))
            if with_interval:
                row.append(interval(score))
    return markdown(header, rows)


def metric_title(results: dict, metric: str) -> str:
    """Return the name of a metric in a table."""
    if metric == "generated":
        return "accuracy, generated"
    task = replace(get_task(results["task"]), labels=tuple(results["labels"]))
    return shown_name(task, metric)


def marks(results: dict, line: dict) -> str:
    """Return the text after a line's name.

    It has the number of seeds that kept this epoch, the number that failed, and * for the value
    chosen on validation.
    """
    text = f", kept by {line['kept']}" if line.get("kept") else ""
    for reason, count in line.get("failed", {}).items():
        text += f", {count} of {results['seeds']} {reason}"
    return text + (" *" if line.get("best") and len(results["values"]) > 1 else "")


# ---- Sentences


def legend(results: dict, block: dict) -> str:
    """Return the sentences that explain the numbers of a table."""
    lines = [line for split_lines in block["lines"].values() for line in split_lines]
    has_interval = any("low" in score for line in lines for score in line["scores"].values())
    several, swept = results["seeds"] > 1, len(results["values"]) > 1
    epochs, keeps = block["kept_epochs"], block["keeps"]
    of_mean = " of the mean, with the same resamples for all seeds" if several else ""
    kept = "the last one" if keeps == ["last"] else "the best one on validation"
    some_failed = any(line.get("failed") for line in lines)
    among = ", among the values with the most finished seeds" if some_failed else ""
    shows_all = results["swept"] in ("epochs", RECIPE)
    test_only = "" if shows_all else "; only this value is shown on test"
    sentences = {
        f"Mean over {results['seeds']} seeds ± standard deviation (if the seeds differ).": several,
        "One seed.": not several,
        f"The interval is a 95 % bootstrap interval{of_mean}.": has_interval,
        "There are no intervals, because each seed has its own validation rows; a "
        "validation.jsonl gives all seeds the same rows.": not has_interval,
        "The baseline needs no language model.": True,
        "Not all runs scored a linear head alone; --head-baseline scores it.": block[
            "head_missing"
        ],
        BEFORE_MISSING: block.get("before_missing"),
        "Each run keeps its best epoch on validation.": keeps == ["best"] and not epochs,
        f'"Kept by" counts the seeds that keep this epoch ({kept}); only the kept epoch is scored '
        "on test.": epochs,
        f"* is the best value on validation{among}{test_only}.": swept and not epochs,
        "Accuracy: of the label with the highest probability. Accuracy, generated: of the label "
        "that the generated text starts with. Unanswered: share of generated texts that start with "
        "no label, which counts as wrong.": any("unanswered" in line["scores"] for line in lines),
    }
    return " ".join(sentence for sentence, applies in sentences.items() if applies)


def lines_of_best(block: dict, split: str) -> dict[str, dict]:
    """Return one line of each kind from a split: that of the best value, if there are several."""
    return {
        line["kind"]: line
        for line in block["lines"][split]
        if line.get("value", block["best"]) == block["best"]
    }


def verdict_sentence(results: dict, block: dict, where: str) -> str:
    """Return the sentence that compares the best tuned value with the best of the others.

    `where` is the name of the split in the sentence: test if there is one.
    """
    verdict, metric = block["verdict"], metric_title(results, results["metric"])
    other = f"Compared with {verdict['compared_with']} ({verdict['other_score']:.3f}), the tuned"
    difference = f"model's {metric} on {where} differs by {verdict['difference']:+.3f}"
    if "low" not in verdict:
        return f"{other} {difference}; each seed has its own rows, so there is no interval."
    ending = "chance alone could explain it"
    if verdict["differ"] < MIN_DIFFERING:
        ending = f"the predictions differ in {verdict['differ']} rows only, too few to tell"
    elif verdict["low"] > 0:
        ending = "the tuned model is better"
    elif verdict["high"] < 0:
        ending = f"{verdict['compared_with']} is better"
    interval = f"95 % interval {verdict['low']:+.3f} to {verdict['high']:+.3f}, paired bootstrap"
    return f"{other} {difference} ({interval}): {ending}."


# ---- The plot


def draw_plot(results: dict, block: dict, path: Path) -> None:
    """Draw the task's metric against the swept values, with its deviation, and write the PNG."""
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
    best_lines = lines_of_best(block, split)  # of the last split
    styles = {"majority": ":", "baseline": "--", "head_alone": (0, (1, 3)), "before": "-."}
    for kind in [kind for kind in styles if kind in best_lines]:
        line = best_lines[kind]
        level, label = line["scores"][metric]["mean"], f"{line['name']}, {split}"
        axes.axhline(level, ls=styles[kind], color="gray", lw=1, label=label)
    ticks, names = epochs or range(len(results["values"])), epochs or results["values"]
    axes.set_xticks(ticks, list(map(str, names)))
    label = results["swept"].replace("_", " ")
    finish(axes, xlabel=label, ylabel=metric_title(results, metric), ylim=(0, 1))
    write_figure(figure, path)


def position(results: dict, block: dict, line: dict) -> float:
    """Return the position of a line on the plot's x-axis.

    An epoch is at its number, the kept epoch at the mean of the seeds' kept epochs, and a swept
    value at its index.
    """
    if line["kind"] == "epoch":
        return line["value"]
    if block["kept_epochs"]:
        return fmean(block["kept_epochs"])
    return results["values"].index(line["value"])
