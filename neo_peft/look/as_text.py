"""The tables that `python -m neo_peft look` prints. The page has all numbers (page.py)."""

from neo_peft.runs.folder import short_name
from neo_peft.runs.tables import shown_name, table
from neo_peft.tasks import Task, get_task

GROUPS = {
    "all": "the adapter, or a part of it, switched off",
    "layer": "one layer switched off",
    "directions": "each ΔW cut to its first k singular directions",
    "position": "one position left out",
}
MOST_POSITIONS = 3  # those that change the score most


def as_text(result: dict) -> str:
    """Return what a look found, as tables."""
    parts = [heading(result), parts_table(result), *switched_off_tables(result)]
    if result["changed_weights"]:
        parts.append(weights_table(result))
    parts += [agreement_table(other) for other in result["agreement"]]
    if result["in_front"]:
        parts.append(words_table(result["in_front"]))
    parts.append(readout_table(result["text"]))
    parts.append("\n".join(f"note    {line}" for line in result["notes"]))
    return "\n\n".join(filter(None, parts))


def heading(result: dict) -> str:
    """Return a line on the run and its rows."""
    kind = "sentences" if task_of_result(result).is_tagging else "rows"
    return (
        f"{result['task']}, {result['method']} on {short_name(result['model'])}: "
        f"{metric_name(result)} on {result['rows']:,} {kind} of {result['split']}; 95 % intervals "
        "in brackets"
    )


def task_of_result(result: dict) -> Task:
    return get_task(result["task"])


def metric_name(result: dict) -> str:
    """Return the printed name of the metric."""
    return shown_name(task_of_result(result), result["metric"])


def parts_table(result: dict) -> str:
    """Return the table of the steps from the baseline to the run."""
    lines = [
        [part["name"], with_interval(part["score"], part["interval"]), change(part["added"])]
        for part in result["parts"]
    ]
    return table(["what each part adds", "score", "adds"], lines)


def with_interval(score: float, interval: list[float]) -> str:
    """Return a score with its interval."""
    low, high = interval
    return f"{score:.3f} [{low:.3f}, {high:.3f}]"


def change(found: dict | None) -> str:
    """Return a difference with its interval; * where it excludes zero and enough rows differ."""
    if found is None:
        return ""
    numbers = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    return numbers + (" *" if found["certain"] else "  ")


def switched_off_tables(result: dict) -> list[str]:
    """Return a table for each group of parts, of the positions only those that matter most."""
    tables = []
    for group, title in GROUPS.items():
        found = [part for part in result["switched_off"] if part["group"] == group]
        if group == "position" and len(found) > MOST_POSITIONS:
            title += f" (the {MOST_POSITIONS} of {len(found)} that change the score most)"
            found.sort(key=lambda part: -abs(part["difference"]))
            found = found[:MOST_POSITIONS]
        lines = [
            [part["name"], f"{part['score']:.3f}", change(part), part["rows_that_differ"]]
            for part in found
        ]
        if lines:
            tables.append(table([title, "score", "difference", "rows that differ"], lines))
    return [*tables, "* the interval excludes zero, and at least 10 rows differ"]


def layer_name(name: str) -> str:
    """Return a linear layer's name for a table: "layer 0, q_proj"."""
    _, index, *_, kind = name.split(".")
    return f"layer {index}, {kind}"


def weights_table(result: dict) -> str:
    """Return the table of the changed weights."""
    header = ["changed weights", "|W|", "|ΔW|", "|ΔW| / |W|", "first direction", "amplification"]
    return table(header, [change_cells(found) for found in result["changed_weights"]])


def change_cells(found: dict) -> list[str]:
    """Return the cells of a changed weight: its name, norms, the share of its first direction, and
    its amplification."""
    return [
        layer_name(found["layer"]),
        f"{found['base_norm']:.2f}",
        f"{found['norm']:.3f}",
        f"{found['norm'] / found['base_norm']:.3f}",
        f"{first_share(found):.0%}",
        "–" if found["amplification"] is None else f"{found['amplification']:.2f}",
    ]


def first_share(found: dict) -> float:
    """Return the share of the first direction in |ΔW|²."""
    return (found["singular_values"][0] / found["norm"]) ** 2 if found["norm"] else 0.0


def agreement_table(other: dict) -> str:
    """Return the table of the directions that another run shares: φ(1, 1), and φ of all."""
    lines = []
    for found in other["layers"]:
        line = [layer_name(found["layer"])]
        for side in ("inputs", "outputs"):
            phi = found[side]
            values = (phi[0][0], phi[-1][-1]) if phi and phi[0] else ("–", "–")
            line += [value if value == "–" else f"{value:.3f}" for value in values]
            line.append(f"{found[f'random_{side}']:.3f}")
        lines.append(line)
    header = [f"directions shared with {other['run']}"]
    for side in ("input", "output"):
        header += [f"{side} φ(1, 1)", "φ of all", "random"]
    return table(header, lines)


def words_table(found: dict) -> str:
    """Return the table of the words that a prompt is most similar to."""
    before, after = found["words"]["before"], found["words"]["after"]
    shares = position_shares(found)
    lines = []
    for position, words in enumerate(after):
        start = shown_words(before[position][:1]) if before else "–"
        lines.append([position, start, shown_words(words), f"{shares[position]:.1%}"])
    title = f"position (nearest {found['compared_with']})"
    return table([title, "before", "after, with the cosine", "attention"], lines)


def shown_words(words: list[list]) -> str:
    """Return words with their cosines."""
    return ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in words)


def position_shares(found: dict) -> list[float]:
    """Return each position's share of attention, the mean over all heads of all layers."""
    heads = [shares for layer in found["attention"] for shares in layer]
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)]


def readout_table(text: dict) -> str:
    """Return the table of a text's probabilities after each layer."""
    lines = []
    for target in text["targets"]:
        name = target["label"] if target["word"] is None else f"{target['word']} {target['label']}"
        for when in ("before", "after"):
            lines.append([f"{name}, {when}", *(f"{value:.2f}" for value in target[when])])
    layers = len(text["targets"][0]["after"]) if text["targets"] else 1
    words = text["text"].get("tokens")
    shown = " ".join(words) if words else " / ".join(text["text"].values())
    title = "probability after each layer"
    if not lines:
        return f"{shown}\nno word of it is tagged"
    return f"{shown}\n" + table([title, "embeddings", *range(layers - 1)], lines)
