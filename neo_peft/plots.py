"""The plot of a run: what it did over its steps."""

import json
from pathlib import Path

from neo_peft.files import write_whole


def learning_curves(metrics: Path, plot: Path) -> None:
    """Draw a run's loss at each step and each epoch, and its validation score, from its metrics.jsonl, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
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
