"""The page of `python -m neo_peft look`: one HTML file in the style of the report."""

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from neo_peft.look.as_text import (
    GROUPS,
    change_cells,
    layer_name,
    metric_name,
    position_shares,
    shown_words,
)
from neo_peft.look.spectra import DIRECTIONS_OF_W
from neo_peft.reports.markup import Html, element, escaped, html_table, joined, note, section
from neo_peft.reports.report import TEMPLATE
from neo_peft.runs.curves import as_svg, finish
from neo_peft.runs.folder import short_name
from neo_peft.system.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_DIRECTIONS = 16  # in the table of two runs


def write_page(result: dict, out: Path) -> None:
    """Write the page on a look's result."""
    widest = largest_difference(result)
    sections = [heading(result), parts_section(result, widest)]
    sections.append(switched_off_section(result, widest))
    if result["changed_weights"]:
        sections.append(weights_section(result))
    sections += [agreement_section(other) for other in result["agreement"]]
    if result["in_front"]:
        sections += [words_section(result["in_front"]), attention_section(result["in_front"])]
    sections.append(readout_section(result["text"]))
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    body = element("article", *sections)
    write_text(out, template.substitute(title=escaped(f"look into {result['run']}"), body=body))


def largest_difference(result: dict) -> float:
    """Return the largest end of an interval of a difference, at least 0.01: all bars have it."""
    found = [*result["switched_off"], *filter(None, (part["added"] for part in result["parts"]))]
    return max([0.01, *(abs(part[end]) for part in found for end in ("low", "high"))])


def heading(result: dict) -> Html:
    """Return the run's name, what was scored, and the notes."""
    about = (
        f"{result['method']} on {short_name(result['model'])}; {result['rows']:,} of "
        f"{result['rows_in_split']:,} rows of {result['split']}, scored by {metric_name(result)}"
    )
    return element(
        "header",
        element("h2", f"Inside {result['task']}, {result['method']}"),
        element("p", result["run"], class_="folder"),
        element("p", about, class_="what"),
        *(element("p", line, class_="note") for line in result["notes"]),
    )


# ---- The score


def parts_section(result: dict, widest: float) -> Html:
    """Return the steps from the baseline to the run."""
    lines = [
        [
            part["name"],
            score_cell(part["score"], part["interval"]),
            change_cell(part["added"], widest),
        ]
        for part in result["parts"]
    ]
    about = (
        "Each line adds a part to the line above it. Below each number is its 95 % bootstrap "
        "interval, which for a difference is paired. A bar of a score goes from 0 to 1, that of a "
        f"difference from −{widest:.2f} to {widest:.2f} with 0 in the middle."
    )
    header = ["", metric_name(result), "adds"]
    return section("What each part adds", html_table(header, lines, "scores parts"), note(about))


def score_cell(score: float, interval: list[float]) -> Html:
    """Return a cell with a score, its interval, and a bar from 0 to 1 that shows both."""
    low, high = interval
    return bar_cell(f"{score:.3f}", f"{low:.3f}–{high:.3f}", [score, low, high])


def change_cell(found: dict | None, widest: float) -> Html:
    """Return a cell with a difference, its interval, and a bar from -widest to widest."""
    if found is None:
        return element("td", "–")
    numbers = [found[name] for name in ("difference", "low", "high")]
    shown, low, high = (f"{number:+.3f}".replace("-", "−") for number in numbers)
    weight = "b" if found["certain"] else "span"
    places = [0.5 + number / (2 * widest) for number in numbers]
    return bar_cell(element(weight, shown), f"{low} to {high}", places, "signed")


def bar_cell(shown: object, interval: str, places: list[float], class_: str | None = None) -> Html:
    """Return a cell with a number, an interval, and a bar. `places` of the number and of the
    interval's ends go from 0, left, to 1, right."""
    at, low, high = (f"{100 * min(1, max(0, place)):.1f}%" for place in places)
    bar = element("i", style=f"--at:{at};--low:{low};--high:{high}", class_=class_)
    return element("td", shown, element("small", interval), bar)


