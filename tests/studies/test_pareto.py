"""The Pareto frontier in cases worked by hand, and the picture of it."""

import re

import pytest

from neo_peft.runs.curves import as_svg, new_figure
from neo_peft.studies.pareto import Point, draw_pareto, frontier, label_box, overlap


def point(name: str, cost: float, score: float) -> Point:
    return Point(name, cost, score, score - 0.05, score + 0.05)


def test_the_frontier_has_the_points_that_no_other_one_beats():
    points = [
        point("dear and best", 900, 0.8),
        point("cheap", 10, 0.5),
        point("beaten by middle", 50, 0.6),
        point("middle", 40, 0.6),  # the same score for less
        point("the same cost, worse", 40, 0.55),
        point("dearer than the best, the same score", 1000, 0.8),
        point("cheapest", 1, 0.2),
        point("worse than cheap", 20, 0.4),
    ]
    names = [found.name for found in frontier(points)]
    assert names == ["cheapest", "cheap", "middle", "dear and best"]
    assert frontier([]) == [] and frontier(points[:1]) == points[:1]


def test_the_picture_has_each_point_its_name_and_the_frontier_as_steps():
    points = [point("a", 10, 0.5), point("b", 100, 0.4), point("c $x$", 1000, 0.7)]
    figure = new_figure(figsize=(5, 4))
    axes = figure.subplots()
    draw_pareto(axes, points, "numbers", "f1", log=True)
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("numbers", "f1")
    [line, others, best] = axes.lines
    assert line.get_drawstyle() == "steps-post"
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10, 1000], [0.5, 0.7])
    assert (list(others.get_xdata()), list(best.get_xdata())) == ([100], [10, 1000])
    assert {text.get_text(): text.xy for text in axes.texts} == {
        "a": (10, 0.5),
        "b": (100, 0.4),
        r"c \$x\$": (1000, 0.7),
    }
    ends = [tuple(part[:, 1]) for part in axes.collections[0].get_segments()]
    assert ends == [pytest.approx((p.low, p.high)) for p in points]


def test_names_of_points_at_one_place_do_not_cover_each_other():
    points = [point(f"recipe number {n}", 10 + n / 10, 0.5 + n / 500) for n in range(5)]
    figure = new_figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    draw_pareto(axes, points, "numbers", "f1")
    boxes = []
    for text in axes.texts:
        x, y = 72 / figure.dpi * axes.transData.transform(text.xy)
        side = {"left": 1, "center": 0, "right": -1}[text.get_ha()]
        height = {"bottom": 1, "center": 0, "top": -1}[text.get_va()]
        boxes.append(label_box(text.get_text(), x, y, (*text.xyann, side, height)))
    for index, box in enumerate(boxes):
        assert overlap(box, boxes[:index]) == 0


def test_the_colours_of_the_picture_are_those_of_the_pages_theme():
    svg = as_svg(draw_pareto, [point("a", 10, 0.5), point("b", 20, 0.6)], "numbers", "f1", True)
    colours = {*re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)} - {"none"}
    assert colours <= {"var(--ink)", "var(--first)", "var(--soft)"}
