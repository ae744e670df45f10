"""Baselines that need no language model: a tuned model is worth its cost only where it beats them.

A sentence is described by its words and pairs of neighbouring words, weighted by TF-IDF (Salton &
Buckley 1988). A pair of sentences is described by six shares of the words that both have. Both are
classified by multinomial logistic regression (Bishop 2006, section 4.3.4). A word to tag gets the
tag that it had most often in training.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from neo_peft.decoding import score
from neo_peft.tasks import Task

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # the larger, the larger the weights; validation chooses


def predict_baseline(
    task: Task, train_rows: list[dict], validation_rows: list[dict], rows: list[dict]
) -> tuple[str, list]:
    """Fit the task's baseline to `train_rows`; return its name and its predictions of `rows`."""
    if task.tags_words:
        return "commonest tags", most_frequent_tags(train_rows, rows)
    *fields, label = task.fields
    name, features = (
        ("word counts", word_counts) if len(fields) == 1 else ("word overlap", word_overlap)
    )
    train, validation, asked = features(fields, train_rows, validation_rows, rows)
    gold = torch.tensor([task.labels.index(row[label]) for row in train_rows])

    def predicted(features: Tensor, weights: Tensor) -> list[str]:
        return [task.labels[best] for best in (features @ weights).argmax(1)]

    def validated(weights: Tensor) -> float:
        return score(task, validation_rows, predicted(validation, weights))[task.metric]

    fitted = (logistic_regression(train, gold, len(task.labels), one) for one in STRENGTHS)
    # max takes the first of equals, whose weights are the smallest
    return name, predicted(asked, max(fitted, key=validated))


def most_frequent_tags(train_rows: list[dict], rows: list[dict]) -> list[list[str]]:
    """Give each word the tag that it has most often in training, and O where it is new."""
    counts = defaultdict(Counter)
    for row in train_rows:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word][tag] += 1
    most_frequent = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[most_frequent.get(word, "O") for word in row["tokens"]] for row in rows]


def majority_scores(task: Task, train_rows: Sequence[dict], rows: Sequence[dict]) -> dict:
    """Score the answer that needs no model: the commonest label of the training rows; O for every
    word."""
    if task.tags_words:
        return score(task, rows, [["O"] * len(row["tokens"]) for row in rows])
    labels = [row[task.fields[-1]] for row in train_rows]
    most_frequent = max(task.labels, key=labels.count)
    return score(task, rows, [most_frequent] * len(rows))


# ---- Features: of n rows (n, D), the last column a constant 1


def words(text: str) -> list[str]:
    """Split a text into runs of letters, lower-cased, and numbers."""
    return re.findall(r"[^\W\d_]+|\d+(?:[.,]\d+)*", text.lower())


def word_counts(fields: list[str], train_rows: list[dict], *others: list[dict]) -> list[Tensor]:
    """Return the TF-IDF of each text's words and pairs of neighbours, of length 1, as sparse
    matrices.

    A term's weight is count · (1 + log((1 + n) / (1 + training texts with it))). Terms that
    training lacks are left out. All numbers are one word.
    """

    def terms(row: dict) -> Counter:
        found = ["0" if word[0].isdigit() else word for word in words(row[fields[0]])]
        return Counter([*found, *zip(found, found[1:])])

    counts = [[terms(row) for row in part] for part in (train_rows, *others)]
    texts_with = Counter(term for text in counts[0] for term in text)
    column = {term: index for index, term in enumerate(texts_with)}

    def matrix(texts: list[Counter]) -> Tensor:
        entries = []
        for index, text in enumerate(texts):
            known = {
                column[term]: count * (1 + math.log((1 + len(train_rows)) / (1 + texts_with[term])))
                for term, count in text.items()
                if term in column
            }
            length = math.hypot(*known.values())
            entries += [(index, place, value / length) for place, value in known.items()]
            entries.append((index, len(column), 1.0))
        *places, values = zip(*entries, strict=True)
        shape, dtype = (len(texts), len(column) + 1), torch.float64
        found = torch.sparse_coo_tensor(places, values, shape, dtype=dtype, check_invariants=True)
        return found.coalesce()

    return [matrix(texts) for texts in counts]


def word_overlap(fields: list[str], train_rows: list[dict], *others: list[dict]) -> list[Tensor]:
    """Return six shares of what the two sentences of each row have in common.

    Three shares are of words and three of pairs of neighbours: the common part of the first
    sentence's, of the second's, and of both together. Each share is scaled to mean 0 and standard
    deviation 1 in training.
    """

    def shares(row: dict) -> list[float]:
        pair = [words(row[field]) for field in fields]
        kinds = [set(text) for text in pair], [set(zip(text, text[1:])) for text in pair]
        return [len(a & b) / max(1, len(whole)) for a, b in kinds for whole in (a, b, a | b)]

    parts = [
        torch.tensor([shares(row) for row in part], dtype=torch.float64)
        for part in (train_rows, *others)
    ]
    deviation, mean = torch.std_mean(parts[0], 0, correction=0)
    deviation[deviation == 0] = 1
    return [
        torch.cat([(part - mean) / deviation, part.new_ones(len(part), 1)], 1) for part in parts
    ]


# ---- The linear model


def logistic_regression(features: Tensor, gold: Tensor, labels: int, strength: float) -> Tensor:
    """Return the weights (D, K) with the least summed cross-entropy + |weights|² / (2 · strength).

    The constant's weights are not penalized. L-BFGS finds the minimum (Liu & Nocedal 1989).
    """
    weights = torch.zeros(features.shape[1], labels, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-3,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = weights[:-1].square().sum() / (2 * strength)
        loss = cross_entropy(features @ weights, gold, reduction="sum") + penalty
        loss.backward()
        return loss

    optimizer.step(loss)
    return weights.detach()
