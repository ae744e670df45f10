"""A small writer of SVG: boxes, words, lines and arrows, in light and dark.

Colours have names. A style sheet in the file gives each name its colour, and another one under
`prefers-color-scheme: dark`. A drawing brings its own background, so it can also be read on a white
and on a black page in a viewer that does not look at the reader's choice.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape

# name: light, dark
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),  # the background
    "ink": ("#1f2328", "#f0f6fc"),  # words and wires
    "pale": ("#57606a", "#a5b0bc"),  # words of less weight
    "edge": ("#8c959f", "#6e7781"),  # borders
    "frozen": ("#dde5ee", "#2b3644"),
    "trained": ("#ffb757", "#8f4a00"),
    "gradient": ("#a84b00", "#ffa657"),  # the backward pass, and borders of what it reaches
    "passed": ("#fff3e0", "#33230f"),  # the backward pass goes through it
    "unseen": ("#f3f5f7", "#1a2029"),  # masked keys
    "text_1": ("#bcd9ff", "#1d4f8f"),
    "text_2": ("#bfe8c5", "#1c5a2c"),
    "text_3": ("#e2d0f8", "#5a3791"),
    "text_4": ("#fccfdb", "#84294b"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif"
SMALL, NORMAL, LARGE = 14, 16, 18  # font sizes
WIDTH = 560  # of every drawing: narrow, so that words can be read on a phone
MODEL = "neo-mini"  # its shapes and counts are in the drawings


class Drawing:
    """An SVG of some width and height, to which shapes are added from back to front."""

    def __init__(self, name: str, width: int, height: int, title: str, description: str):
        self.name, self.width, self.height = name, width, height
        self.title, self.description = title, description
        self.shapes: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, "paper", radius=10)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        words: str = "",
        *,
        edge: str = "edge",
        thick: float = 1,
        dashed: bool = False,
        radius: float = 3,
        size: int = NORMAL,
        bold: bool = False,
        ink: str = "ink",
    ) -> None:
        """Add a rectangle with words in its middle."""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self.shapes.append(
            f'<rect class="{fill} {edge}-line" x="{x:g}" y="{y:g}" width="{width:g}" '
            f'height="{height:g}" rx="{radius:g}" stroke-width="{thick:g}"{dashes}/>'
        )
        if words:
            self.words(x + width / 2, y + height / 2 + 0.35 * size, words, size, bold, ink)

    def words(
        self,
        x: float,
        y: float,
        words: str,
        size: int = NORMAL,
        bold: bool = False,
        ink: str = "ink",
        anchor: str = "middle",
    ) -> None:
        """Add a line of words; y is its baseline, and x its start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text class="{ink}" x="{x:g}" y="{y:g}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def paragraph(self, x: float, y: float, lines: Sequence[str], **options) -> None:
        """Add lines of words, one under the other."""
        for index, line in enumerate(lines):
            self.words(x, y + 21 * index, line, anchor="start", **options)

    def line(
        self,
        *points: tuple[float, float],
        ink: str = "ink",
        thick: float = 1.5,
        arrow: bool = False,
    ) -> None:
        """Add a line through points; with `arrow`, a head at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        path = list(points)
        if arrow:
            length = max(abs(x1 - x0), abs(y1 - y0))  # lines are horizontal or vertical
            along = ((x1 - x0) / length, (y1 - y0) / length)
            long, half = 4 + 3 * thick, 2.5 + 1.5 * thick
            base = (x1 - long * along[0], y1 - long * along[1])
            corners = [
                (x1, y1),
                (base[0] - half * along[1], base[1] + half * along[0]),
                (base[0] + half * along[1], base[1] - half * along[0]),
            ]
            path[-1] = base
            self.shapes.append(f'<polygon class="{ink}" points="{_joined(corners)}"/>')
        self.shapes.append(
            f'<polyline class="{ink}-line" points="{_joined(path)}" fill="none" '
            f'stroke-width="{thick:g}"/>'
        )

    def bracket(self, x0: float, x1: float, y: float, words: str, bold: bool = False) -> None:
        """Add a bracket under the range x0 to x1, and words under it."""
        self.line((x0, y), (x0, y + 7), (x1, y + 7), (x1, y), ink="pale")
        self.words((x0 + x1) / 2, y + 26, words, bold=bold)

    def circle(self, x: float, y: float, radius: float, words: str) -> None:
        self.shapes.append(
            f'<circle class="paper ink-line" cx="{x:g}" cy="{y:g}" r="{radius:g}" '
            'stroke-width="1.5"/>'
        )
        self.words(x, y + 6, words, LARGE)

    def __str__(self) -> str:
        """Return the SVG file."""
        light, dark = (
            "".join(
                f".{name}{{fill:{pair[mode]}}}.{name}-line{{stroke:{pair[mode]}}}"
                for name, pair in COLOURS.items()
            )
            for mode in (0, 1)
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc" font-family="{FONT}">',
            f'<title id="{self.name}-title">{escape(self.title)}</title>',
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>',
            f"<style>{light}\n@media (prefers-color-scheme: dark){{{dark}}}</style>",
        )
        return "\n".join((*head, *self.shapes, "</svg>\n"))


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
