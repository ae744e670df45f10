"""From tags and labels to scores: precision, recall and F1 of the entities in BIO tags; accuracy of
classes.

BIO tags are those of Ramshaw & Marcus (1995), "Text Chunking using Transformation-Based Learning".
What is an entity and what is a hit follows conlleval, the script of the CoNLL-2000 shared task, as
seqeval does by default. Read `entities` first: every score of entities is a count over what it
returns.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from operator import eq, itemgetter

Entity = tuple[str, int, int]  # type, first word, last word (included)


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """Read the entities in one sentence's tags: `O`, `B-type` and `I-type`.

    An `I-` that continues nothing (after `O`, at the start, after another type) opens an entity, as
    conlleval has it; with `strict` (IOB2) only `B-` opens one. Any other tag raises ValueError.
    """
    found = []
    open_type, first, last = None, 0, 0
    for i, tag in enumerate(tags):
        if tag == "O":
            continue
        prefix, entity_type = _split(tag)
        if prefix == "I" and entity_type == open_type and last == i - 1:
            last = i
        elif prefix == "B" or not strict:
            if open_type is not None:
                found.append((open_type, first, last))
            open_type, first, last = entity_type, i, i
    if open_type is not None:
        found.append((open_type, first, last))
    return found


@cache  # many words, few distinct tags
def _split(tag: str) -> tuple[str, str]:
    """Split `B-type` or `I-type` at its first hyphen: `B-A-B` has the type `A-B`."""
    if isinstance(tag, str) and tag[:2] in ("B-", "I-") and len(tag) > 2:
        return tag[0], tag[2:]
    raise ValueError(
        f"{tag!r} is no BIO tag: allowed are 'O', 'B-type' and 'I-type'; map ids to names first"
    )


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], strict: bool = False
) -> dict:
    """Score predicted tags; an entity is a hit if its sentence, type, first and last word are those
    of gold.

    Returns fractions in 0..1, where 0/0 is 0:
      precision, recall, f1  over all entities (micro)
      macro, weighted        the same three as means over the types seen in either: plain, by gold
      count
      span_f1                f1 with the types of the entities ignored
      accuracy               of words, `O` included
      per_label              {type: the same three and "support", its gold count}, types sorted

    A predicted sentence may be shorter than its gold one: words lost to truncation count as `O`.
    Raises ValueError where one is longer, where the numbers of sentences differ, and on what is no
    BIO tag.
    """
    _check_same_number(len(gold), len(predicted), "sentences")
    # One O after each sentence: the corpus is then one sequence in which no two sentences join.
    gold_tags, tags = [], []
    for n, (gold_sentence, sentence) in enumerate(zip(gold, predicted)):
        lost = len(gold_sentence) - len(sentence)
        if lost < 0:
            raise ValueError(
                f"sentence {n} has {len(gold_sentence)} gold tags and {len(sentence)} predicted "
                "ones: give one per word, or fewer where the end was cut off"
            )
        # Lost words stay in gold: without them recall would rise falsely.
        gold_tags += [*gold_sentence, "O"]
        tags += [*sentence, *["O"] * lost, "O"]

    true, read = entities(gold_tags, strict), entities(tags, strict)
    support, guesses = Counter(map(itemgetter(0), true)), Counter(map(itemgetter(0), read))
    hits = Counter(map(itemgetter(0), set(true).intersection(read)))
    # entities do not overlap: the first word is a key
    last_word = {first: last for _, first, last in read}
    span_hits = sum(last_word.get(first) == last for _, first, last in true)

    # A type that was only ever predicted counts as zeros: macro would miss these false alarms.
    per_label = {t: _row(hits[t], guesses[t], support[t]) for t in sorted(support | guesses)}
    rows = per_label.values()
    return {
        **_rates(hits.total(), len(read), len(true)),
        "macro": _mean(rows, [1] * len(rows)),
        "weighted": _mean(rows, [row["support"] for row in rows]),
        "span_f1": _rates(span_hits, len(read), len(true))["f1"],
        "accuracy": _ratio(sum(map(eq, gold_tags, tags)) - len(gold), len(tags) - len(gold)),
        "per_label": per_label,
    }


def class_scores(
    gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]
) -> dict:
    """Score one label per example, where None is an answer that names no label: wrong, and counted.

    Returns accuracy, total, hits, unanswered, macro_f1 (over `labels`), per_label as in
    `entity_scores`, and confusion: a row per gold label and a column per predicted one, in the
    order of `labels`, and one more column for None. Two labels also have f1, that of the last one,
    as GLUE scores MRPC's "equivalent", and matthews, the correlation of gold and predicted
    (Matthews 1975), as GLUE scores CoLA. Raises ValueError on a label that is not in `labels`, and
    where the numbers of examples differ.
    """
    _check_same_number(len(gold), len(predicted), "labels")
    column = {label: i for i, label in enumerate([*labels, None])}
    confusion = [[0] * len(column) for _ in labels]
    for n, (gold_label, label) in enumerate(zip(gold, predicted)):
        if gold_label is None or gold_label not in column:
            raise ValueError(
                f"example {n} has gold label {gold_label!r}: allowed are {', '.join(labels)}"
            )
        if label not in column:
            raise ValueError(
                f"example {n} has predicted label {label!r}: allowed are {', '.join(labels)}, "
                "and None where the answer names no label"
            )
        confusion[column[gold_label]][column[label]] += 1

    *guesses, unanswered = (sum(row[i] for row in confusion) for i in column.values())
    hits = [confusion[i][i] for i in range(len(labels))]
    per_label = {
        label: _row(hits[i], guesses[i], sum(confusion[i])) for i, label in enumerate(labels)
    }
    of_two = {}
    if len(labels) == 2:
        of_two = {"f1": per_label[labels[-1]]["f1"], "matthews": _matthews(confusion)}
    return {
        "accuracy": _ratio(sum(hits), len(gold)),
        "total": len(gold),
        "hits": sum(hits),
        "unanswered": unanswered,
        "macro_f1": _mean(per_label.values(), [1] * len(labels))["f1"],
        **of_two,
        "per_label": per_label,
        "confusion": confusion,
    }


def _matthews(confusion: list[list[int]]) -> float:
    """Correlate gold and predicted classes (Gorodkin 2004); None is a class never gold."""
    gold, guesses = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion)]
    total, hits = sum(gold), sum(row[i] for i, row in enumerate(confusion))
    spreads = (total**2 - sum(n**2 for n in counts) for counts in (gold, guesses))
    covariance = hits * total - sum(g * n for g, n in zip(gold, guesses))
    return _ratio(covariance, math.sqrt(math.prod(spreads)))


def _check_same_number(gold: int, predicted: int, what: str) -> None:
    if gold != predicted:
        raise ValueError(
            f"{gold} gold {what} and {predicted} predicted ones: give both of the same examples"
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rates(hits: int, guesses: int, support: int) -> dict[str, float]:
    # 2PR / (P + R), with P = hits/guesses, R = hits/support
    return {
        "precision": _ratio(hits, guesses),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, guesses + support),
    }


def _row(hits: int, guesses: int, support: int) -> dict[str, float]:
    return {**_rates(hits, guesses, support), "support": support}


def _mean(rows: Collection[dict], weights: Sequence[int]) -> dict[str, float]:
    return {
        name: _ratio(sum(row[name] * weight for row, weight in zip(rows, weights)), sum(weights))
        for name in ("precision", "recall", "f1")
    }
