"""Bootstrap intervals and paired differences. The summed counts give the scores of `metrics.py`.
The intervals are compared with a plain loop over examples and with the normal approximation. A
simulation shows that a 95 % interval contains the true score in 95 % of cases."""

import math
import random
import tracemalloc

import numpy as np
import pytest

from neo_peft.metrics import class_scores, entity_scores
from neo_peft.runs.bootstrap import example_counts, intervals, metrics_of_counts, paired
from neo_peft.settings import with_labels
from neo_peft.tasks import TASKS, get_task

NER, SENTIMENT, SIMILARITY = (TASKS[name] for name in ("ner", "sentiment", "similarity"))
TAGGED = ("f1", "precision", "recall", "span_f1", "accuracy")
THREE_LABELS, TWO_LABELS = ("accuracy", "macro_f1"), ("accuracy", "macro_f1", "f1", "matthews")
NAMES = {NER: TAGGED, SENTIMENT: THREE_LABELS, SIMILARITY: TWO_LABELS}


def random_rows(task, rng, count):
    """Return random rows that have only labels: of unbalanced classes, or tags of 0 to 14 words."""
    if task.is_tagging:
        lengths = [rng.randrange(15) for _ in range(count)]
        return [
            {"tags": rng.choices(task.labels, [6] + [1] * (len(task.labels) - 1), k=size)}
            for size in lengths
        ]
    weights = range(1, len(task.labels) + 1)
    return [{"label": label} for label in rng.choices(task.labels, weights, k=count)]


def random_predictions(task, rng, rows, right):
    """Return random predictions: right with probability `right`, else any label, or None."""
    if task.is_tagging:
        return [
            [tag if rng.random() < right else rng.choice(task.labels) for tag in row["tags"]]
            for row in rows
        ]
    return [
        row["label"] if rng.random() < right else rng.choice([*task.labels, None]) for row in rows
    ]


def scores(task, rows, predicted):
    gold = [row[task.fields[-1]] for row in rows]
    return (
        entity_scores(gold, predicted)
        if task.is_tagging
        else class_scores(gold, predicted, task.labels)
    )


def plain_bootstrap(task, rows, predictions, seed, resamples=1000):
    """Draw each example of a resample in a loop, and score the resample with `metrics.py`. Return
    {metric: array (resamples, runs)}."""
    rng, found = random.Random(seed), {name: [] for name in NAMES[task]}
    for _ in range(resamples):
        chosen = rng.choices(range(len(rows)), k=len(rows))
        drawn = [rows[index] for index in chosen]
        run_scores = [
            scores(task, drawn, [predicted[index] for index in chosen]) for predicted in predictions
        ]
        for name, values in found.items():
            values.append([each[name] for each in run_scores])
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("task", NAMES, ids=lambda task: task.name)
def test_summed_counts_give_the_scores_of_metrics(task):
    rng = random.Random(0)
    for count in (1, 2, 3, 50, 400):
        for right in (0, 0.5, 1):
            rows = random_rows(task, rng, count)
            predicted = random_predictions(task, rng, rows, right)
            found = metrics_of_counts(
                task, example_counts(task, rows, predicted).sum(0, keepdims=True)
            )
            expected = scores(task, rows, predicted)
            assert tuple(found) == NAMES[task]
            for name, value in found.items():
                assert value.tolist() == [pytest.approx(expected[name], rel=1e-12, abs=1e-15)]


def test_many_labels_are_counted_as_metrics_does():
    task = with_labels(get_task("classification"), [f"label {number}" for number in range(23)])
    rng = random.Random(1)
    rows = random_rows(task, rng, 300)
    predicted = random_predictions(task, rng, rows, 0.4)
    found = metrics_of_counts(task, example_counts(task, rows, predicted).sum(0, keepdims=True))
    expected = scores(task, rows, predicted)
    assert {name: value[0] for name, value in found.items()} == pytest.approx(
        {n: expected[n] for n in THREE_LABELS}
    )


@pytest.mark.parametrize("task", NAMES, ids=lambda task: task.name)
def test_intervals_are_those_of_a_plain_bootstrap(task):
    rng = random.Random(2)
    rows = random_rows(task, rng, 60)
    predicted = random_predictions(task, rng, rows, 0.7)
    found = intervals(task, rows, [predicted], resamples=20_000)
    for name, draws in plain_bootstrap(task, rows, [predicted], seed=3).items():
        low, high = np.quantile(draws, [0.025, 0.975])
        # A quantile of 1,000 resamples has a standard error of a twentieth of the interval.
        assert found[name] == pytest.approx((low, high), abs=0.15 * (high - low))
        assert high - low > 0.05


@pytest.mark.parametrize("task", NAMES, ids=lambda task: task.name)
def test_the_interval_of_a_mean_over_runs_draws_the_same_examples_for_each(task):
    rng = random.Random(8)
    rows = random_rows(task, rng, 60)
    predictions = [random_predictions(task, rng, rows, right) for right in (0.5, 0.7, 0.8)]
    found = intervals(task, rows, predictions, resamples=20_000)
    for name, draws in plain_bootstrap(task, rows, predictions, seed=9).items():
        low, high = np.quantile(draws.mean(axis=1), [0.025, 0.975])
        assert found[name] == pytest.approx((low, high), abs=0.15 * (high - low))


def test_the_interval_of_an_accuracy_is_the_normal_approximation():
    rows = [{"label": "equivalent"}] * 1000
    predicted = ["equivalent"] * 730 + ["not equivalent"] * 200 + [None] * 70
    spread = 1.96 * math.sqrt(0.73 * 0.27 / 1000)
    found = intervals(SIMILARITY, rows, [predicted], resamples=20_000)["accuracy"]
    assert found == pytest.approx((0.73 - spread, 0.73 + spread), abs=0.0015)


