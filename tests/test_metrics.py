"""Scores, compared with seqeval and scikit-learn on random input, and with cases worked by hand."""

import random
from itertools import product

import pytest
import seqeval.metrics as seqeval
from seqeval_oracle import THREE, assert_scores_like_seqeval, seqeval_entities
from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support

from neo_peft.metrics import class_scores, entities, entity_scores

TAGS = [
    "O",
    *(f"{prefix}-{entity_type}" for entity_type in ("A", "B", "A-B", "RNA") for prefix in "BI"),
]


def random_tags(rng, length):
    """Return random tags: all transitions are equally probable, valid or not."""
    return [rng.choice(TAGS) for _ in range(length)]


def random_corpus(rng, sentences):
    """Return gold tags of sentences of 0 to 14 words, and predicted tags: about 2/3 are right."""
    gold = [random_tags(rng, rng.randrange(15)) for _ in range(sentences)]
    predicted = [[tag if rng.random() < 0.6 else rng.choice(TAGS) for tag in tags] for tags in gold]
    return gold, predicted


@pytest.mark.parametrize(
    ("tags", "default", "strict"),
    [
        ("I-A I-A O", [("A", 0, 1)], []),
        ("B-A I-B I-B", [("A", 0, 0), ("B", 1, 2)], [("A", 0, 0)]),
        ("B-A I-B I-A", [("A", 0, 0), ("B", 1, 1), ("A", 2, 2)], [("A", 0, 0)]),
        ("B-A B-A I-A", [("A", 0, 0), ("A", 1, 2)], [("A", 0, 0), ("A", 1, 2)]),
        ("I-A B-A I-A", [("A", 0, 0), ("A", 1, 2)], [("A", 1, 2)]),
        ("B-A O I-A", [("A", 0, 0), ("A", 2, 2)], [("A", 0, 0)]),
        ("I-A I-B", [("A", 0, 0), ("B", 1, 1)], []),
        ("B-A-B I-A-B", [("A-B", 0, 1)], [("A-B", 0, 1)]),
        ("O O", [], []),
        ("", [], []),
    ],
)
def test_entities_follow_conlleval_or_with_strict_iob2(tags, default, strict):
    assert entities(tags.split()) == default
    assert entities(tags.split(), strict=True) == strict


@pytest.mark.parametrize("strict", [False, True])
def test_entities_of_random_tags_equal_seqevals(strict):
    rng = random.Random(0)
    corpus = [random_tags(rng, rng.randrange(15)) for _ in range(2000)]
    transitions = {pair for tags in corpus for pair in zip(["start", *tags], [*tags, "end"])}
    assert transitions >= set(product(["start", *TAGS], [*TAGS, "end"]))
    for tags in corpus:
        assert entities(tags, strict) == seqeval_entities(tags, strict)


@pytest.mark.parametrize("strict", [False, True])
def test_scores_of_a_random_corpus_equal_seqevals(strict):
    assert_scores_like_seqeval(*random_corpus(random.Random(1), 2000), strict)


@pytest.mark.parametrize("strict", [False, True])
def test_scores_of_few_sentences_equal_seqevals(strict):
    # In a small corpus some types are in gold only or in predictions only: a special case for the
    # averages.
    rng = random.Random(2)
    only_gold = only_predicted = 0
    for _ in range(200):
        gold, predicted = random_corpus(rng, 2)
        in_gold = {t for tags in gold for t, _, _ in seqeval_entities(tags, strict)}
        in_predicted = {t for tags in predicted for t, _, _ in seqeval_entities(tags, strict)}
        if not in_gold | in_predicted:  # seqeval's macro is nan here; the next test is about ours
            continue
        only_gold += bool(in_gold - in_predicted)
        only_predicted += bool(in_predicted - in_gold)
        assert_scores_like_seqeval(gold, predicted, strict)
    assert only_gold > 20 and only_predicted > 20


@pytest.mark.parametrize(
    ("gold", "predicted", "accuracy"),
    [
        ([], [], 0.0),
        ([[]], [[]], 0.0),
        ([["O", "O"], ["O"]], [["O", "O"], ["O"]], 1.0),
        ([["O", "O"]], [[]], 1.0),
    ],
)
def test_scores_without_an_entity_are_zero(gold, predicted, accuracy):
    zeros = dict.fromkeys(THREE, 0.0)
    expected = {**zeros, "macro": zeros, "weighted": zeros, "span_f1": 0.0, "per_label": {}}
    expected["accuracy"] = accuracy
    assert entity_scores(gold, predicted) == expected
    assert entity_scores(gold, predicted, strict=True) == expected


