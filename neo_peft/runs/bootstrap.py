"""The bootstrap over examples: how uncertain a score is (Efron & Tibshirani 1993, chapters 6, 13).

A test set is a sample of examples, and another sample would have given other scores. A resample
draws n of the n examples with replacement. The scores of many resamples show how much a score
varies by chance. Two runs are compared on the same resamples, since an example that is hard for one
is often hard for the other (Koehn 2004; Berg-Kirkpatrick et al. 2012).

A score is computed from sums of counts (such as hits), so each example is stored as its counts. The
metrics are those of `metrics.py`.
"""

from collections.abc import Iterator

import numpy as np

from neo_peft.metrics import entities
from neo_peft.tasks import Task

LEVEL = 0.95
# Least number of rows that two sides predict differently. With fewer, an interval excludes zero too
# often.
MIN_DIFFERING = 10
CHUNK = 250  # number of resamples that are computed at a time, to limit memory

Interval = tuple[float, float]


def intervals(
    task: Task, rows: list[dict], predictions: list[list], resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return the 95 % bootstrap interval of each metric.

    With several runs (the seeds of one recipe) it is the interval of their mean. All runs must have
    predicted the same rows. `predictions` has a list for each run. Each resample is used for all;
    the runs are not resampled.
    """
    values_of = _metrics_of_resamples(task, rows, predictions, resamples, seed)
    return {name: _interval(values.mean(0)[1:]) for name, values in values_of.items()}


def paired(
    task: Task,
    rows: list[dict],
    predictions_a: list[list],
    predictions_b: list[list],
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict]:
    """Return the comparison of two sides for each metric.

    A side is one run, or several (the seeds of one recipe). All runs must have predicted the same
    rows. For each metric there are

      a, b         the score of each side: the mean over its runs
      difference   b - a
      low, high    the 95 % percentile interval of the difference
      p            min(1, 2 · (1 + min(#(difference <= 0), #(difference >= 0))) / (resamples + 1))

    # counts resamples. p is two-sided. It is below 0.05 if the interval excludes zero, except for a
    difference of one resample. If fewer than `MIN_DIFFERING` rows differ (`count_differing`), the
    interval excludes zero too often, even if neither side is better.
    """
    compared, count = {}, len(predictions_a)
    values_of = _metrics_of_resamples(task, rows, predictions_a + predictions_b, resamples, seed)
    for name, values in values_of.items():
        side_a, side_b = values[:count].mean(0), values[count:].mean(0)
        a, b, differences = float(side_a[0]), float(side_b[0]), (side_b - side_a)[1:]
        low, high = _interval(differences)
        smaller_tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
        p = min(1.0, 2 * (1 + int(smaller_tail)) / (resamples + 1))
        compared[name] = {"a": a, "b": b, "difference": b - a, "low": low, "high": high, "p": p}
    return compared


def count_differing(predictions_a: list[list], predictions_b: list[list]) -> int:
    """Return the number of rows for which the runs of both sides have different predictions."""
    return sum(
        any(answer != first for answer in others)
        for first, *others in zip(*predictions_a, *predictions_b, strict=True)
    )


def same_rows(task: Task, rows_of_runs: list[list[dict]]) -> tuple[list[dict], list[list]] | None:
    """Return the rows that several runs predicted, and the predictions of each run.

    Return None where the runs did not predict the same rows. For example, runs with different seeds
    can have different random splits.
    """
    if any(data_fields(task, rows) != data_fields(task, rows_of_runs[0]) for rows in rows_of_runs):
        return None
    return rows_of_runs[0], [[row["predicted"] for row in rows] for rows in rows_of_runs]


def data_fields(task: Task, rows: list[dict]) -> list[list]:
    """Return the fields of each row that belong to the data, without the prediction."""
    return [[row[field] for field in task.fields] for row in rows]


# ---- From counts to scores


def example_counts(task: Task, rows: list[dict], predicted: list) -> np.ndarray:
    """Return the S counts of each example, (n, S).

    A tagged sentence has six: entities that are right, predicted, gold; spans that are right
    whatever their type; words that are right; words. Any other example has three for each label:
    whether it is right, predicted, gold. The prediction None counts for no label.
    """
    if task.is_tagging:
        return np.array(
            [_sentence_counts(row["tags"], tags) for row, tags in zip(rows, predicted, strict=True)]
        )
    gold = [row[task.fields[-1]] for row in rows]
    is_gold, is_guess = (
        np.array(predictions, dtype=object)[:, None] == np.array(task.labels, dtype=object)
        for predictions in (gold, predicted)
    )
    return np.hstack([is_gold & is_guess, is_guess, is_gold]).astype(int)


def _sentence_counts(gold_tags: list[str], tags: list[str]) -> list[int]:
    gold, guessed = set(entities(gold_tags)), set(entities(tags))
    span_hits = {entity[1:] for entity in gold} & {entity[1:] for entity in guessed}
    right = sum(a == b for a, b in zip(gold_tags, tags, strict=True))
    return [len(gold & guessed), len(guessed), len(gold), len(span_hits), right, len(gold_tags)]


def metrics_of_counts(task: Task, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of summed counts (…, S), each (…), as `metrics.py` defines them.

    Tagging has f1, precision, recall, span_f1 and accuracy. Classification has accuracy and
    macro_f1, and with two labels also f1 and matthews.
    """
    if task.is_tagging:
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
    scores = {"accuracy": _ratios(hits.sum(-1), total), "macro_f1": f1.mean(-1)}
    if len(task.labels) == 2:
        unanswered = total - guesses.sum(-1)
        spread_of_guesses = total**2 - (guesses**2).sum(-1) - unanswered**2
        spread = np.sqrt(spread_of_guesses.astype(float) * (total**2 - (support**2).sum(-1)))
        covariance = hits.sum(-1) * total - (support * guesses).sum(-1)
        scores |= {"f1": f1[..., 1], "matthews": _ratios(covariance, spread)}
    return scores


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


# ---- The resamples


def _metrics_of_resamples(
    task: Task, rows: list[dict], predictions: list[list], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Return the values of each metric, (runs, 1 + R): at index 0 the score on all examples, then
    the scores on R resamples, which are the same for all runs."""
    counts = np.hstack([example_counts(task, rows, predicted) for predicted in predictions])
    parts = [
        metrics_of_counts(task, np.stack(np.split(sums, len(predictions), axis=1)))
        for sums in _sums(counts, resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _sums(counts: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the summed counts of all examples (1, S), then those of the resamples in chunks
    (R, S)."""
    yield counts.sum(0, keepdims=True)
    # Many examples have the same counts, so the distinct counts are drawn in place of the examples.
    # How often each is drawn has a multinomial distribution.
    distinct, sizes = np.unique(counts, axis=0, return_counts=True)
    random, n = np.random.default_rng(seed), len(counts)
    for start in range(0, resamples, CHUNK):
        draws = random.multinomial(n, sizes / n, size=min(CHUNK, resamples - start))
        # numpy is slow in multiplying matrices of integers. Floats are exact below 2^53.
        yield (draws.astype(float) @ distinct).astype(int)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
