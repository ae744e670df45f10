"""The figures that the original study prints, next to those of a study with its recipe.

They are of GPT-Neo 1.3B, and shown where a study has `--preset paper` and sweeps epochs.
"""

from typing import NamedTuple

from neo_peft.runs.tables import number


class Printed(NamedTuple):
    """What the original study prints for a task."""

    split: str  # the rows that its figures are of; it calls all of them test
    protocol: str  # of PhraseBank's splits; else "single"
    figures: dict[int, dict[str, float]]  # {number of epochs: {metric: value}}; 0: before tuning
    note: str  # what a reader of its figures must know


def tagging(
    loss: float | None, precision: float, recall: float, f1: float, accuracy: float
) -> dict[str, float | None]:
    return {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy, "loss": loss}


ORIGINAL = {
    "ner": Printed(
        "validation",
        "single",
        {
            1: tagging(0.2826, 0.4883, 0.5986, 0.5379, 0.9031),
            2: tagging(0.2785, 0.5166, 0.5873, 0.5496, 0.9035),
            9: tagging(0.5892, 0.5208, 0.6256, 0.5684, 0.9048),
            10: tagging(None, 0.5154, 0.6200, 0.5629, 0.9041),
        },
        'The study calls epochs 1 and 2 "before tuning", and these sentences "test": they are the '
        "1,927 of validation.",
    ),
    "sentiment": Printed(
        "test",
        "paper",
        {0: {"generated": 0.0}, 1: {"generated": 0.647}, 5: {"generated": 0.832}}
        | {10: {"generated": 0.736}},
        "Most sentences of this test split are also in train: word counts alone reach 0.98 there.",
    ),
    "similarity": Printed(
        "test",
        "single",
        {0: {"generated": 0.0}, 1: {"generated": 0.662}, 5: {"generated": 0.713}}
        | {10: {"generated": 0.726}, 20: {"generated": 0.724}},
        'Always "equivalent" has 0.665 there, more than the study after one epoch.',
    ),
}


def original_lines(results: dict, protocol: str, block: dict) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table with the figures of both studies, for the numbers
    of epochs that both have. Without such a number there are no rows."""
    printed = ORIGINAL.get(results["task"])
    comparable = block["preset"] == "paper" and results["swept"] == "epochs"
    if printed is None or not comparable or printed.protocol != protocol:
        return [], []
    tuned = "epoch" if block["kept_epochs"] else "after"  # one run for all epochs, or one for each
    ours = {
        0 if line["kind"] == "before" else line["value"]: line["scores"]
        for line in block["lines"].get(printed.split, [])
        if line["kind"] in ("before", tuned)
    }
    return table_of(printed, ours)


def table_of(printed: Printed, ours: dict[int, dict]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows for these scores of ours, {epochs: {metric: {"mean": …}}}."""
    metrics = list(next(iter(printed.figures.values())))
    header = ["epochs"]
    for metric in metrics:
        name = {"generated": "accuracy, generated"}.get(metric, metric)
        header += [f"{name}: the study", "here"]
    rows = []
    for epochs, figures in printed.figures.items():
        if epochs in ours:
            row = [str(epochs) if epochs else "before tuning"]
            for metric in metrics:
                row += [number(figures[metric]), number(ours[epochs].get(metric, {}).get("mean"))]
            rows.append(row)
    return header, rows
