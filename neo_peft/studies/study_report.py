"""The HTML page of a study of recipes or of two sweeps: tables and pictures, in the report's
style."""

from pathlib import Path
from string import Template

from neo_peft.reports.markup import Html, element, escaped, html_table, joined, note, section
from neo_peft.reports.report import TEMPLATE, refuse_other_file
from neo_peft.studies.heat_map import grid_table
from neo_peft.studies.pictures import Picture
from neo_peft.studies.recipe_table import INTERVAL, choice_table, explanation, recipe_table
from neo_peft.system.files import write_text

PAGE = "report.html"  # in the study's folder


def write_study_report(
    folder: Path,
    results: dict,
    title: str,
    sentences: dict[str, str],
    found: dict[str, list[Picture]],
    metric: str,
) -> None:
    """Write the page.

    title: what was compared. sentences, found: the verdict and the pictures of each protocol.
    metric: the printed name of the task's metric.
    """
    refuse_other_file(folder / PAGE)
    articles = [
        article(results, protocol, title, sentences[protocol], found[protocol], metric)
        for protocol in results["protocols"]
    ]
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    text = template.substitute(title=escaped(title), body=joined(articles))
    write_text(folder / PAGE, text)


def article(
    results: dict, protocol: str, title: str, sentence: str, found: list[Picture], metric: str
) -> Html:
    """Return the part of the page on one protocol."""
    block, parts = results["protocols"][protocol], []
    figures = [
        element("figure", element("h4", picture.title), Html(picture.svg)) for picture in found
    ]
    drawn = element("div", *figures, class_="columns")
    if "recipes" in block:
        rows = f"{block['rows'][block['judged']]:,} rows of {block['judged']}"
        table = html_table(*with_intervals(*recipe_table(results, block, metric)), "recipes")
        parts.append(section(f"Recipes, on {rows}", table, note(explanation(results))))
        about = (
            "The line goes through the recipes that no other one beats: none has the same score "
            "or a higher one for less. Thin lines are 95 % intervals."
        )
        parts.append(section("Scores against costs", drawn, note(about)))
    if results.get("choices"):
        about = "The score on validation with the first seed. * is the chosen value."
        tried = html_table(*choice_table(results), "recipes")
        parts.append(section("Values that were tried", tried, note(about)))
    if "grid" in results:
        about = "Means over the seeds. * is the best combination on validation."
        table = html_table(*grid_table(results, block))
        parts.append(section("Heat map, on validation", drawn, table, note(about)))
    protocol_text = "" if protocol == "single" else f"protocol {protocol}"
    header = element(
        "header",
        element("h2", title),
        element("p", protocol_text, class_="what"),
        element("p", sentence, class_="verdict"),
        element("p", results["command"], class_="folder"),
    )
    return element("article", header, *parts)


def with_intervals(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list]]:
    """Return a table in which each interval stands below the number that it belongs to."""
    merged = []
    for row in rows:
        cells = []
        for title, text in zip(header, row, strict=True):
            if title == INTERVAL:
                cells[-1] = element("td", cells[-1], element("small", text))
            else:
                cells.append(text)
        merged.append(cells)
    return [title for title in header if title != INTERVAL], merged
