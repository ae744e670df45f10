"""Plain text tables: what a run trains, its scores and its predictions."""

from collections.abc import Iterable, Sequence

from neo_peft.metrics import entities
from neo_peft.tasks import Task

RATES = ("precision", "recall", "f1")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text. The first column is aligned left, the others right."""
    first, *others = ("  ".join(cells) for cells in _aligned(header, rows))
    return "\n".join([first.rstrip(), "─" * len(first), *(line.rstrip() for line in others)])


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown, aligned so that it is readable as plain text too."""
    head, *lines = _aligned(header, rows, least=3)
    rule = ["-" * (len(cell) - 1) + ":" for cell in head]
    rule[0] = "-" * len(head[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _aligned(
    header: Sequence[object], rows: Iterable[Sequence[object]], least: int = 0
) -> list[list[str]]:
    """Return the lines of a table; the cells of a column are of one width, of at least `least`."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(least, *map(len, column)) for column in zip(*cells, strict=True)]
    return [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]


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
    of_answers = list(dict.fromkeys((task.metric, "accuracy", "macro_f1")))
    return ["f1", "precision", "recall", "span_f1"] if task.tags_words else of_answers


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


def rates(scores: dict) -> list[str]:
    """Return precision, recall and F1 as text."""
    return [number(scores[name]) for name in RATES]


def per_label(task: Task, scores: dict) -> str:
    """Return a table of the scores of each entity type or label. Labels have a confusion matrix
    as well."""
    of_labels = scores["per_label"].items()
    rows = [[label, *rates(of), of["support"]] for label, of in of_labels]
    text = table(["", *RATES, "support"], rows)
    if task.tags_words:
        return text
    confusion = zip(task.labels, scores["confusion"], strict=True)
    counts = table(confusion_header(task), [[gold, *counts] for gold, counts in confusion])
    return f"{text}\n\n{counts}"


def confusion_header(task: Task) -> list[str]:
    """Return the header of a confusion matrix."""
    return ["gold \\ answer", *task.labels, "unanswered"]


def adapted(modules: dict[str, list[str]]) -> str:
    """Return a table of the layers with LoRA: for each kind the number, the first and the last."""
    rows = [[kind, len(names), names[0], names[-1]] for kind, names in modules.items()]
    return table(["adapted layer", "number", "first", "last"], rows)


def scores(task: Task, scores: dict) -> str:
    """Return the scores of one split in a few lines."""
    accuracy = number(scores["accuracy"])
    if task.tags_words:
        lines = [
            f"{kind} f1 {number(of['f1'])} (precision {number(of['precision'])}, recall "
            f"{number(of['recall'])})"
            for kind, of in (("micro", scores), ("macro", scores["macro"]))
        ]
        lines.append(f"spans alone f1 {number(scores['span_f1'])}, words accuracy {accuracy}")
        return "\n".join(lines)
    of_two = "".join(
        f", {name} {number(scores[name])}" for name in ("f1", "matthews") if name in scores
    )
    return (
        f"accuracy {accuracy}{of_two}, macro f1 {number(scores['macro_f1'])}: total "
        f"{scores['total']}, hits {scores['hits']}, unanswered {scores['unanswered']}"
    )


def answers(
    task: Task, rows: Sequence[dict], predicted: Sequence, said: Sequence[str] | None
) -> list[str]:
    """Return lines that show each row with its gold labels and the prediction."""
    lines = []
    for index, (row, answer) in enumerate(zip(rows, predicted)):
        *texts, gold = (row[field] for field in task.fields)
        if task.tags_words:
            lines.append("gold    " + marked(*texts, gold))
            lines += ["answer  " + marked(*texts, answer), ""]
            continue
        verdict = "Right" if answer == gold else "Wrong"
        lines += [" | ".join(texts), f"  <{gold}> <{answer or 'unanswered'}> [{verdict}]"]
        if said:
            lines.append(f"  said: {said[index]!r}")
    return lines


def entity_types(task: Task) -> list[str]:
    """Return the types of a tagging task's entities, in the order of its labels."""
    return list(dict.fromkeys(label[2:] for label in task.labels if label != "O"))


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
