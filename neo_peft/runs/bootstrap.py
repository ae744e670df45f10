"""The bootstrap over examples: how far chance alone could move a score (Efron & Tibshirani 1993,
chapters 6 and 13).

A test set is a sample of examples, and another sample would have given other scores. A resample
draws n of the n examples with replacement. The scores of many resamples show how uncertain a score
is. Two runs are compared on the same resamples, since an example that is hard for one is often hard
for the other (Koehn 2004; Berg-Kirkpatrick et al. 2012).

Each example is a few counts, and a score needs only their sums. `metrics.py` defines the counts.
"""

from collections.abc import Iterator

import numpy as np

from neo_peft.metrics import entities
from neo_peft.tasks import Task

LEVEL = 0.95
# Rows that two sides must predict differently. With fewer, intervals exclude zero too often.
FEWEST = 10
AT_ONCE = 250  # resamples whose weights are in memory at a time

Interval = tuple[float, float]


def intervals(
    task: Task, rows: list[dict], answers: list[list], resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return the 95 % bootstrap interval of each metric.

    With several runs (the seeds of one recipe) it is the interval of their mean. All runs must have
    predicted the same rows. Each resample is used for all runs; the runs are not resampled.
    `measures` has the metrics.
    """
    drawn = _drawn(task, rows, answers, resamples, seed)
    return {name: _interval(values.mean(0)[1:]) for name, values in drawn.items()}


def paired(
    task: Task,
    rows: list[dict],
    answers_a: list[list],
    answers_b: list[list],
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict]:
    """Return the comparison of two sides by each metric.

    A side is one run, or several (the seeds of one recipe). All have predicted the same rows. For
    each metric there are

      a, b         the means of the two sides
      difference   b - a
      low, high    its 95 % percentile interval
      p            min(1, 2 · (1 + min(#(difference <= 0), #(difference >= 0))) / (resamples + 1))

    p is two-sided, and # counts resamples. It is below 0.05 where the interval excludes zero, to
    within one resample. Where fewer than `FEWEST` rows differ (`differing`), that happens more than
    once in twenty although neither side is better.
    """
    compared, count = {}, len(answers_a)
    for name, values in _drawn(task, rows, answers_a + answers_b, resamples, seed).items():
        of_a, of_b = values[:count].mean(0), values[count:].mean(0)
        a, b, differences = float(of_a[0]), float(of_b[0]), (of_b - of_a)[1:]
        low, high = _interval(differences)
        other_side = min(np.sum(differences <= 0), np.sum(differences >= 0))
        p = min(1.0, 2 * (1 + int(other_side)) / (resamples + 1))
        compared[name] = {"a": a, "b": b, "difference": b - a, "low": low, "high": high, "p": p}
    return compared


def count_differing(answers_a: list[list], answers_b: list[list]) -> int:
    """Return how many rows not all runs of both sides predicted alike.

    The other rows tell nothing about a difference.
    """
    return sum(
        any(answer != of_row[0] for answer in of_row)
        for of_row in zip(*answers_a, *answers_b, strict=True)
    )


def same_rows(task: Task, answered: list[list[dict]]) -> tuple[list[dict], list[list]] | None:
    """Return the rows that several runs predicted, and the predictions of each run.

    Return None where the runs did not predict the same rows. A split that is drawn by the seed
    differs from run to run.
    """
    if any(data_fields(task, rows) != data_fields(task, answered[0]) for rows in answered):
        return None
    return answered[0], [[row["predicted"] for row in rows] for rows in answered]


def data_fields(task: Task, rows: list[dict]) -> list[list]:
    """Return the fields of each row that belong to the data, without the prediction."""
    return [[row[field] for field in task.fields] for row in rows]


# ---- From counts to scores


def example_counts(task: Task, rows: list[dict], predicted: list) -> np.ndarray:
    """Return the counts of each example, (n, S).

    A tagged sentence has six counts: hits, predicted and gold entities, hits of the span alone,
    right words, and words. Any other example has three counts for each label: hit, predicted, gold.
    A prediction of None counts for no label.
    """
    if task.tags_words:
        return np.array(
            [_of_sentence(row["tags"], tags) for row, tags in zip(rows, predicted, strict=True)]
        )
    gold = [row[task.fields[-1]] for row in rows]
    is_gold, is_guess = (
        np.array(answers, dtype=object)[:, None] == np.array(task.labels, dtype=object)
        for answers in (gold, predicted)
    )
    return np.hstack([is_gold & is_guess, is_guess, is_gold]).astype(int)


def _of_sentence(gold_tags: list[str], tags: list[str]) -> list[int]:
    gold, guessed = set(entities(gold_tags)), set(entities(tags))
    span_hits = {entity[1:] for entity in gold} & {entity[1:] for entity in guessed}
    right = sum(a == b for a, b in zip(gold_tags, tags, strict=True))
    return [len(gold & guessed), len(guessed), len(gold), len(span_hits), right, len(gold_tags)]


def metrics_of_counts(task: Task, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of summed counts, (…, S) -> (…) each, as `metrics.py` defines them.

    Tags have f1, precision, recall, span_f1 and accuracy. Labels have accuracy and macro_f1, and
    two labels f1 and matthews as well.
    """
    if task.tags_words:
        hits, guesses, support, span_hits, right, words = np.moveaxis(sums, -1, 0)
        return {
            "f1": _ratios(2 * hits, guesses + support),
            "precision": _ratios(hits, guesses),
            "recall": _ratios(hits, support),
            "span_f1": _ratios(2 * span_hits, guesses + support),
            "accuracy": _ratios(right, words),
        }
    hits, guesses, support = np.split(sums, 3, axis=-1)  # (…, K) each
    f1, total = _ratios(2 * hits, guesses + support), support.sum(-1)
    found = {"accuracy": _ratios(hits.sum(-1), total), "macro_f1": f1.mean(-1)}
    if len(task.labels) == 2:
        unanswered = total - guesses.sum(-1)
        spread_of_guesses = total**2 - (guesses**2).sum(-1) - unanswered**2
        spread = np.sqrt(spread_of_guesses.astype(float) * (total**2 - (support**2).sum(-1)))
        covariance = hits.sum(-1) * total - (support * guesses).sum(-1)
        found |= {"f1": f1[..., 1], "matthews": _ratios(covariance, spread)}
    return found


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


# ---- The resamples


def _drawn(
    task: Task, rows: list[dict], answers: list[list], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Return each run's metrics, (runs, 1 + R) each: those of all examples at index 0, then those
    of the resamples. Each resample is used for all runs."""
    counts = np.hstack([example_counts(task, rows, predicted) for predicted in answers])
    parts = [
        metrics_of_counts(task, np.stack(np.split(sums, len(answers), axis=1)))
        for sums in _sums(counts, resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _sums(counts: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the summed counts of all examples (1, S), then of the resamples, (R, S) at a time."""
    yield counts.sum(0, keepdims=True)
    # Examples with the same counts are one kind. How often each kind is drawn is multinomial, and
    # there are few kinds.
    kinds, sizes = np.unique(counts, axis=0, return_counts=True)
    random, n = np.random.default_rng(seed), len(counts)
    for begin in range(0, resamples, AT_ONCE):
        weights = random.multinomial(n, sizes / n, size=min(AT_ONCE, resamples - begin))
        # numpy multiplies matrices of integers slowly. Floats are exact below 2^53.
        yield (weights.astype(float) @ kinds).astype(int)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
