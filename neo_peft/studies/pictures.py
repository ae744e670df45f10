"""The pictures of a study, as SVG files and as elements of its HTML page: Pareto pictures of
recipes, and heat maps of two sweeps. They follow the reader's choice of a light or dark theme."""

import re
from pathlib import Path
from typing import NamedTuple

from neo_peft.reports.report import TEMPLATE
from neo_peft.runs.curves import THEME, as_svg
from neo_peft.studies.heat_map import draw_heat_map
from neo_peft.studies.pareto import draw_pareto
from neo_peft.studies.recipe_table import points
from neo_peft.system.files import write_text

# The costs that are drawn: a field of a recipe's line, the name of the axis, whether it is
# logarithmic.
COSTS = (("trainable", "trained numbers", True), ("cpu_seconds", "CPU seconds of training", False))


class Picture(NamedTuple):
    """A picture of a study."""

    file: str  # its file in the study's folder
    title: str  # what it shows
    svg: str  # an SVG element


def pictures(results: dict, protocol: str, metric: str) -> list[Picture]:
    """Return the pictures of one protocol. `metric` is the printed name of the task's metric."""
    block, found = results["protocols"][protocol], []
    for field, title, log in COSTS if "recipes" in block else ():
        if shown := points(results, block, field):
            svg = as_svg(
                draw_pareto, shown, title, f"{metric} on {block['judged']}", log, size=(4.6, 4.0)
            )
            found.append(Picture(pareto_name(title), f"{metric} against {title}", svg))
    if "grid" in results:
        rows, columns = (len(axis["values"]) for axis in results["grid"])
        size = max(4.6, 0.8 + 0.6 * columns), 0.8 + 0.4 * rows
        svg = as_svg(draw_heat_map, results, block, size=size)
        found.append(Picture(heat_map_name(protocol), f"{metric} on validation", svg))
    return found


def pareto_name(title: str) -> str:
    """Return the file name of a Pareto picture: `pareto-trained-numbers.svg`."""
    return f"pareto-{'-'.join(title.split()[:2]).lower()}.svg"


def heat_map_name(protocol: str) -> str:
    """Return the file name of a protocol's heat map."""
    return "heat-map.svg" if protocol == "single" else f"heat-map-{protocol}.svg"


def write_pictures(folder: Path, found: list[Picture]) -> None:
    """Write the SVG files. Each has the colours of both themes."""
    for picture in found:
        start, end, rest = picture.svg.partition(">")
        write_text(folder / picture.file, f"{start}{end}\n<style>{theme()}</style>{rest}\n")


def theme() -> str:
    """Return the colours of the report's page that pictures have, as CSS for both themes."""
    css = TEMPLATE.read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    names = "|".join(variable.removeprefix("var(--").rstrip(")") for variable in THEME.values())
    light, dark = (
        " ".join(
            f"{name}: {value};" for name, value in re.findall(rf"(--(?:{names})): (#\w+);", part)
        )
        for part in (light, dark)
    )
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
