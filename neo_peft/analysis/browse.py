"""A run's predictions as HTML: scores by entity type or label, and each wrong prediction."""

from collections.abc import Callable

from neo_peft.analysis.markup import Html, cell, element, facts, html_table, joined, note, section
from neo_peft.analysis.mistakes import KINDS, mistakes
from neo_peft.corpora.splits import limit_rows
from neo_peft.metrics import Entity, entities
from neo_peft.runs.tables import number
from neo_peft.tasks import Task

SHOWN = 50  # at most so many errors of a group, evenly spaced


def by_type(task: Task, scores: dict, split: str) -> Html:
    """Return the scores of each entity type and of all types, and those of spans of any type."""
    names, of_types = ("precision", "recall", "f1"), scores["per_label"]
    lines = [
        [kind, *(number(of[name]) for name in names), of["support"]]
        for kind, of in of_types.items()
    ]
    total = sum(of["support"] for of in of_types.values())
    lines += [["all, typed", *(number(scores[name]) for name in names), total]]
    lines += [["all, span only", "", "", number(scores["span_f1"]), total]]
    about = (
        "Typed: an entity is right by its type and both ends. Span only: by both ends, "
        "whatever its type."
    )
    heading = ["type", "precision", "recall", "f1", "gold"]
    return section(f"Types, on {split}", html_table(heading, lines, "totals"), note(about))


def by_label(task: Task, scores: dict, split: str) -> Html:
    """Return the confusion matrix. A cell is shaded by its share of the gold label."""
    lines = []
    for right, (label, counts) in enumerate(zip(task.labels, scores["confusion"], strict=True)):
        cells = []
        for column, count in enumerate(counts):
            share = f"--share:{100 * count / max(1, sum(counts)):.0f}%"
            cells.append(cell(count, style=share, class_="right" if column == right else None))
        lines.append([label, *cells])
    about = (
        "Rows of the split; a cell is the stronger in colour, the larger its share of the gold "
        "label."
    )
    matrix = html_table(["gold \\ answer", *task.labels, "unanswered"], lines, "confusion")
    return section(f"Gold against answer, on {split}", matrix, note(about))


def wrong_entities(task: Task, rows: list[dict], split: str) -> Html:
    """Return the wrong entities by kind of mistake, marked in their sentences."""
    types = list(dict.fromkeys(label[2:] for label in task.labels if label != "O"))
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for row in rows:
        for kind, gold, answer in mistakes(row["tags"], row["predicted"]):
            found[kind].append((row, gold, answer))

    def show(wrong: tuple[dict, Entity | None, Entity | None]) -> Html:
        row, gold, answer = wrong
        pair = {"gold": (row["tags"], gold), "answer": (row["predicted"], answer)}
        return facts({name: sentence(row["tokens"], *of, types) for name, of in pair.items()})

    count = sum(len(entities(row["tags"])) for row in rows)
    right = count - sum(len(items) for kind, items in found.items() if kind != "spurious")
    about = (
        f"{count:,} gold entities in {len(rows):,} sentences, {right:,} right. Outlined is "
        "what a line is about."
    )
    groups = [group(kind, items, show, KINDS[kind]) for kind, items in found.items()]
    return section(f"Errors, on {split}", note(about), *groups)


def sentence(words: list[str], tags: list[str], wrong: Entity | None, types: list[str]) -> Html:
    """Return a sentence with its entities marked and the wrong one outlined."""
    parts, begin = [], 0
    for kind, first, last in entities(tags):
        style = f"type-{types.index(kind) % 6}" + " wrong" * ((kind, first, last) == wrong)
        name, inside = element("b", kind), " ".join(words[first : last + 1])
        parts += [
            " ".join(words[begin:first]),
            " ",
            element("mark", name, " ", inside, class_=style),
            " ",
        ]
        begin = last + 1
    return joined([*parts, " ".join(words[begin:])])


def wrong_answers(task: Task, rows: list[dict], split: str) -> Html:
    """Return the wrong rows by gold label and prediction, the commonest pair first."""
    *fields, label = task.fields
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        if row[label] != row["predicted"]:
            found.setdefault((row[label], row["predicted"] or "unanswered"), []).append(row)

    def show(row: dict) -> Html:
        return joined(element("p", row[field]) for field in fields)

    about = (
        f"{sum(map(len, found.values())):,} of {len(rows):,} rows are answered wrong: gold → "
        "answer."
    )
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    groups = [group(f"{gold} → {answer}", items, show) for (gold, answer), items in ordered]
    return section(f"Errors, on {split}", note(about), *groups)


def group(title: str, items: list, show: Callable[..., Html], about: str = "") -> Html:
    """Return a group of errors, folded, with their number and how many of them are shown."""
    shown = limit_rows(items, SHOWN)
    some = f"{len(shown)} of them shown" if len(shown) < len(items) else ""
    more = element("span", ", ".join(filter(None, [about, some])))
    summary = element("summary", element("b", f"{title} {len(items):,}"), " ", more)
    return element(
        "details", summary, element("ol", *(element("li", show(item)) for item in shown))
    )
