"""Plain text tables: what a run trains, its scores and its predictions."""

from collections.abc import Sequence

from neo_peft.metrics import entities
from neo_peft.tasks import Task


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text. The first column is aligned left, the others right."""
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
    """Return a table in Markdown, aligned so that it is readable as plain text too."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = widths
    cells.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    lines = []
    for name, *numbers in cells:
        parts = [name.ljust(first), *(cell.rjust(width) for cell, width in zip(numbers, others))]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


# How the metrics of tags are named for a reader.
TAG_METRICS = {
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


def shown_name(task: Task, metric: str) -> str:
    """Return the name of a metric as a reader sees it."""
    return TAG_METRICS.get(metric, metric) if task.tags_words else metric.replace("_", " ")


def number(value: float | None) -> str:
    """Return a score as text."""
    return "–" if value is None else f"{value:.3f}"


def before_after(task: Task, splits: dict[str, dict[str, dict]]) -> str:
    """Return a table of scores, with a column for each of "majority", "before", "after", …

    `splits` is {split: {column: scores}}.
    """
    columns = list(next(iter(splits.values())))
    rows = [
        [f"{split} {metric}", *(number(scores[column].get(metric)) for column in columns)]
        for split, scores in splits.items()
        for metric in metrics_shown(task)
    ]
    return table(["", *columns], rows)


def per_label(task: Task, scores: dict) -> str:
    """Return a table of the scores of each entity type or label. Labels have a confusion matrix
    as well."""
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
    """Return a table of the layers with LoRA: for each kind the number, the first and the last."""
    rows = [[kind, len(names), names[0], names[-1]] for kind, names in modules.items()]
    return table(["adapted layer", "number", "first", "last"], rows)


def scores(task: Task, scores: dict) -> str:
    """Return the scores of one split in a few lines."""
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
    """Return lines that show each row with its gold labels and the prediction."""
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
    """Return a sentence with its entities marked, as in `the [DNA IL-2 promoter] binds`.

    With `kinds`, the entity types in order, each type has a colour of the terminal.
    """
    text = list(words)
    for kind, first, last in entities(tags):
        before, behind = paint("|", kinds.index(kind)).split("|") if kinds else ("", "")
        text[first] = f"{before}[{kind} {text[first]}"
        text[last] += "]" + behind
    return " ".join(text)


def paint(text: str, index: int) -> str:
    """Return a text in one of six colours of a terminal."""
    return f"\033[{(31, 34, 32, 35, 36, 33)[index % 6]}m{text}\033[0m"
