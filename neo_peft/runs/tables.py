"""Plain text: the tables of a run's layers and scores, and its predictions."""

from collections.abc import Iterable, Sequence

from neo_peft.metrics import entities
from neo_peft.tasks import Task

RATES = ("precision", "recall", "f1")
MOST_WORDS, MOST_CHARACTERS = 100, 600  # of a text that is shown as an example


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text. The first column is aligned left, the others right."""
    first, *others = ("  ".join(cells) for cells in _aligned(header, rows))
    return "\n".join([first.rstrip(), "─" * len(first), *(line.rstrip() for line in others)])


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown. Its columns are aligned in plain text too."""
    head, *lines = _aligned(header, rows, least=3)
    rule = ["-" * (len(cell) - 1) + ":" for cell in head]
    rule[0] = "-" * len(head[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _aligned(
    header: Sequence[object], rows: Iterable[Sequence[object]], least: int = 0
) -> list[list[str]]:
    """Return the cells of each line. The cells of a column are padded to the same width, at least
    `least`."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(least, *map(len, column)) for column in zip(*cells, strict=True)]
    return [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]


# The printed names of the metrics of tagging.
TAG_METRICS = {
    "f1": "typed f1",
    "precision": "typed precision",
    "recall": "typed recall",
    "span_f1": "span-only f1",
    "accuracy": "accuracy of words",
}


def metrics_shown(task: Task) -> list[str]:
    """Return the names of the metrics in a table of scores, in order."""
    if task.is_tagging:
        return ["f1", "precision", "recall", "span_f1"]
    return list(dict.fromkeys((task.metric, "accuracy", "macro_f1")))


def metric_name(task: Task, metric: str) -> str:
    """Return the name of a metric in run.json. But f1 of one of two labels also names the label."""
    is_of_label = metric == "f1" and not task.is_tagging and task.labels
    return f"f1 of {task.labels[-1]}" if is_of_label else metric


def shown_name(task: Task, metric: str) -> str:
    """Return the printed name of a metric."""
    if task.is_tagging:
        return TAG_METRICS.get(metric, metric)
    return metric_name(task, metric.replace("_", " "))


def number(value: float | None) -> str:
    """Return a score as text, with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def before_after(task: Task, splits: dict[str, dict[str, dict]]) -> str:
    """Return a table of scores. Its columns are "majority", "before", "after", …

    `splits` has the scores as {split: {column: scores}}.
    """
    columns = list(next(iter(splits.values())))
    rows = [
        [
            f"{split} {metric_name(task, metric)}",
            *(number(scores[column].get(metric)) for column in columns),
        ]
        for split, scores in splits.items()
        for metric in metrics_shown(task)
    ]
    return table(["", *columns], rows)


def rates(scores: dict) -> list[str]:
    """Return precision, recall and F1, each as text."""
    return [number(scores[name]) for name in RATES]


def per_label(task: Task, scores: dict) -> str:
    """Return a table with the scores of each entity type or label. Classification has a confusion
    matrix too."""
    per_label = scores["per_label"].items()
    rows = [[label, *rates(values), values["support"]] for label, values in per_label]
    text = table(["", *RATES, "support"], rows)
    if task.is_tagging:
        return text
    confusion = zip(task.labels, scores["confusion"], strict=True)
    counts = table(confusion_header(task), [[gold, *counts] for gold, counts in confusion])
    return f"{text}\n\n{counts}"


def confusion_header(task: Task) -> list[str]:
    """Return the header of a confusion matrix."""
    return ["gold \\ predicted", *task.labels, "unanswered"]


def adapted(modules: dict[str, list[str]]) -> str:
    """Return a table of the adapted layers. A line has a kind of layer, the number of them, the
    name of the first and the name of the last."""
    rows = [[kind, len(names), names[0], names[-1]] for kind, names in modules.items()]
    return table(["adapted layer", "number", "first", "last"], rows)


def scores(task: Task, scores: dict) -> str:
    """Return the main scores of one split as text, in one to three lines."""
    accuracy = number(scores["accuracy"])
    if task.is_tagging:
        lines = [
            f"{kind} f1 {number(values['f1'])} (precision {number(values['precision'])}, recall "
            f"{number(values['recall'])})"
            for kind, values in (("micro", scores), ("macro", scores["macro"]))
        ]
        lines.append(f"span-only f1 {number(scores['span_f1'])}, accuracy of words {accuracy}")
        return "\n".join(lines)
    two_label_scores = "".join(
        f", {metric_name(task, name)} {number(scores[name])}"
        for name in ("f1", "matthews")
        if name in scores
    )
    return (
        f"accuracy {accuracy}{two_label_scores}, macro f1 {number(scores['macro_f1'])}: total "
        f"{scores['total']}, hits {scores['hits']}, unanswered {scores['unanswered']}"
    )


def example_lines(
    task: Task, rows: Sequence[dict], predicted: Sequence, generated: Sequence[str] | None
) -> list[str]:
    """Return lines that show the start of each row, its gold labels, its prediction and the
    generated text."""
    lines = []
    for index, (row, prediction) in enumerate(zip(rows, predicted)):
        *texts, gold = (row[field] for field in task.fields)
        if task.is_tagging:
            words, more = row["tokens"][:MOST_WORDS], " …" * (len(gold) > MOST_WORDS)
            lines.append("gold       " + marked(words, gold[:MOST_WORDS]) + more)
            lines += ["predicted  " + marked(words, prediction[:MOST_WORDS]) + more, ""]
            continue
        texts = [text[:MOST_CHARACTERS] + " …" * (len(text) > MOST_CHARACTERS) for text in texts]
        verdict = "Right" if prediction == gold else "Wrong"
        lines += [" | ".join(texts), f"  <{gold}> <{prediction or 'unanswered'}> [{verdict}]"]
        if generated:
            lines.append(f"  generated: {generated[index]!r}")
    return lines


def entity_types(task: Task) -> list[str]:
    """Return the entity types of a tagging task, in the order of its labels."""
    return list(dict.fromkeys(label[2:] for label in task.labels if label != "O"))


def marked(words: Sequence[str], tags: Sequence[str], kinds: Sequence[str] = ()) -> str:
    """Return a sentence with its entities marked, as in `the [DNA IL-2 promoter] binds`.

    `kinds` are the entity types in order. If they are given, each type has its own terminal colour.
    """
    text = list(words)
    for kind, first, last in entities(tags):
        before, behind = paint("|", kinds.index(kind)).split("|") if kinds else ("", "")
        text[first] = f"{before}[{kind} {text[first]}"
        text[last] += "]" + behind
    return " ".join(text)


def paint(text: str, index: int) -> str:
    """Return a text with the codes for one of six terminal colours."""
    return f"\033[{(31, 34, 32, 35, 36, 33)[index % 6]}m{text}\033[0m"