def test_strict_scores_without_an_entity_are_zero():
    scores = entity_scores([["I-A", "O", "O"]], [["I-A", "I-B", "O"]], strict=True)
    assert [scores[key] for key in THREE] == [0.0, 0.0, 0.0]
    assert scores["per_label"] == {}
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_predicted_entities_without_gold_entities_score_zero():
    zeros = dict.fromkeys(THREE, 0.0)
    scores = entity_scores([["O", "O", "O"]], [["B-A", "I-A", "O"]])
    assert scores["per_label"] == {"A": {**zeros, "support": 0}}
    assert scores["macro"] == scores["weighted"] == zeros
    assert scores["f1"] == scores["span_f1"] == 0.0


def test_words_that_were_cut_count_as_o():
    gold = [
        ["B-A", "I-A", "O", "B-B", "I-B", "B-B", "O"],  # A 0-1, B 3-4, B 5-5
        ("O", "B-A", "I-A", "O"),  # A 1-2
        ["B-B", "O"],  # B 0-0
    ]
    predicted = [
        ["B-A", "I-A", "O", "B-B"],  # A 0-1 is a hit; B 3-3 was cut inside the entity: a miss
        ("O", "B-A", "I-A", "I-A"),  # A 1-3: a miss
        [],
    ]
    scores = entity_scores(gold, predicted)
    # 1 hit, 3 predicted, 5 gold. Without the cut words gold would have 3 entities and 2 hits, a
    # recall of 2/3.
    assert scores["recall"] == pytest.approx(1 / 5)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(2 / 8)
    # 2 of the 5 cut words are O in gold, so they are right
    assert scores["accuracy"] == pytest.approx((5 + 3 + 1) / 13)
    assert scores["per_label"] == {
        "A": pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2}),
        "B": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 3},
    }
    assert [len(tags) for tags in predicted] == [4, 4, 0]  # the caller's lists are unchanged


def test_an_entity_ends_with_its_sentence():
    gold = [["O", "B-A"], ["I-A", "O"]]
    assert entity_scores(gold, gold)["per_label"]["A"]["support"] == 2


@pytest.mark.parametrize("strict", [False, True])
def test_span_f1_is_seqevals_f1_with_one_type(strict):
    def of_one_type(corpus):  # the same entities, all with the type X
        rewritten = []
        for tags in corpus:
            rewritten.append(["O"] * len(tags))
            for _, first, last in seqeval_entities(tags, strict):
                rewritten[-1][first : last + 1] = ["B-X", *["I-X"] * (last - first)]
        return rewritten

    gold, predicted = random_corpus(random.Random(3), 300)
    scores = entity_scores(gold, predicted, strict)
    assert scores["span_f1"] == pytest.approx(
        seqeval.f1_score(of_one_type(gold), of_one_type(predicted))
    )
    assert scores["span_f1"] > scores["f1"] + 0.01


def test_span_f1_ignores_types_but_not_boundaries():
    gold = [["B-A", "I-A", "O", "B-B"], ["B-A", "O", "B-A", "I-A"]]
    predicted = [["B-B", "I-B", "O", "B-B"], ["O", "O", "B-A", "O"]]
    scores = entity_scores(gold, predicted)
    assert scores["f1"] == pytest.approx(2 * 1 / (3 + 4))  # B 3-3
    assert scores["span_f1"] == pytest.approx(2 * 2 / (3 + 4))  # and 0-1, but not 2-2 for 2-3


def test_class_scores_of_three_labels_by_hand():
    table = {  # (gold, predicted): examples
        ("neg", "neg"): 1,
        ("neg", "neu"): 2,
        ("neg", None): 1,
        ("neu", "neu"): 1,
        ("neu", "pos"): 1,
        ("pos", "neg"): 1,
        ("pos", "pos"): 2,
        ("pos", None): 1,
    }
    gold, predicted = zip(*(pair for pair, count in table.items() for _ in range(count)))
    scores = class_scores(gold, predicted, ("neg", "neu", "pos"))
    assert scores.pop("per_label") == {
        "neg": pytest.approx({"precision": 1 / 2, "recall": 1 / 4, "f1": 2 / 6, "support": 4}),
        "neu": pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2}),
        "pos": pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "support": 4}),
    }
    assert scores.pop("macro_f1") == pytest.approx((2 / 6 + 2 / 5 + 4 / 7) / 3)
    assert scores == {  # no f1: it is for two labels
        "accuracy": 4 / 10,
        "total": 10,
        "hits": 4,
        "unanswered": 2,
        "confusion": [[1, 2, 0, 1], [0, 1, 1, 0], [1, 0, 2, 1]],
    }


