"""Answers to look at, as HTML: where they are right by type or label, and the wrong ones one by
one."""

from collections.abc import Callable

from neo_peft.analysis.markup import Html, cell, element, facts, joined, note, section, table
from neo_peft.analysis.mistakes import KINDS, mistakes
from neo_peft.corpora.splits import limit_rows
from neo_peft.metrics import Entity, entities
from neo_peft.runs.tables import number
from neo_peft.tasks import Task

SHOWN = 50  # errors of a group, evenly spaced over it


def by_type(task: Task, scores: dict, split: str) -> Html:
    """Show each entity type's scores, and those of all: typed, and of the spans alone."""
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
    return section(f"Types, on {split}", table(heading, lines, "totals"), note(about))


def by_label(task: Task, scores: dict, split: str) -> Html:
    """Show the confusion matrix, each cell shaded by its share of the gold label."""
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
    matrix = table(["gold \\ answer", *task.labels, "unanswered"], lines, "confusion")
    return section(f"Gold against answer, on {split}", matrix, note(about))


def wrong_entities(task: Task, rows: list[dict], split: str) -> Html:
    """Show the entities that are wrong, marked in their sentences, by kind."""
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
    """Mark the entities of a sentence, and outline the one that is wrong."""
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
    """Show the rows that are answered wrong, by gold label and answer, the commonest pair first."""
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
    """Fold a group of errors away, and say how many there are, and how many of them are shown."""
    shown = limit_rows(items, SHOWN)
    more = ", ".join(
        filter(None, [about, f"{len(shown)} of them shown" if len(shown) < len(items) else ""])
    )
    summary = element(
        "summary", element("b", f"{title} {len(items):,}"), " ", element("span", more)
    )
    return element(
        "details", summary, element("ol", *(element("li", show(item)) for item in shown))
    )
