"""The heat map of two swept flags: the score on validation of each combination of their values."""

from typing import TYPE_CHECKING

from neo_peft.runs.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cells(results: dict, block: dict) -> list[list[dict]]:
    """Return the lines of validation as a grid: a row for each value of the first flag, a column
    for each value of the second."""
    by_value = {
        line["value"]: line for line in block["lines"]["validation"] if line["kind"] == "after"
    }
    found = [by_value[value] for value in results["values"]]
    columns = len(results["grid"][1]["values"])
    return [found[start : start + columns] for start in range(0, len(found), columns)]


def axis_titles(results: dict) -> tuple[str, str]:
    """Return the names of the two flags."""
    rows, columns = (axis["swept"].replace("_", " ") for axis in results["grid"])
    return rows, columns


def axis_values(results: dict) -> tuple[list[str], list[str]]:
    """Return the values of the two flags."""
    rows, columns = (list(map(str, axis["values"])) for axis in results["grid"])
    return rows, columns


def mean(results: dict, line: dict) -> float | None:
    """Return the mean score of a combination, or None if all its runs failed."""
    return line["scores"][results["metric"]]["mean"] if line["scores"] else None


def grid_table(results: dict, block: dict) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table. The best combination has a *."""
    (rows, columns), lines = axis_values(results), []
    for name, row in zip(rows, cells(results, block)):
        shown = [number(mean(results, line)) + " *" * line["best"] for line in row]
        lines.append([name, *shown])
    return [" \\ ".join(axis_titles(results)), *columns], lines


def draw_heat_map(axes: "Axes", results: dict, block: dict) -> None:
    """Draw the grid: the higher a score between the lowest and the highest, the stronger the
    colour."""
    from matplotlib.patches import Rectangle

    grid, (rows, columns) = cells(results, block), axis_values(results)
    ylabel, xlabel = axis_titles(results)
    scores = [mean(results, line) for row in grid for line in row]
    known = [score for score in scores if score is not None]
    lowest, spread = min(known), (max(known) - min(known)) or 1.0
    for y, row in enumerate(grid):
        for x, line in enumerate(row):
            score = mean(results, line)
            if score is not None:
                share = (score - lowest) / spread
                axes.add_patch(
                    Rectangle((x, y), 1, 1, facecolor="C0", alpha=0.06 + 0.5 * share, lw=0)
                )
            weight = "bold" if line["best"] else "normal"
            axes.text(x + 0.5, y + 0.5, number(score), ha="center", va="center", weight=weight)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
