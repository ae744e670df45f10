"""Learning curves: a run's loss at each step and scoring, and its validation scores."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.errors import InputError
from neo_peft.runs.tables import shown_name
from neo_peft.system.files import write_whole
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The fields of the two kinds of lines in metrics.jsonl: of a step, and of a scoring of validation.
STEP_FIELDS = {"step", "epoch", "loss", "learning_rate", "gradient_norm"}
SCORING_FIELDS = {"step", "epoch", "train_loss", "validation_loss", "validation"}


def read_metrics(path: Path) -> list[dict]:
    """Return the lines of a run's metrics.jsonl, one for each step and each scoring.

    Raises InputError where a line is neither.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no metrics.jsonl of a run: {error}") from None
    scoring_fields = None  # with the metrics of the first one, which each must have
    for number, line in enumerate(lines, start=1):
        names = STEP_FIELDS
        if isinstance(line, dict) and isinstance(scores := line.get("validation"), dict):
            names = scoring_fields = scoring_fields or SCORING_FIELDS | scores.keys()
            line = line | scores | {"validation": None}
        if not _has_numbers(line, names):
            raise InputError(
                f"{path}, line {number}: these are not the fields of a step or scoring"
            )
    return lines


def _has_numbers(line: object, names: set[str]) -> bool:
    """Return whether a line has all fields `names`, and each value is a finite number or None."""
    if not isinstance(line, dict) or not names <= line.keys():
        return False
    numbers = [value for value in line.values() if value is not None]
    return all(type(value) in (int, float) and math.isfinite(value) for value in numbers)


def train_losses(lines: list[dict]) -> list[float]:
    """Return the loss of the first step, then the training loss at each epoch's last scoring."""
    of_epoch = {line["epoch"]: line["train_loss"] for line in lines if "train_loss" in line}
    return [lines[0]["loss"], *of_epoch.values()]


def risen_loss(losses: list[float]) -> str | None:
    """Return a warning if the last one of `train_losses` is clearly above the lowest one."""
    lowest, last = min(losses), losses[-1]
    if last <= max(1.1 * lowest, lowest + 0.001):  # from 0.0001 to 0.0002 is no rise
        return None
    return f"the training loss rose from {lowest:.4f} to {last:.4f}: try a smaller --learning-rate"


def new_figure(**options: object) -> "Figure":
    """Return an empty figure."""
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    return Figure(layout="constrained", **options)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG."""
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def learning_curves(metrics: Path, plot: Path, task: Task) -> None:
    """Draw the losses and the validation scores in a metrics.jsonl, and write them as a PNG."""
    lines, figure = read_metrics(metrics), new_figure(figsize=(9, 3.5))
    loss, validation = figure.subplots(1, 2)
    draw_loss(loss, lines)
    draw_validation(validation, lines, task)
    write_figure(figure, plot)


def draw_loss(axes: "Axes", lines: list[dict]) -> None:
    """Draw the training loss of each step, and the training and validation loss of each scoring."""
    steps = [line for line in lines if "loss" in line]
    losses = [line["loss"] for line in steps]
    axes.plot([line["step"] for line in steps], losses, lw=0.8, alpha=0.6, label="train, each step")
    scorings = [line for line in lines if "validation" in line]
    labels = {"train_loss": "train, mean of the epoch", "validation_loss": "validation"}
    for name, label in labels.items():
        draw_scorings(axes, scorings, [line[name] for line in scorings], label)
    finish(axes, xlabel="step", ylabel="loss (nats per target)", ylim=(0, None))


def draw_validation(axes: "Axes", lines: list[dict], task: Task) -> None:
    """Draw the validation scores."""
    scorings = [line for line in lines if "validation" in line]
    for name in scorings[0]["validation"]:
        label = shown_name(task, name).replace("$", r"\$")  # "$" would start a formula
        draw_scorings(axes, scorings, [line["validation"][name] for line in scorings], label)
    finish(axes, xlabel="step", ylabel="validation", ylim=(0, 1))


def draw_scorings(axes: "Axes", scorings: list[dict], values: list[float], label: str) -> None:
    """Draw one value for each scoring, at its step."""
    axes.plot([line["step"] for line in scorings], values, marker="o", ms=3, label=label)


def finish(axes: "Axes", **labels: object) -> None:
    """Add the labels, the legend and the grid to a plot."""
    axes.set(**labels)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


# A report's page has a light and a dark theme. A plot is drawn in these placeholder colours, which
# are then replaced by the page's CSS variables.
THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--first)",
    "#030303": "var(--second)",
    "#040404": "var(--third)",
    "#050505": "var(--fourth)",
    "#060606": "var(--fifth)",
    "#070707": "var(--soft)",
}


def as_svg(draw: Callable[..., None], *what: object, size: tuple[float, float] = (4.6, 3.2)) -> str:
    """Return the plot that `draw(axes, *what)` draws, as an SVG element. `size` is in inches.

    The page must define the CSS variables of `THEME`.
    """
    import matplotlib

    ink, *colours, soft = THEME
    in_ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(in_ink, ink) | {
        "axes.prop_cycle": matplotlib.cycler(color=colours),
        "axes.facecolor": "none",
        "grid.color": soft,
        "svg.fonttype": "none",
        "svg.hashsalt": "neo_peft",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = new_figure(figsize=size, facecolor="none")
        draw(figure.subplots(), *what)
        figure.savefig(file := io.StringIO(), format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # matplotlib gives the same ids in every figure, but ids must be unique in a page.
    text = re.sub('<g id="[^"]*"', "<g", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    return text
