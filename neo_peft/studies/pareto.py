"""The picture of scores against costs: each recipe is a labelled point, and a line goes through
those that no other recipe beats.

A recipe is on this line, the Pareto frontier, if no other one has at least its score for less, or a
higher score for the same.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 8  # of labels, in points
# Where a label can be, in the order of preference: the offset of its near edge from the point, in
# points, and the side of the point (-1: left or below, 0: centred, 1: right or above).
PLACES = [
    (distance * dx, distance * dy, dx, dy)
    for distance in (6, 12, 20)
    for dx, dy in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
]
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


class Point(NamedTuple):
    """A recipe in the picture."""

    name: str  # its label
    cost: float  # on the x-axis
    score: float  # on the y-axis
    low: float  # the lower end of the score's interval
    high: float  # the upper end


def frontier(points: list[Point]) -> list[Point]:
    """Return the points that no other one beats, by rising cost."""
    chosen: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not chosen or point.score > chosen[-1].score:
            chosen.append(point)
    return chosen


def draw_pareto(
    axes: "Axes", points: list[Point], cost: str, score: str, log: bool = False
) -> None:
    """Draw the points with their intervals, names and frontier. `cost` and `score` name the axes;
    `log` is for the axis of costs."""
    best = frontier(points)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.16, y=0.08)
    axes.grid(alpha=0.2)
    xs, ys = [point.cost for point in points], [point.score for point in points]
    if min(xs) == max(xs):
        reach = xs[0] / 2 or 1  # runs of one step can have 0 seconds
        axes.set_xlim(xs[0] - reach, xs[0] + reach)
    axes.vlines(xs, [p.low for p in points], [p.high for p in points], color=soft(), lw=0.7)
    axes.step([p.cost for p in best], [p.score for p in best], where="post", color="C0", lw=1.2)
    on_line = [point in best for point in points]
    for is_best, colour in ((False, soft()), (True, "C0")):
        chosen = [index for index, found in enumerate(on_line) if found == is_best]
        axes.plot(
            [xs[index] for index in chosen],
            [ys[index] for index in chosen],
            ls="",
            marker="o",
            ms=5,
            color=colour,
        )
    axes.set(xlabel=cost, ylabel=score)
    add_labels(axes, points, best)


def soft() -> str:
    """Return the colour of what is less important: that of the grid."""
    import matplotlib

    return matplotlib.rcParams["grid.color"]


def add_labels(axes: "Axes", points: list[Point], best: list[Point]) -> None:
    """Write the name of each point next to it, where it covers no other name, no point and no part
    of the line through the points `best`."""
    figure = axes.figure
    figure.draw_without_rendering()  # so that the axes have their place
    scale = 72 / figure.dpi  # from pixels to points

    def place(cost: float, score: float) -> tuple[float, float]:
        return tuple(scale * axes.transData.transform((cost, score)))

    at = [place(point.cost, point.score) for point in points]
    frame = [scale * edge for edge in axes.bbox.extents]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    for point, following in pairwise(best):  # a step: to the right, then up
        (left, bottom), (right, top) = place(*point[1:3]), place(*following[1:3])
        taken += [(left, bottom - 1, right, bottom + 1), (right - 1, bottom, right + 1, top)]
    for point, (x, y) in sorted(zip(points, at), key=lambda pair: -pair[0].score):
        boxes = [label_box(point.name, x, y, place) for place in PLACES]
        costs = [overlap(box, taken) + outside(box, frame) for box in boxes]
        index = costs.index(min(costs))
        taken.append(boxes[index])
        dx, dy, side, height = PLACES[index]
        far = max(abs(dx), abs(dy)) > PLACES[0][0]
        axes.annotate(
            point.name.replace("$", r"\$"),  # "$" would start a formula
            (point.cost, point.score),
            (dx, dy),
            textcoords="offset points",
            fontsize=FONT,
            ha=("right", "center", "left")[side + 1],
            va=("top", "center", "bottom")[height + 1],
            arrowprops={"arrowstyle": "-", "color": soft(), "lw": 0.6} if far else None,
        )


def label_box(name: str, x: float, y: float, place: tuple) -> Box:
    """Return the box of a label for a point at (x, y), from the number of its characters."""
    dx, dy, side, height = place
    width, tall = 0.58 * FONT * len(name), 1.2 * FONT
    left, bottom = x + dx - width * (1 - side) / 2, y + dy - tall * (1 - height) / 2
    return left, bottom, left + width, bottom + tall


def overlap(box: Box, others: list[Box]) -> float:
    """Return the area of a box that others cover."""
    total = 0.0
    for other in others:
        width = min(box[2], other[2]) - max(box[0], other[0])
        tall = min(box[3], other[3]) - max(box[1], other[1])
        total += max(0.0, width) * max(0.0, tall)
    return total


def outside(box: Box, frame: list[float]) -> float:
    """Return how far a box reaches out of the axes, as a cost that outweighs overlapping."""
    left, bottom, right, top = frame
    over = (left - box[0], bottom - box[1], box[2] - right, box[3] - top)
    return 100 * sum(max(0.0, distance) for distance in over)
