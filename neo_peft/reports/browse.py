"""A run's predictions as HTML: scores by entity type or label, and wrong predictions."""

from collections.abc import Callable

from neo_peft.corpora.splits import limit_rows
from neo_peft.metrics import Entity, entities
from neo_peft.reports.markup import Html, element, html_table, joined, name_list, note, section
from neo_peft.reports.mistakes import KINDS, Mistake, mistakes
from neo_peft.runs.tables import RATES, confusion_header, entity_types, number, rates
from neo_peft.tasks import Task

MOST_SHOWN = 50  # number of wrong predictions shown in each group, evenly spaced


def by_type(task: Task, scores: dict, split: str) -> Html:
    """Return a table of the scores of each entity type, of all types, and of spans of any type."""
    per_type = scores["per_label"]
    lines = [[name, *rates(of_type), of_type["support"]] for name, of_type in per_type.items()]
    total = sum(of_type["support"] for of_type in per_type.values())
    lines.append(["all, typed", *rates(scores), total])
    lines.append(["all, span only", "", "", number(scores["span_f1"]), total])
    return section(
        f"Entity types, on {split}",
        html_table(["type", *RATES, "gold entities"], lines, "totals"),
        note(
            "Typed: a predicted entity is correct if its type, first word and last word are "
            "correct. Span only: its type is ignored."
        ),
    )


def by_label(task: Task, scores: dict, split: str) -> Html:
    """Return the confusion matrix. A cell's colour shows its share of the gold label."""
    lines = []
    for row, (label, counts) in enumerate(zip(task.labels, scores["confusion"], strict=True)):
        cells = []
        for column, count in enumerate(counts):
            share = f"--share:{100 * count / max(1, sum(counts)):.0f}%"
            css_class = "right" if column == row else None
            cells.append(element("td", count, style=share, class_=css_class))
        lines.append([label, *cells])
    return section(
        f"Confusion matrix, on {split}",
        html_table(confusion_header(task), lines, "confusion"),
        note(
            "A cell counts examples with this gold label (row) and this prediction (column). A "
            "stronger colour is a larger share of the gold label's examples."
        ),
    )


def wrong_entities(task: Task, rows: list[dict], split: str) -> Html:
    """Return the wrong entities by kind of mistake, marked in their sentences."""
    types, wrong = entity_types(task), {kind: [] for kind in KINDS}
    for row in rows:
        for mistake in mistakes(row["tags"], row["predicted"]):
            wrong[mistake.kind].append((row, mistake))

    def show(item: tuple[dict, Mistake]) -> Html:
        row, mistake = item
        gold = sentence(row["tokens"], row["tags"], mistake.gold, types)
        predicted = sentence(row["tokens"], row["predicted"], mistake.predicted, types)
        return name_list({"gold": gold, "prediction": predicted})

    count = sum(len(entities(row["tags"])) for row in rows)
    correct = count - sum(len(wrong[kind]) for kind in KINDS if kind != "spurious")
    return section(
        f"Wrong predictions, on {split}",
        note(
            f"{count:,} gold entities in {len(rows):,} sentences, {correct:,} predicted "
            "correctly. The entity of the mistake has an outline."
        ),
        *(group(kind, wrong[kind], show, about) for kind, about in KINDS.items()),
    )


def sentence(words: list[str], tags: list[str], wrong: Entity | None, types: list[str]) -> Html:
    """Return a sentence with its entities marked; the entity `wrong` has an outline."""
    parts, start = [], 0
    for entity in entities(tags):
        kind, first, last = entity
        style = f"type-{types.index(kind) % 6}" + " wrong" * (entity == wrong)
        inside = element("b", kind), " ", " ".join(words[first : last + 1])
        parts += [" ".join(words[start:first]), " ", element("mark", *inside, class_=style), " "]
        start = last + 1
    return joined([*parts, " ".join(words[start:])])


def wrong_labels(task: Task, rows: list[dict], split: str) -> Html:
    """Return the wrongly predicted rows by gold label and prediction, most frequent pair first."""
    *fields, label = task.fields
    wrong = {}
    for row in rows:
        if row[label] != row["predicted"]:
            pair = f"{row[label]} → {row['predicted'] or 'unanswered'}"
            wrong.setdefault(pair, []).append(row)

    def show(row: dict) -> Html:
        return joined(element("p", row[field]) for field in fields)

    count = sum(map(len, wrong.values()))
    about = f"{count:,} of {len(rows):,} predictions are wrong. Groups: gold label → prediction."
    most_frequent = sorted(wrong, key=lambda pair: -len(wrong[pair]))
    groups = [group(pair, wrong[pair], show) for pair in most_frequent]
    return section(f"Wrong predictions, on {split}", note(about), *groups)


def group(title: str, items: list, show: Callable[..., Html], about: str = "") -> Html:
    """Return a folded group of wrong predictions, with their number and the number shown."""
    shown = limit_rows(items, MOST_SHOWN)
    parts = [about] if about else []
    if len(shown) < len(items):
        parts.append(f"{len(shown)} of them shown")
    title = element("b", f"{title} {len(items):,}")
    summary = element("summary", title, " ", element("span", ", ".join(parts)))
    lines = [element("li", show(item)) for item in shown]
    return element("details", summary, element("ol", *lines))