def test_class_scores_of_two_labels_have_the_f1_of_the_last_label():
    gold = ["no"] * 4 + ["yes"] * 6
    predicted = ["no", "yes", "yes", "yes"] + ["no", "yes", "yes", "yes", "yes", None]
    scores = class_scores(gold, predicted, ["no", "yes"])
    assert scores["f1"] == pytest.approx(2 * 4 / (7 + 6))  # precision 4/7, recall 4/6
    assert scores["macro_f1"] == pytest.approx((2 * 1 / (2 + 4) + 8 / 13) / 2)
    assert scores["accuracy"] == 5 / 10
    assert scores["confusion"] == [[1, 3, 0], [1, 4, 1]]
    assert class_scores(gold, predicted, ["yes", "no"])["f1"] == pytest.approx(2 / 6)


def test_class_scores_of_random_predictions_equal_scikit_learns():
    rng = random.Random(4)
    labels = ["d", "a", "c", "b"]  # not sorted; "b" is never gold
    gold = rng.choices(labels[:3], weights=[5, 3, 1], k=200)
    predicted = [label if rng.random() < 0.4 else rng.choice([*labels, None]) for label in gold]
    scores = class_scores(gold, predicted, labels)
    with_none = [label or "none" for label in predicted]
    theirs = precision_recall_fscore_support(gold, with_none, labels=labels, zero_division=0)
    assert list(scores["per_label"]) == labels
    for row, *expected in zip(scores["per_label"].values(), *theirs):
        assert [row[key] for key in (*THREE, "support")] == pytest.approx(expected)
    assert scores["macro_f1"] == pytest.approx(theirs[2].mean())
    assert (
        scores["confusion"]
        == confusion_matrix(gold, with_none, labels=[*labels, "none"])[:4].tolist()
    )


def test_matthews_equals_scikit_learns_and_none_is_a_class():
    rng = random.Random(5)
    for choices in (["no", "yes"], ["no", "yes", None]) * 10:
        gold = rng.choices(["no", "yes"], weights=[3, 2], k=50)
        predicted = [label if rng.random() < 0.5 else rng.choice(choices) for label in gold]
        matthews = class_scores(gold, predicted, ["no", "yes"])["matthews"]
        assert matthews == pytest.approx(
            matthews_corrcoef(gold, [label or "none" for label in predicted])
        )
    # 3 of 4 no and 2 of 3 yes are right: (3 · 2 - 1 · 1) / sqrt(4 · 3 · 4 · 3)
    gold, predicted = ["no"] * 4 + ["yes"] * 3, ["no", "no", "no", "yes", "yes", "yes", "no"]
    assert class_scores(gold, predicted, ["no", "yes"])["matthews"] == pytest.approx(5 / 12)
    assert class_scores(["no", "yes"], ["no", "no"], ["no", "yes"])["matthews"] == 0  # 0/0
    assert class_scores(["no", "yes"], [None, None], ["no", "yes"])["matthews"] == 0


def test_class_scores_without_examples_are_zero():
    row = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert class_scores([], [], ["no", "yes"]) == {
        "accuracy": 0.0,
        "total": 0,
        "hits": 0,
        "unanswered": 0,
        "macro_f1": 0.0,
        "f1": 0.0,
        "matthews": 0.0,
        "per_label": {"no": row, "yes": row},
        "confusion": [[0, 0, 0], [0, 0, 0]],
    }


@pytest.mark.parametrize(
    "tag", ["A", "B", "B-", "I-", "BA", "E-A", "b-A", "o", "OO", "O-A", "", 3, None]
)
def test_a_tag_that_is_not_bio_is_an_error(tag):
    message = rf"^{tag!r} is not a BIO tag; use 'O', 'B-type' or 'I-type'"
    with pytest.raises(ValueError, match=message):
        entities(["O", tag, "O"])
    with pytest.raises(ValueError, match=message):
        entity_scores([["O", "O"]], [["O", tag]])
    with pytest.raises(ValueError, match=message):
        entity_scores([["O", tag]], [["O", "O"]])


def test_more_predicted_tags_than_words_are_an_error():
    with pytest.raises(
        ValueError, match="^sentence 1 has 2 gold tags and 3 predicted ones: give one"
    ):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O", "O", "O"]])


def test_different_numbers_of_gold_and_predicted_are_an_error():
    with pytest.raises(ValueError, match="^2 gold sentences, but 1 predicted ones: give both"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="^1 gold labels, but 2 predicted ones: give both"):
        class_scores(["no"], ["no", "yes"], ["no", "yes"])


def test_an_unknown_label_is_an_error():
    with pytest.raises(
        ValueError, match="^example 1 has predicted label 'maybe'; the labels are no, yes, and"
    ):
        class_scores(["no", "yes"], ["no", "maybe"], ["no", "yes"])
    with pytest.raises(
        ValueError, match="^example 0 has gold label 'maybe'; the labels are no, yes$"
    ):
        class_scores(["maybe", "yes"], ["no", None], ["no", "yes"])
    with pytest.raises(ValueError, match="^example 1 has gold label None; the labels are no, yes$"):
        class_scores(["no", None], ["no", None], ["no", "yes"])
