"""What needs no language model: the floor under a task, which a tuned model has to pass to have
been worth it.

A sentence is its words and pairs of words, weighted by TF-IDF (Salton & Buckley 1988); of a pair
six shares of what its sentences have in common are known; both under a linear model, multinomial
logistic regression (Bishop 2006, section 4.3.4). A word is tagged as it was most often in training,
O where it is new.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neo_peft.decoding import score
from neo_peft.metrics import class_scores
from neo_peft.tasks import Task

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # how far the weights may go; validation chooses


def floor(
    task: Task, train_rows: list[dict], validation_rows: list[dict], rows: list[dict]
) -> tuple[str, list]:
    """Answer `rows` by the floor that is fitted to `train_rows`, and return what it is called with
    its answers."""
    if task.tags_words:
        return "commonest tags", commonest_tags(train_rows, rows)
    *fields, label = task.fields
    name, features = (
        ("word counts", word_counts) if len(fields) == 1 else ("word overlap", word_overlap)
    )
    train, validation, asked = features(fields, train_rows, validation_rows, rows)
    gold = np.array([task.labels.index(row[label]) for row in train_rows])
    held_out = [row[label] for row in validation_rows]

    def answers(features: Features, weights: np.ndarray) -> list[str]:
        return [task.labels[best] for best in (features @ weights).argmax(1)]

    def validated(weights: np.ndarray) -> float:
        return class_scores(held_out, answers(validation, weights), task.labels)[task.metric]

    fitted = [
        logistic_regression(train, gold, len(task.labels), strength) for strength in STRENGTHS
    ]
    # of equals the first, whose weights are the smallest
    return name, answers(asked, max(fitted, key=validated))


def commonest_tags(train_rows: list[dict], rows: list[dict]) -> list[list[str]]:
    """Give each word the tag that it has most often in training, and O where it is new."""
    counts = defaultdict(Counter)
    for row in train_rows:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word][tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[commonest.get(word, "O") for word in row["tokens"]] for row in rows]


def majority_scores(task: Task, train_rows: Sequence[dict], rows: Sequence[dict]) -> dict:
    """Score the answer that needs no model: the commonest label of the training rows; O for every
    word."""
    if task.tags_words:
        return score(task, rows, [["O"] * len(row["tokens"]) for row in rows])
    labels = [row[task.fields[-1]] for row in train_rows]
    commonest = max(task.labels, key=labels.count)
    return score(task, rows, [commonest] * len(rows))


# ---- What is known of a text


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+(?:[.,]\d+)*", text.lower())


@dataclass(frozen=True)
class Sparse:
    """A matrix of few entries, which can do what a linear model needs: `matrix @ dense`, and
    `matrix.T`."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    shape: tuple[int, int]

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        products = (
            np.bincount(self.row, self.value * one[self.column], self.shape[0]) for one in dense.T
        )
        return np.stack([*products], axis=1)

    @property
    def T(self) -> "Sparse":
        return Sparse(self.column, self.row, self.value, self.shape[::-1])


Features = np.ndarray | Sparse  # (n, D), the last column a constant 1


def word_counts(fields: list[str], train_rows: list[dict], *others: list[dict]) -> list[Sparse]:
    """Weight each text's words and pairs of neighbours by count · (1 + log((1 + n) / (1 + texts
    that have it))), to a length of 1. What training lacks is left out; every number is the same
    word."""

    def terms(row: dict) -> Counter:
        found = ["0" if word[0].isdigit() else word for word in words(row[fields[0]])]
        return Counter([*found, *zip(found, found[1:])])

    counts = [[terms(row) for row in part] for part in (train_rows, *others)]
    texts_with = Counter(term for text in counts[0] for term in text)
    weight = {
        term: 1 + math.log((1 + len(train_rows)) / (1 + count))
        for term, count in texts_with.items()
    }
    column = {term: number for number, term in enumerate(texts_with)}
    parts = []
    for texts in counts:
        entries = []
        for number, text in enumerate(texts):
            known = {term: count * weight[term] for term, count in text.items() if term in weight}
            length = math.hypot(*known.values())
            entries += [(number, column[term], value / length) for term, value in known.items()]
            entries.append((number, len(column), 1.0))
        parts.append(
            Sparse(*map(np.array, zip(*entries, strict=True)), (len(texts), len(column) + 1))
        )
    return parts


def word_overlap(
    fields: list[str], train_rows: list[dict], *others: list[dict]
) -> list[np.ndarray]:
    """Measure what the two sentences of a row share, of words and of pairs of neighbours: its part
    of the first's, of the second's, and of both's. Each is scaled to mean 0 and spread 1 in
    training."""

    def shares(row: dict) -> list[float]:
        first, second = (words(row[field]) for field in fields)
        kinds = (
            (set(first), set(second)),
            (set(zip(first, first[1:])), set(zip(second, second[1:]))),
        )
        return [len(a & b) / max(1, len(whole)) for a, b in kinds for whole in (a, b, a | b)]

    parts = [np.array([shares(row) for row in part]) for part in (train_rows, *others)]
    mean, spread = parts[0].mean(0), parts[0].std(0)
    return [
        np.hstack([(part - mean) / np.where(spread, spread, 1), np.ones((len(part), 1))])
        for part in parts
    ]


# ---- The linear model


def logistic_regression(
    features: Features, gold: np.ndarray, labels: int, strength: float
) -> np.ndarray:
    """Find the weights (D, K) of the least cross-entropy, summed, + |weights|² / (2 · strength), by
    Newton's method. The constant's weights are free."""
    target, decay = np.eye(labels)[gold], np.full((features.shape[1], 1), 1 / strength)
    decay[-1] = 0

    def loss_of(
        weights: np.ndarray,
    ) -> tuple[float, np.ndarray]:  # and the shares of the labels (n, K)
        logits = features @ weights
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return (decay * weights**2).sum() / 2 - (target * logits).sum(), np.exp(logits)

    weights = np.zeros((features.shape[1], labels))
    loss, shares = loss_of(weights)
    for _ in range(50):
        gradient = features.T @ (shares - target) + decay * weights
        if np.abs(gradient).max() < 1e-4:
            break
        step = newton_step(features, shares, decay, gradient)
        while (found := loss_of(weights + step))[0] > loss and np.abs(step).max() > 1e-12:
            step /= 2  # far from the minimum a whole step may leap over it
        weights, (loss, shares) = weights + step, found
    return weights


def newton_step(
    features: Features, shares: np.ndarray, decay: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Solve curvature · step = -gradient to a hundredth, by conjugate gradients (Hestenes & Stiefel
    1952)."""
    step, residual = np.zeros_like(gradient), -gradient
    direction, size = residual, (residual**2).sum()
    enough = 1e-4 * size
    for _ in range(200):
        moved = features @ direction
        # the softmax's own curvature
        moved = shares * (moved - (shares * moved).sum(1, keepdims=True))
        product = features.T @ moved + decay * direction
        along = size / (direction * product).sum()
        step, residual = step + along * direction, residual - along * product
        size, before = (residual**2).sum(), size
        if size < enough:
            break
        direction = residual + (size / before) * direction
    return step
