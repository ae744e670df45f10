"""Scores: precision, recall and F1 of the entities in BIO tags; accuracy and F1 of classes.

BIO tags are those of Ramshaw & Marcus (1995), "Text Chunking using Transformation-Based Learning".
Entities and hits are defined as in conlleval, the script of the CoNLL-2000 shared task, and in
seqeval's default mode. Read `entities` first: it gives all entity scores except accuracy.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from operator import eq, itemgetter

Entity = tuple[str, int, int]  # type, first word, last word (included)


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """Return the entities in one sentence's tags: `O`, `B-type` and `I-type`.

    An `I-` that is first or follows `O` or another type starts an entity, as in conlleval. With
    `strict` (IOB2) only `B-` starts an entity. A tag that is not BIO raises ValueError.
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
        f"{tag!r} is not a BIO tag; use 'O', 'B-type' or 'I-type', and map ids to names first"
    )


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], strict: bool = False
) -> dict:
    """Return the scores of predicted tags. A predicted entity is a hit if the gold sentence has an
    entity with the same type, first word and last word.

    The scores are fractions in 0..1; 0/0 counts as 0:
      precision, recall, f1  over all entities (micro average)
      macro                  the same three, averaged over all types in gold or predicted
      weighted               the same average, weighted by the type's number of gold entities
      span_f1                f1 if the types of the entities are ignored
      accuracy               the fraction of words with the right tag, `O` included
      per_label              {type: the same three and "support", its number of gold entities}

    A predicted sentence can be shorter than gold: the words that were cut count as `O`. Raises
    ValueError if it is longer, if the numbers of sentences differ, or if a tag is not a BIO tag.
    """
    _check_same_number(len(gold), len(predicted), "sentences")
    # Join all sentences, with an O after each one, so that no entity spans two of them.
    gold_tags, tags = [], []
    for n, (gold_sentence, sentence) in enumerate(zip(gold, predicted)):
        missing = len(gold_sentence) - len(sentence)
        if missing < 0:
            raise ValueError(
                f"sentence {n} has {len(gold_sentence)} gold tags and {len(sentence)} predicted "
                "ones: give one per word, or fewer if the end was cut off"
            )
        # Words that were cut stay in gold: without them recall would be too high.
        gold_tags += [*gold_sentence, "O"]
        tags += [*sentence, *["O"] * missing, "O"]

    gold_entities, found = entities(gold_tags, strict), entities(tags, strict)
    support, guesses = (Counter(map(itemgetter(0), each)) for each in (gold_entities, found))
    hits = Counter(map(itemgetter(0), set(gold_entities).intersection(found)))
    last_word = {first: last for _, first, last in found}  # entities do not overlap
    span_hits = sum(last_word.get(first) == last for _, first, last in gold_entities)

    # Types that are predicted but never in gold count too, with zeros.
    per_label = {t: _row(hits[t], guesses[t], support[t]) for t in sorted(support | guesses)}
    rows = per_label.values()
    return {
        **_rates(hits.total(), len(found), len(gold_entities)),
        "macro": _mean(rows, [1] * len(rows)),
        "weighted": _mean(rows, [row["support"] for row in rows]),
        "span_f1": _rates(span_hits, len(found), len(gold_entities))["f1"],
        "accuracy": _ratio(sum(map(eq, gold_tags, tags)) - len(gold), len(tags) - len(gold)),
        "per_label": per_label,
    }


def class_scores(
    gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]
) -> dict:
    """Return the scores of predicted labels. None, for text that matches no label, counts as wrong.

      accuracy          the fraction of hits; 0/0 counts as 0
      total, hits       the numbers of examples and of correct predictions
      unanswered        the number of predictions that are None
      f1                with two labels only: f1 of the last one, as GLUE scores MRPC
      matthews          with two labels only: correlation with gold (Matthews 1975), as for CoLA
      macro_f1          the mean f1 of all labels
      per_label         as in `entity_scores`
      confusion         a row for each gold label, a column for each predicted one and for None

    Raises ValueError if a label is not in `labels` or if the numbers of examples differ.
    """
    _check_same_number(len(gold), len(predicted), "labels")
    column = {label: i for i, label in enumerate([*labels, None])}
    confusion = [[0] * len(column) for _ in labels]
    for n, (gold_label, label) in enumerate(zip(gold, predicted)):
        if gold_label is None or gold_label not in column:
            raise ValueError(
                f"example {n} has gold label {gold_label!r}; the labels are {', '.join(labels)}"
            )
        if label not in column:
            raise ValueError(
                f"example {n} has predicted label {label!r}; the labels are {', '.join(labels)}, "
                "and None for text that matches no label"
            )
        confusion[column[gold_label]][column[label]] += 1

    *guesses, unanswered = (sum(row[i] for row in confusion) for i in column.values())
    hits = [confusion[i][i] for i in range(len(labels))]
    per_label = {
        label: _row(hits[i], guesses[i], sum(confusion[i])) for i, label in enumerate(labels)
    }
    two_label_scores = {}
    if len(labels) == 2:
        f1, matthews = per_label[labels[-1]]["f1"], _matthews(confusion)
        two_label_scores = {"f1": f1, "matthews": matthews}
    return {
        "accuracy": _ratio(sum(hits), len(gold)),
        "total": len(gold),
        "hits": sum(hits),
        "unanswered": unanswered,
        "macro_f1": _mean(per_label.values(), [1] * len(labels))["f1"],
        **two_label_scores,
        "per_label": per_label,
        "confusion": confusion,
    }


def _matthews(confusion: list[list[int]]) -> float:
    """Return the correlation of gold and predicted classes (Gorodkin 2004); None is a class too."""
    gold, guesses = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion)]
    total, hits = sum(gold), sum(row[i] for i, row in enumerate(confusion))
    spreads = (total**2 - sum(n**2 for n in counts) for counts in (gold, guesses))
    covariance = hits * total - sum(g * n for g, n in zip(gold, guesses))
    return _ratio(covariance, math.sqrt(math.prod(spreads)))


def _check_same_number(gold: int, predicted: int, what: str) -> None:
    if gold != predicted:
        raise ValueError(
            f"{gold} gold {what}, but {predicted} predicted ones: give both for the same examples"
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