def test_95_percent_of_the_intervals_contain_the_true_score():
    """Draw 300 test sets of 200 predictions that are right with probability 0.7. Count the
    intervals that contain 0.7."""
    rng, contain = random.Random(4), 0
    for number in range(300):
        rows = [{"label": "neutral"}] * 200
        predicted = ["neutral" if rng.random() < 0.7 else "positive" for _ in rows]
        low, high = intervals(SENTIMENT, rows, [predicted], resamples=500, seed=number)["accuracy"]
        contain += low <= 0.7 <= high
    assert 0.92 <= contain / 300 <= 0.98  # 0.95 ± two to three standard errors


def test_the_same_seed_gives_the_same_interval_and_another_another():
    rng = random.Random(5)
    rows = random_rows(NER, rng, 40)
    predicted = random_predictions(NER, rng, rows, 0.7)
    first, again, other = (intervals(NER, rows, [predicted], seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("task", NAMES, ids=lambda task: task.name)
def test_a_paired_difference_is_that_of_a_plain_bootstrap(task):
    rng = random.Random(6)
    rows = random_rows(task, rng, 60)
    a = random_predictions(task, rng, rows, 0.6)
    # b predicts as a does, but is right on some more rows. So the interval of the difference is
    # much narrower than that of a score.
    b = [row[task.fields[-1]] if rng.random() < 0.15 else label for row, label in zip(rows, a)]
    compared = paired(task, rows, [a], [b])
    for name, draws in plain_bootstrap(task, rows, [a, b], seed=7).items():
        found, of_a, of_b = compared[name], scores(task, rows, a)[name], scores(task, rows, b)[name]
        assert (found["a"], found["b"]) == pytest.approx((of_a, of_b))
        assert found["difference"] == pytest.approx(of_b - of_a) and found["difference"] > 0
        differences = draws[:, 1] - draws[:, 0]
        low, high = np.quantile(differences, [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.15 * (high - low))
        assert found["p"] == pytest.approx(2 * np.mean(differences <= 0), abs=0.03)
        assert high - low < np.ptp(np.quantile(draws[:, 0], [0.025, 0.975]))


@pytest.mark.parametrize("task", NAMES, ids=lambda task: task.name)
def test_with_several_runs_the_difference_is_that_of_their_means(task):
    rng = random.Random(10)
    rows = random_rows(task, rng, 60)
    predictions = [
        random_predictions(task, rng, rows, right) for right in (0.5, 0.7, 0.6, 0.7, 0.8)
    ]
    compared = paired(task, rows, predictions[:2], predictions[2:])
    for name, draws in plain_bootstrap(task, rows, predictions, seed=11).items():
        found = compared[name]
        run_scores = [scores(task, rows, predicted)[name] for predicted in predictions]
        assert (found["a"], found["b"]) == pytest.approx(
            (sum(run_scores[:2]) / 2, sum(run_scores[2:]) / 3)
        )
        differences = draws[:, 2:].mean(axis=1) - draws[:, :2].mean(axis=1)
        low, high = np.quantile(differences, [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_p_is_that_of_a_sign_test_for_accuracies():
    """The runs differ on 96 rows: b is right on 60 of them, a on 36. p is that of the normal
    approximation."""
    rows = [{"label": "positive"}] * 500
    a = ["positive"] * 300 + ["neutral"] * 60 + ["positive"] * 36 + ["neutral"] * 104
    b = ["positive"] * 300 + ["positive"] * 60 + ["neutral"] * 36 + ["neutral"] * 104
    found = paired(SENTIMENT, rows, [a], [b])["accuracy"]
    spread = math.sqrt(96 / 500 - (24 / 500) ** 2) / math.sqrt(500)
    z = 24 / 500 / spread
    assert found["difference"] == pytest.approx(24 / 500)
    low, high = 24 / 500 - 1.96 * spread, 24 / 500 + 1.96 * spread
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=2e-3)
    assert found["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.008)
    assert paired(SENTIMENT, rows, [b], [a])["accuracy"]["p"] == pytest.approx(
        found["p"], abs=0.008
    )


def test_p_is_never_zero_and_is_one_for_equal_predictions():
    rows = [{"label": "positive"}] * 50
    right, wrong = ["positive"] * 50, ["neutral"] * 50
    found = paired(SENTIMENT, rows, [wrong], [right], resamples=999)["accuracy"]
    assert found == {"a": 0.0, "b": 1.0, "difference": 1.0, "low": 1.0, "high": 1.0, "p": 2 / 1000}
    half = right[:25] + wrong[:25]
    for name, same in paired(SENTIMENT, rows, [half], [list(half)]).items():
        assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1), name


def test_p_is_below_5_percent_where_the_interval_excludes_zero():
    rng, sides = random.Random(8), set()
    rows = random_rows(SIMILARITY, rng, 200)
    for _ in range(40):
        a, b = (random_predictions(SIMILARITY, rng, rows, right) for right in (0.5, 0.6))
        for found in paired(SIMILARITY, rows, [a], [b], resamples=2000).values():
            if abs(found["p"] - 0.05) > 0.002:
                outside = found["low"] > 0 or found["high"] < 0
                assert outside == (found["p"] < 0.05)
                sides.add(outside)
    assert sides == {True, False}


def test_resamples_are_not_all_in_memory_at_once():
    """For 2,000 resamples of 1,200 different sentences, all draws would need 19 MB, and as floats
    the same again."""
    rng = random.Random(9)
    rows = [{"tags": ["O"] * (index + 1)} for index in range(1200)]
    predicted = [[rng.choice(["O", "B-DNA"])] + row["tags"][1:] for row in rows]
    tracemalloc.start()
    intervals(NER, rows, [predicted], resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