def switched_off_section(result: dict, widest: float) -> Html:
    """Return a table for each group of parts that were switched off."""
    tables, header = [], ["", metric_name(result), "difference", "rows that differ"]
    for group, title in GROUPS.items():
        lines = [
            [
                part["name"],
                f"{part['score']:.3f}",
                change_cell(part, widest),
                part["rows_that_differ"],
            ]
            for part in result["switched_off"]
            if part["group"] == group
        ]
        if lines:
            found = html_table(header, lines, "scores parts")
            tables.append(element("div", element("h4", title), found))
    about = (
        "Everything else stays as it was trained, the head too, and nothing is trained again. So a "
        "small difference shows that the rest does without the part, not that the part learned "
        "nothing. A difference is bold where its interval excludes zero and at least 10 rows "
        "differ. Among many lines one in twenty is bold by chance alone."
    )
    whole = {"score": result["score"]["value"], "interval": result["score"]["interval"]}
    own = f"The run itself: {whole['score']:.3f}."
    return section("One part switched off", element("p", own), *tables, note(about))


# ---- Changed weights


def weights_section(result: dict) -> Html:
    """Return the plots of the singular values, and a table of the norms."""
    by_kind = {}
    for found in result["changed_weights"]:
        by_kind.setdefault(found["layer"].split(".")[-1], []).append(found)
    figures = [
        element("figure", Html(as_svg(draw_values, kind, found))) for kind, found in by_kind.items()
    ]
    lines = []
    for found in result["changed_weights"]:
        *cells, amplification = change_cells(found)
        lines.append([*cells, f"{found['projected']:.3f}", f"{found['random']:.3f}", amplification])
    header = ["", "|W|", "|ΔW|", "|ΔW| / |W|", "first direction", "|UᵀWV|", "random", "amplified"]
    about = (
        "Norms are Frobenius norms. First direction: its share of |ΔW|². |UᵀWV|: how much W itself "
        f"does between the first directions of ΔW, at most {DIRECTIONS_OF_W}; random: between as "
        "many random directions. Amplified: the norm of ΔW in these directions / |UᵀWV|, so how "
        "much ΔW strengthens what W does there (Hu et al. 2021, section 7.3)."
    )
    return section(
        "Changed weights: the singular values of ΔW",
        element("div", *figures, class_="columns"),
        html_table(header, lines, "norms"),
        note(about),
    )


def draw_values(axes: "Axes", kind: str, changes: list[dict]) -> None:
    """Draw the singular values of one kind of layer, a line for each layer."""
    for found in changes:
        values = found["singular_values"]
        label = f"layer {found['layer'].split('.')[1]}" if len(changes) <= 5 else None
        marker = "o" if len(values) <= 64 else None
        axes.plot(range(1, len(values) + 1), values, marker=marker, ms=3, lw=1, label=label)
    if len(changes) > 5:
        axes.plot([], [], color="none", label=f"{len(changes)} layers")
    finish(axes, xlabel=f"singular value of {kind}", ylim=(0, None))


def agreement_section(other: dict) -> Html:
    """Return how far the directions of another run agree, for each layer."""
    groups = []
    for found in other["layers"]:
        tables = []
        for side, title in (("inputs", "input directions"), ("outputs", "output directions")):
            phi = [row[:SHOWN_DIRECTIONS] for row in found[side][:SHOWN_DIRECTIONS]]
            expected = f"{title}; random: {found[f'random_{side}']:.3f} for all"
            shown = heat_table(phi, [i + 1 for i in range(len(phi))], 1, "i \\ j") if phi else "–"
            tables.append(element("div", element("h4", expected), shown))
        at_all = (
            found[side][-1][-1] if found[side] and found[side][0] else 0.0
            for side in ("inputs", "outputs")
        )
        summary = element(
            "summary",
            element("b", layer_name(found["layer"])),
            element("span", " φ of all directions: input {:.3f}, output {:.3f}".format(*at_all)),
        )
        groups.append(element("details", summary, element("div", *tables, class_="columns")))
    about = (
        "φ(i, j) compares the first i directions of this run with the first j of the other: 1 if "
        "the smaller subspace is in the larger one, max(i, j) / size for random ones (Hu et al. "
        "2021, section 7.2; here with the singular vectors of ΔW)."
    )
    return section(f"Directions shared with {other['run']}", *groups, note(about))


def heat_table(
    rows: list[list[float]], names: list[object], first: int = 0, corner: str = "", scale: float = 1
) -> Html:
    """Return a table of numbers from 0 to `scale`, in percent of it; a larger one is darker.

    names: of the lines. first: the number of the first column.
    """
    lines = [[name, *(heat_cell(value, scale) for value in row)] for name, row in zip(names, rows)]
    header = [corner, *range(first, first + len(rows[0]))]
    return html_table(header, lines, "heat")


