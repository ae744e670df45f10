"""The mistakes of a tagger: cases worked by hand, and each entity is counted exactly once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neo_peft.metrics import entities
from neo_peft.reports.mistakes import KINDS, mistakes

# gold tags, predicted tags, and the mistakes: (kind, gold entity, predicted entity)
CASES = {
    "a hit is no mistake": ("B-A I-A O", "B-A I-A O", []),
    "no entity": ("O O", "O O", []),
    "another type": ("O B-A I-A", "O B-B I-B", [("type", ("A", 1, 2), ("B", 1, 2))]),
    "too short": ("B-A I-A I-A", "O B-A I-A", [("boundary", ("A", 0, 2), ("A", 1, 2))]),
    "too long": ("O B-A O", "B-A I-A I-A", [("boundary", ("A", 1, 1), ("A", 0, 2))]),
    "shifted": ("B-A I-A O", "O B-A I-A", [("boundary", ("A", 0, 1), ("A", 1, 2))]),
    "missed": ("B-A O O", "O O O", [("missed", ("A", 0, 0), None)]),
    "spurious": ("O O O", "O B-A O", [("spurious", None, ("A", 1, 1))]),
    "next to each other, no shared word": (
        "B-A O",
        "O B-A",
        [("missed", ("A", 0, 0), None), ("spurious", None, ("A", 1, 1))],
    ),
    "type and boundary": (
        "B-A I-A O",
        "B-B O O",
        [("missed", ("A", 0, 1), None), ("spurious", None, ("B", 0, 0))],
    ),
    "split: the longer part is paired": (
        "B-A I-A I-A I-A",
        "B-A B-A I-A I-A",
        [("boundary", ("A", 0, 3), ("A", 1, 3)), ("spurious", None, ("A", 0, 0))],
    ),
    "split into equal parts: the left one is paired": (
        "B-A I-A I-A I-A",
        "B-A I-A B-A I-A",
        [("boundary", ("A", 0, 3), ("A", 0, 1)), ("spurious", None, ("A", 2, 3))],
    ),
    "two joined: the left one is paired": (
        "B-A B-A",
        "B-A I-A",
        [("boundary", ("A", 0, 0), ("A", 0, 1)), ("missed", ("A", 1, 1), None)],
    ),
    "a chain: the pair with the most shared words is paired first": (
        "B-A I-A B-A I-A I-A O",
        "O B-A I-A I-A O O",
        [("missed", ("A", 0, 1), None), ("boundary", ("A", 2, 4), ("A", 1, 3))],
    ),
    "an entity has at most one partner": (
        "B-A I-A I-A B-A",
        "B-A I-A B-A I-A",
        [("boundary", ("A", 0, 2), ("A", 0, 1)), ("boundary", ("A", 3, 3), ("A", 2, 3))],
    ),
    "a hit is not paired again": ("B-A I-A O", "B-A I-A B-A", [("spurious", None, ("A", 2, 2))]),
}


@pytest.mark.parametrize("gold, predicted, expected", CASES.values(), ids=CASES)
def test_each_wrong_entity_has_one_kind_of_mistake(gold, predicted, expected):
    assert mistakes(gold.split(), predicted.split()) == expected


tag = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])


@given(st.lists(st.tuples(tag, tag), max_size=12))
def test_every_entity_is_a_hit_or_in_one_mistake(pairs):
    gold, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = mistakes(gold, predicted)
    kinds = Counter(mistake.kind for mistake in found)
    assert kinds.keys() <= KINDS.keys()
    hits = [entity for entity in entities(gold) if entity in entities(predicted)]
    assert sorted(hits + [mistake.gold for mistake in found if mistake.gold]) == sorted(
        entities(gold)
    )
    assert sorted(hits + [mistake.predicted for mistake in found if mistake.predicted]) == sorted(
        entities(predicted)
    )
    for kind, gold_entity, predicted_entity in found:
        pair = gold_entity, predicted_entity
        words = [set(range(entity[1], entity[2] + 1)) if entity else set() for entity in pair]
        same_type = all(pair) and gold_entity[0] == predicted_entity[0]
        if kind == "type":
            assert words[0] == words[1] and not same_type
        elif kind == "boundary":
            assert words[0] & words[1] and words[0] != words[1] and same_type
        else:
            assert (gold_entity is None) == (kind == "spurious")
            assert (predicted_entity is None) == (kind == "missed")
