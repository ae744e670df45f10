"""The plot of a run: what it did over its steps."""

import json
import math
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.files import write_whole

OF_A_STEP = {"step", "epoch", "loss", "learning_rate", "gradient_norm"}
OF_AN_EPOCH = {"step", "epoch", "train_loss", "validation_loss", "validation"}


def read_metrics(path: Path) -> list[dict]:
    """Read a run's metrics.jsonl, a line for each step and epoch. Raise InputError for what is none."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no record of a run's steps: {error}") from None
    names = None
    for number, line in enumerate(lines, start=1):
        names = names or (line["validation"].keys() if _is_epoch(line) else None)
        if not _is_epoch(line, names) and not (_holds(line, OF_A_STEP) and _are_numbers(line.values())):
            raise InputError(f"{path}, line {number}: neither a step nor an epoch")
    return lines


def _holds(line: object, names: set[str]) -> bool:
    return isinstance(line, dict) and names <= line.keys()


def _is_epoch(line: object, names: object = None) -> bool:
    if not _holds(line, OF_AN_EPOCH) or not isinstance(scores := line["validation"], dict):
        return False
    return names in (None, scores.keys()) and _are_numbers({**line, **scores, "validation": None}.values())


def _are_numbers(values: object) -> bool:
    return all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values)


def learning_curves(metrics: Path, plot: Path) -> None:
    """Draw a run's loss at each step and each epoch, and its validation score, from its metrics.jsonl, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    lines = read_metrics(metrics)
    steps, epochs = ([line for line in lines if name in line] for name in ("loss", "validation"))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, validation = figure.subplots(1, 2)
    at = [line["step"] for line in epochs]
    loss.plot(
        [line["step"] for line in steps], [line["loss"] for line in steps], lw=0.6, alpha=0.5, label="train, a step"
    )
    for name, kind in (("train", "train, an epoch"), ("validation", "validation")):
        loss.plot(at, [line[f"{name}_loss"] for line in epochs], marker="o", ms=3, label=kind)
    loss.set(xlabel="step", ylabel="loss, nats a label token", ylim=(0, None))
    for name in epochs[0]["validation"]:
        validation.plot(at, [line["validation"][name] for line in epochs], marker="o", ms=3, label=name)
    validation.set(xlabel="step", ylabel="validation", ylim=(0, 1))
    for axes in (loss, validation):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    write_whole(plot, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
