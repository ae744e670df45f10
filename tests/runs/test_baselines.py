"""The baselines are compared with scikit-learn and with cases worked by hand, and are scored on the
real data."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.runs import baselines
from neo_peft.runs.baselines import (
    INVERSE_STRENGTHS,
    baseline_name,
    logistic_regression,
    predict_baseline,
    word_counts,
    word_overlap,
    words,
)
from neo_peft.settings import with_labels
from neo_peft.tasks import TASKS, get_task

FEATURES = {"sentiment": word_counts, "similarity": word_overlap}


def gold_labels(rows):
    return [row["label"] for row in rows]


def label_indices(task, rows):
    return torch.tensor([task.labels.index(label) for label in gold_labels(rows)])


def dense(features):
    """Return features as a numpy matrix, without the last column, which is 1."""
    features = features.to_dense().numpy()
    assert (features[:, -1] == 1).all()
    return features[:, :-1]


def small_splits(name):
    """Return the splits of a sample, train limited to 300 rows."""
    splits = load_splits(TASKS[name], "sample")
    return limit_rows(splits.train, 300), splits.validation, splits.test


def scikit_learn_model(task, inverse_strength):
    """Return scikit-learn's model with the same penalty as ours.

    For two labels scikit-learn has one weight vector. We have two vectors of half the length, and
    so half the penalty.
    """
    return LogisticRegression(
        C=inverse_strength * (2 if len(task.labels) == 2 else 1), max_iter=5000, tol=1e-6
    )


# ---- The linear model


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("inverse_strength", INVERSE_STRENGTHS)
def test_the_linear_model_is_that_of_scikit_learn(name, inverse_strength):
    task, (train, _, test) = TASKS[name], small_splits(name)
    features, test_features = FEATURES[name](task.fields[:-1], train, test)
    weights = logistic_regression(
        features, label_indices(task, train), len(task.labels), inverse_strength
    )
    logits = (test_features @ weights).numpy()
    ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (
        scikit_learn_model(task, inverse_strength)
        .fit(dense(features), label_indices(task, train))
        .predict_proba(dense(test_features))
    )
    assert np.abs(ours - expected).max() < 1e-3
    assert expected.std() > 0.05


def test_word_counts_are_the_tfidf_of_scikit_learn():
    train, _, test = small_splits("sentiment")

    def analyzer(row):
        found = ["0" if word[0].isdigit() else word for word in words(row["sentence"])]
        return found + [f"{first} {second}" for first, second in zip(found, found[1:])]

    theirs = TfidfVectorizer(analyzer=analyzer).fit(train)
    for ours, rows in zip(word_counts(["sentence"], train, test), (train, test)):
        expected, found = theirs.transform(rows).toarray(), dense(ours)
        assert found.shape == expected.shape
        # The columns are in another order. So we compare the sorted values of each text, and the
        # products of all pairs of texts.
        assert np.abs(np.sort(found, axis=1) - np.sort(expected, axis=1)).max() < 1e-12
        assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-12


def test_words_are_letters_or_a_number():
    text = "EBIT rose to EUR1,234.5 mn (12.0%), Nokia_Siemens' said."
    assert words(text) == [
        "ebit",
        "rose",
        "to",
        "eur",
        "1,234.5",
        "mn",
        "12.0",
        "nokia",
        "siemens",
        "said",
    ]


def test_overlaps_are_those_counted_by_hand():
    rows = [
        {"sentence1": "The dog saw a cat.", "sentence2": "the dog saw the bird"},
        {"sentence1": "one", "sentence2": "one two three"},
    ]
    # {the, dog, saw, a, cat} and {the, dog, saw, bird} share 3 words of 6. They have 4 word pairs
    # each, and share 2 of 6.
    by_hand = np.array([[3 / 5, 3 / 4, 3 / 6, 2 / 4, 2 / 4, 2 / 6], [1, 1 / 3, 1 / 3, 0, 0, 0]])
    [found] = word_overlap(["sentence1", "sentence2"], rows)
    expected = (by_hand - by_hand.mean(0)) / by_hand.std(0)
    assert found == pytest.approx(np.hstack([expected, np.ones((2, 1))]))
    _, again = word_overlap(["sentence1", "sentence2"], rows, rows[:1])
    assert again == pytest.approx(found[:1])  # scaled as in training


# ---- The baselines


@pytest.mark.parametrize("name", FEATURES)
def test_the_penalty_is_chosen_on_validation(name):
    task, (train, validation, test) = TASKS[name], small_splits(name)
    features, validation_features, test_features = map(
        dense, FEATURES[name](task.fields[:-1], train, validation, test)
    )
    models = [
        scikit_learn_model(task, inverse_strength).fit(features, gold_labels(train))
        for inverse_strength in INVERSE_STRENGTHS
    ]
    scores = [model.score(validation_features, gold_labels(validation)) for model in models]
    chosen = models[scores.index(max(scores))].predict(test_features)
    # the choice matters
    assert any(np.mean(model.predict(test_features) == chosen) < 0.97 for model in models)
    predicted = predict_baseline(task, train, validation, test)
    assert np.mean(chosen == predicted) > 0.99
    assert baseline_name(task) == {"sentiment": "word counts", "similarity": "word overlap"}[name]


def test_the_choice_is_by_the_tasks_metric(monkeypatch):
    task, rows = get_task("glue/cola"), [{"sentence": "he goes", "label": "acceptable"}]
    assert task.metric == "matthews" and task.labels == ("unacceptable", "acceptable")
    scores = {0.1: (0, 0), 1.0: (0, 1), 10.0: (1, 0), 100.0: (0, 0)}  # accuracy, matthews

    def always(features, gold, labels, inverse_strength):
        """Return weights that always predict acceptable for the strength with the best matthews,
        and unacceptable for the others."""
        weights = torch.zeros(features.shape[1], labels, dtype=features.dtype)
        weights[-1, int(inverse_strength == 1.0)] = 1
        return weights

    measured = iter(
        [{"accuracy": accuracy, "matthews": matthews} for accuracy, matthews in scores.values()]
    )
    monkeypatch.setattr(baselines, "logistic_regression", always)
    monkeypatch.setattr(baselines, "score", lambda *_: next(measured))
    assert tuple(scores) == INVERSE_STRENGTHS and predict_baseline(task, rows, rows, rows) == [
        "acceptable"
    ]


def test_a_word_gets_its_most_frequent_tag():
    def row(words, tags):
        return {"tokens": words.split(), "tags": tags.split()}

    train = [
        row("IL-2 gene", "B-DNA I-DNA"),
        row("IL-2 binds", "B-protein O"),
        row("IL-2", "B-protein"),
    ]
    test = [row("IL-2 gene binds il-2", "O O O O"), row("", ""), {"tokens": ["IL-2 ", "\tgene"]}]
    expected = [["B-protein", "I-DNA", "O", "O"], [], ["B-protein", "I-DNA"]]
    assert predict_baseline(TASKS["ner"], train, [], test) == expected
    task = with_labels(get_task("tagging"), ["O", "B-DNA"])
    assert predict_baseline(task, train[:1], [], test[:1])[0][1] == "I-DNA"


def test_other_tasks_of_the_same_shapes_have_baselines():
    marks = {"good": "yes", "bad": "no", "fair": "may be"}
    task = with_labels(get_task("classification"), ["no", "yes", "may be", "never seen"])
    rows = [
        {"sentence": f"{word} film number {n}", "label": label}
        for n in range(5)
        for word, label in marks.items()
    ]
    assert predict_baseline(task, rows, rows, rows) == gold_labels(rows)
    empty = [{"sentence": "… !", "label": "no"}, {"sentence": "good … unseen", "label": "no"}]
    assert predict_baseline(task, rows, rows, empty)[1] == "yes"
    cola = TASKS["glue/cola"]
    rows = [
        {"sentence": f"he {word} {n}", "label": cola.labels[word == "goes"]}
        for n in range(5)
        for word in ("goes", "go")
    ]
    assert predict_baseline(cola, rows, rows, rows) == gold_labels(rows)
    mnli = TASKS["glue/mnli"]
    seconds = {"a b c": "entailment", "a d e": "neutral", "f g h": "contradiction"}
    rows = [
        {"premise": "a b c", "hypothesis": text, "label": label} for text, label in seconds.items()
    ] * 3
    assert predict_baseline(mnli, rows, rows, rows) == gold_labels(rows)


# ---- The real data


@pytest.mark.slow
def test_the_baselines_of_the_real_data(data_folder):
    for name, least in (("sentiment", 0.77), ("similarity", 0.73)):
        task, splits = TASKS[name], load_splits(TASKS[name], str(data_folder))
        predicted = predict_baseline(task, splits.train, splits.validation, splits.test)
        accuracy = class_scores(gold_labels(splits.test), predicted, task.labels)["accuracy"]
        print(f"{name}: accuracy {accuracy:.4f} on test")
        assert accuracy > least
    splits = load_splits(TASKS["ner"], str(data_folder))
    for rows, f1 in ((splits.validation, 0.360), (splits.test, 0.323)):
        predicted = predict_baseline(TASKS["ner"], splits.train, splits.validation, rows)
        found = entity_scores([row["tags"] for row in rows], predicted)["f1"]
        assert found == pytest.approx(f1, abs=0.001)
