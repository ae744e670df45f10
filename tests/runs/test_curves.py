"""The learning curves of a run: they show the values of metrics.jsonl, and as SVG they have the
colours of the page."""

import json
import re
import xml.etree.ElementTree as ET
from functools import partial

import pytest
from answered import EPOCHS, STEPS
from matplotlib.figure import Figure

from neo_peft.metrics import entity_scores
from neo_peft.reports import report
from neo_peft.runs.curves import as_svg, draw_loss, draw_validation, learning_curves
from neo_peft.runs.summary import headline
from neo_peft.settings import make_settings
from neo_peft.tasks import get_task

PLACES = "first", "second", "third", "fourth", "fifth"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_plot_shows_the_values_of_the_log(tmp_path, monkeypatch):
    step = {"learning_rate": 0.1, "gradient_norm": None}
    lines = [
        {"step": number, "epoch": 1 + number // 3, "loss": 1 / number, **step}
        for number in range(1, 5)
    ]
    for epoch in (1, 2):
        scores = {"f1": 0.1 * epoch, "precision": 0.2 * epoch}
        line = {
            "step": 2 * epoch,
            "epoch": epoch,
            "train_loss": 0.5 / epoch,
            "validation_loss": 0.6 / epoch,
        }
        lines.append(line | {"validation": scores})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    learning_curves(tmp_path / "metrics.jsonl", tmp_path / "plot.png", get_task("ner"))
    loss, validation = drawn[0].axes
    curves = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines
    }
    assert curves["train, each step"] == ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4])
    assert curves["train, mean of the epoch"] == ([2, 4], [0.5, 0.25]) and curves["validation"] == (
        [2, 4],
        [0.6, 0.3],
    )
    assert {line.get_label(): list(line.get_ydata()) for line in validation.lines} == {
        "typed f1": [0.1, 0.2],
        "typed precision": [0.2, 0.4],
    }
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "plot.png"]


def test_curves_are_svg_in_the_pages_colours():
    scores = {"f1": 0.5, "precision": 0.4, "span_f1": 0.6, "$x_1$": 0.1, "<b>&": 0.2}
    lines = [*STEPS, *({**line, "validation": scores} for line in EPOCHS)]
    loss, validation = (
        partial(draw_loss, lines=lines),
        partial(draw_validation, lines=lines, task=get_task("ner")),
    )
    metrics = ["typed f1", "typed precision", "span-only f1", "$x_1$", "<b>&"]
    for draw, words in ((loss, ["train, each step", "validation"]), (validation, metrics)):
        text = as_svg(draw)
        root = ET.fromstring(text)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {*words} <= {*texts} and text == as_svg(draw)
        assert not re.search("#[0-9a-f]{6}", text) and {"var(--ink)", "var(--first)"} <= {
            *re.findall(r"var\(.*?\)", text)
        }
        names = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(names) == len({*names})


def test_each_metric_of_tagging_has_its_own_colour():
    # the scores in an epoch's line
    scores = {"f1": 0.5, "precision": 0.4, "recall": 0.3, "span_f1": 0.6, "macro_f1": 0.2}
    settings = make_settings(task="ner", method="head", metric="macro_f1")
    found = headline(get_task("ner"), settings, entity_scores([["O"]], [["O"]]))
    assert scores.keys() == found.keys()
    lines = [{**line, "validation": scores} for line in EPOCHS]
    text = as_svg(partial(draw_validation, lines=lines, task=get_task("ner")))
    colours = {f"var(--{place})" for place in PLACES}
    assert {*re.findall(r"stroke: (var\(--\w+\))", text)} >= colours


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(theme):
    """WCAG 2.2 requires 4.5 to 1 for text (1.4.3), and 3 to 1 for the lines of a graph (1.4.11)."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def mixed(colour, background, share):  # as color-mix(in srgb, …) does
        values = [[int(text[at : at + 2], 16) for at in (1, 3, 5)] for text in (colour, background)]
        return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in zip(*values))

    def contrast(first, second):
        high, low = sorted((luminance(first), luminance(second)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    block = re.findall(r":root \{(.*?)\}", report.TEMPLATE.read_text(), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    paper, ink = colours["paper"], colours["ink"]
    for name in ("ink", "soft", "good", "bad", *(f"type-{number}" for number in range(6))):
        assert contrast(colours[name], paper) >= 4.5, name
    for name in ("first", "second", "third", "fourth"):
        assert contrast(colours[name], paper) >= 3, name
    for number in range(6):  # a wrong entity: its words and its type, on its marking
        kind = colours[f"type-{number}"]
        for text in (ink, mixed(kind, ink, 0.5)):
            assert contrast(text, mixed(kind, paper, 0.25)) >= 4.5, number
    for name in ("good", "bad"):  # a full cell of the confusion matrix
        assert contrast(ink, mixed(colours[name], colours["raised"], 0.4)) >= 4.5, name
    for share in (
        "var(--kind) 50%, var(--ink)",
        "var(--kind) 25%, transparent",
        "calc(var(--share) * .4)",
    ):
        assert share in report.TEMPLATE.read_text()