def heat_cell(value: float, scale: float = 1) -> Html:
    """Return a cell with a share in percent."""
    share = 100 * min(1, value / scale) if scale else 0
    return element("td", f"{100 * value:.0f}", style=f"--share:{share:.0f}%")


# ---- A prompt or prefix


def words_section(found: dict) -> Html:
    """Return each position's nearest words, and the norms."""
    before, after, norms = found["words"]["before"], found["words"]["after"], found["norms"]
    lines = []
    for position, words in enumerate(after):
        line = [position, shown_words(before[position][:1]) if before else "–", shown_words(words)]
        for when in ("before", "after"):
            line.append("–" if norms[when] is None else norm_of(norms[when], position))
        lines.append(line)
    about = (
        f"Nearest {found['compared_with']}, by the cosine. A cosine far below 1 means that the "
        "position is no word any more."
    )
    if "embeddings" in found["typical_norms"]:
        typical = found["typical_norms"]["embeddings"]
        about += f" The rows of wte have a mean norm of {typical:.2f}."
    else:
        about += " The norms are those of all layers' keys and values, the mean over the layers."
    header = ["position", "before", "after", "norm before", "after"]
    return section("What stands in front", html_table(header, lines, "words"), note(about))


def norm_of(norms: dict, position: int) -> str:
    """Return the norm of a position: of its embedding, or of its keys and values."""
    if "embeddings" in norms:
        return f"{norms['embeddings'][position]:.2f}"
    means = [
        sum(layer[position] for layer in norms[name]) / len(norms[name])
        for name in ("keys", "values")
    ]
    return "{:.2f}, {:.2f}".format(*means)


def attention_section(found: dict) -> Html:
    """Return the attention that the positions get: the mean of each layer, then all heads."""
    layers, names = found["attention"], [f"layer {i}" for i in range(len(found["attention"]))]
    means = [[sum(column) / len(heads) for column in zip(*heads, strict=True)] for heads in layers]
    largest = max(value for heads in layers for shares in heads for value in shares)
    largest_mean = max(value for row in means for value in row)
    each, head_names = [], []
    for name, heads in zip(names, layers, strict=True):
        each += heads
        head_names += [f"{name}, head {head}" for head in range(len(heads))]
    shares = position_shares(found)
    about = (
        "Percent of each token's attention, the mean over the tokens of "
        f"{found['attention_texts']} texts; columns are positions. "
        f"Together they get {sum(shares):.0%}; the rest goes to the text."
    )
    summary = element("summary", element("b", "each head"))
    return section(
        "Attention to what stands in front",
        heat_table(means, names, scale=largest_mean),
        element("details", summary, heat_table(each, head_names, scale=largest)),
        note(about),
    )


# ---- One text


def readout_section(text: dict) -> Html:
    """Return the probabilities of a text's tagged words, or of its labels, after each layer."""
    words = text["text"].get("tokens")
    shown = " ".join(words) if words else " / ".join(text["text"].values())
    parts = [element("p", shown)]
    for when in ("before", "after"):
        lines = [[target_name(target), *map(heat_cell, target[when])] for target in text["targets"]]
        if lines:
            header = ["after layer", "embeddings", *range(len(lines[0]) - 2)]
            title = element("h4", f"{when} tuning")
            parts.append(element("div", title, html_table(header, lines, "heat")))
    if not text["targets"]:
        parts.append(element("p", "No word of it is tagged.", class_="note"))
    instruction = text["instruction_before"].strip()
    front = f', with "{instruction}" in front' if instruction else ""
    about = (
        "Percent. After each layer the hidden state gets the final norm and the run's own head, as "
        f"if the layer were the last one. Before tuning: the untuned base{front}, with the same "
        "head. The layers were not trained for this; early ones can be far from the head's "
        "directions. "
    )
    if words is None:
        about += f"Predicted: {text['predicted']}."
    if text["gold"] and words is None:
        about += f" Gold: {text['gold']}."
    return section("One text, layer by layer", *parts, note(about))


def target_name(target: dict) -> Html:
    """Return a word with its tag, or a label."""
    if target["word"] is None:
        return escaped(target["label"])
    return joined([target["word"], element("small", target["label"])])
