"""Plain text tables: what a run prints before, and what it has reached at the end."""

from collections.abc import Sequence

from neo_peft.metrics import entities
from neo_peft.tasks import Task


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in cells
    ]
    return "\n".join(
        [lines[0].rstrip(), "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])]
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown that is as readable where nothing renders it."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = widths
    cells.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    lines = []
    for name, *numbers in cells:
        parts = [name.ljust(first), *(cell.rjust(width) for cell, width in zip(numbers, others))]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


# What a measure is called where it is shown: a figure of tags says whether the types count.
OF_TAGS = {
    "f1": "typed f1",
    "precision": "typed precision",
    "recall": "typed recall",
    "span_f1": "span-only f1",
    "accuracy": "accuracy of words",
}


def metrics_shown(task: Task) -> list[str]:
    """Return the names of the metrics that a table of scores has, in order."""
    of_answers = (task.metric, "accuracy", "macro_f1")
    names = ("f1", "precision", "recall", "span_f1") if task.tags_words else of_answers
    return list(dict.fromkeys(names))


def shown_name(task: Task, measure: str) -> str:
    return OF_TAGS.get(measure, measure) if task.tags_words else measure.replace("_", " ")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def before_after(task: Task, splits: dict[str, dict[str, dict]]) -> str:
    """Show the scores {split: {"majority" | "before" | "after" | …: scores}} beside one another."""
    columns = list(next(iter(splits.values())))
    rows = [
        [f"{split} {measure}", *(number(scores[column].get(measure)) for column in columns)]
        for split, scores in splits.items()
        for measure in metrics_shown(task)
    ]
    return table(["", *columns], rows)


def per_label(task: Task, scores: dict) -> str:
    """Show each entity type's or label's precision, recall, F1 and count; of answers the confusion
    matrix too."""
    rows = [
        [
            label,
            *(number(values[name]) for name in ("precision", "recall", "f1")),
            values["support"],
        ]
        for label, values in scores["per_label"].items()
    ]
    text = table(["", "precision", "recall", "f1", "support"], rows)
    if task.tags_words:
        return text
    header = ["gold \\ answer", *task.labels, "unanswered"]
    confusion = [
        [label, *counts] for label, counts in zip(task.labels, scores["confusion"], strict=True)
    ]
    return text + "\n\n" + table(header, confusion)


def adapted(modules: dict[str, list[str]]) -> str:
    """Show the layers that carry LoRA, by kind: how many, the first and the last."""
    rows = [[kind, len(names), names[0], names[-1]] for kind, names in modules.items()]
    return table(["adapted layer", "number", "first", "last"], rows)


def scores(task: Task, scores: dict) -> str:
    """Show the scores of one split in a few lines."""
    if task.tags_words:
        kinds = {"micro": scores, "macro": scores["macro"]}
        lines = [
            f"{kind} f1 {number(of['f1'])} (precision {number(of['precision'])}, recall "
            f"{number(of['recall'])})"
            for kind, of in kinds.items()
        ]
        lines.append(
            f"spans alone f1 {number(scores['span_f1'])}, words accuracy "
            f"{number(scores['accuracy'])}"
        )
        return "\n".join(lines)
    f1 = "".join(
        f", {name} {number(scores[name])}" for name in ("f1", "matthews") if name in scores
    )
    return (
        f"accuracy {number(scores['accuracy'])}{f1}, macro f1 {number(scores['macro_f1'])}: total "
        f"{scores['total']}, "
        f"hits {scores['hits']}, unanswered {scores['unanswered']}"
    )


def answers(
    task: Task, rows: Sequence[dict], predicted: Sequence, said: Sequence[str] | None
) -> list[str]:
    """Show answers one by one: a tagged sentence's gold and answer, or a text with both labels,
    right or wrong."""
    lines = []
    for index, row in enumerate(rows):
        if task.tags_words:
            lines += [
                "gold    " + marked(row["tokens"], row["tags"]),
                "answer  " + marked(row["tokens"], predicted[index]),
                "",
            ]
            continue
        gold, answer = row[task.fields[-1]], predicted[index]
        lines += [" | ".join(row[field] for field in task.fields[:-1])]
        lines += [
            f"  <{gold}> <{answer or 'unanswered'}> [{'Right' if answer == gold else 'Wrong'}]"
        ]
        lines += [f"  said: {said[index]!r}"] if said else []
    return lines


def marked(words: Sequence[str], tags: Sequence[str], kinds: Sequence[str] = ()) -> str:
    """Mark a sentence's entities inline: `the [DNA IL-2 promoter] binds`; in the terminal's colours
    with `kinds`."""
    text = list(words)
    for kind, first, last in entities(tags):
        before, behind = paint("|", kinds.index(kind)).split("|") if kinds else ("", "")
        text[first] = f"{before}[{kind} {text[first]}"
        text[last] += "]" + behind
    return " ".join(text)


def paint(text: str, index: int) -> str:
    """Colour a text on a terminal: red, blue, green, magenta, cyan, yellow."""
    return f"\033[{(31, 34, 32, 35, 36, 33)[index % 6]}m{text}\033[0m"
