"""Baselines without a language model. A tuned model is worth its cost only where it beats them.

word counts          a sentence: TF-IDF of its words and its pairs of neighbouring words (Salton &
                     Buckley 1988)
word overlap         two sentences: six shares of the words and word pairs that both contain
most frequent tags   a word to tag: the tag that it has most often in training

The first two are classified by multinomial logistic regression (Bishop 2006, section 4.3.4).
"""

import inspect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from neo_peft.decoding import score
from neo_peft.tasks import Task

# Inverse strengths of the penalty on the weights. The best one on validation is used.
INVERSE_STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def baseline_name(task: Task) -> str:
    """Return the name of a task's baseline."""
    if task.is_tagging:
        return "most frequent tags"
    return "word counts" if len(task.fields) == 2 else "word overlap"


def predict_baseline(
    task: Task, train_rows: list[dict], validation_rows: list[dict], rows: list[dict]
) -> list:
    """Fit the task's baseline to `train_rows`. Return its predictions for `rows`."""
    if task.is_tagging:
        return most_frequent_tags(train_rows, rows)
    *fields, label = task.fields
    features = word_counts if len(fields) == 1 else word_overlap
    train, validation, test = features(fields, train_rows, validation_rows, rows)
    gold = torch.tensor([task.labels.index(row[label]) for row in train_rows])

    def classify(features: Tensor, weights: Tensor) -> list[str]:
        return [task.labels[best] for best in (features @ weights).argmax(1)]

    def validation_score(weights: Tensor) -> float:
        return score(task, validation_rows, classify(validation, weights))[task.metric]

    candidates = (
        logistic_regression(train, gold, len(task.labels), inverse_strength)
        for inverse_strength in INVERSE_STRENGTHS
    )
    # Of equal scores, max takes the first: the one with the strongest penalty.
    return classify(test, max(candidates, key=validation_score))


def most_frequent_tags(train_rows: list[dict], rows: list[dict]) -> list[list[str]]:
    """Return the tags of each row: a word's most frequent training tag, or O for a new word."""
    counts = defaultdict(Counter)
    for row in train_rows:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            counts[word.strip()][tag] += 1
    most_frequent = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[most_frequent.get(word.strip(), "O") for word in row["tokens"]] for row in rows]


def predict_majority(task: Task, train_rows: Sequence[dict], rows: Sequence[dict]) -> list:
    """Return the majority class for each row: the most frequent label of the training rows. For
    tagging return O for every word."""
    if task.is_tagging:
        return [["O"] * len(row["tokens"]) for row in rows]
    labels = [row[task.fields[-1]] for row in train_rows]
    return [max(task.labels, key=labels.count)] * len(rows)


# ---- Features of n rows: (n, D). The last column is 1, for the bias.


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case, and its numbers."""
    return re.findall(r"[^\W\d_]+|\d+(?:[.,]\d+)*", text.lower())


def word_counts(fields: list[str], train_rows: list[dict], *others: list[dict]) -> list[Tensor]:
    """Return the TF-IDF of the words and word pairs of each text: one sparse matrix for each list
    of rows.

    A term has the weight count · (1 + log((1 + n) / (1 + number of training texts with it))), where
    n is the number of training texts. Then the weights of a text are scaled to length 1. Terms that
    are not in the training texts are ignored. All numbers count as the same word.
    """

    def terms(row: dict) -> Counter:
        text = ["0" if word[0].isdigit() else word for word in words(row[fields[0]])]
        return Counter([*text, *zip(text, text[1:])])

    counts = [[terms(row) for row in part] for part in (train_rows, *others)]
    texts_with = Counter(term for text in counts[0] for term in text)
    columns = {term: index for index, term in enumerate(texts_with)}

    def matrix(texts: list[Counter]) -> Tensor:
        entries = []
        for index, text in enumerate(texts):
            weights = {
                term: count * (1 + math.log((1 + len(train_rows)) / (1 + texts_with[term])))
                for term, count in text.items()
                if term in columns
            }
            length = math.hypot(*weights.values())
            entries += [(index, columns[term], value / length) for term, value in weights.items()]
            entries.append((index, len(columns), 1.0))
        *indices, values = zip(*entries, strict=True)
        shape, dtype = (len(texts), len(columns) + 1), torch.float64
        sparse = torch.sparse_coo_tensor(indices, values, shape, dtype=dtype, check_invariants=True)
        return sparse.coalesce()

    return [matrix(texts) for texts in counts]


def word_overlap(fields: list[str], train_rows: list[dict], *others: list[dict]) -> list[Tensor]:
    """Return how much the two sentences of each row have in common: six numbers.

    For the sets a and b of the two sentences' words they are |a ∩ b| divided by |a|, by |b| and by
    |a ∪ b|; then the same for the sets of word pairs. Each of the six is scaled to mean 0 and
    standard deviation 1 on the training rows.
    """

    def shares(row: dict) -> list[float]:
        pair = [words(row[field]) for field in fields]
        sets = [set(text) for text in pair], [set(zip(text, text[1:])) for text in pair]
        return [len(a & b) / max(1, len(whole)) for a, b in sets for whole in (a, b, a | b)]

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


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, without a decorator that imports torch's compiler, which takes seconds."""

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)


def logistic_regression(
    features: Tensor, gold: Tensor, labels: int, inverse_strength: float
) -> Tensor:
    """Return the weights (D, K) that minimise the summed cross-entropy + |weights|² / (2 ·
    inverse_strength).

    The weights of the last feature, the bias, have no penalty. The optimizer is L-BFGS (Liu &
    Nocedal 1989).
    """
    weights = torch.zeros(features.shape[1], labels, dtype=torch.float64, requires_grad=True)
    optimizer = LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-3,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        weights.grad = None
        penalty = weights[:-1].square().sum() / (2 * inverse_strength)
        loss = cross_entropy(features @ weights, gold, reduction="sum") + penalty
        loss.backward()
        return loss

    optimizer.step(loss)
    return weights.detach()
