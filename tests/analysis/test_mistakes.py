"""What a tagger gets wrong, entity by entity: cases worked by hand, and that nothing is lost or
counted twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neo_peft.analysis.mistakes import KINDS, mistakes
from neo_peft.metrics import entities

# gold tags, answered tags, and the mistakes: kind, gold entity, answered entity.
CASES = {
    "a hit is no mistake": ("B-A I-A O", "B-A I-A O", []),
    "nothing at all": ("O O", "O O", []),
    "another type": ("O B-A I-A", "O B-B I-B", [("type", ("A", 1, 2), ("B", 1, 2))]),
    "too short": ("B-A I-A I-A", "O B-A I-A", [("boundary", ("A", 0, 2), ("A", 1, 2))]),
    "too long": ("O B-A O", "B-A I-A I-A", [("boundary", ("A", 1, 1), ("A", 0, 2))]),
    "shifted": ("B-A I-A O", "O B-A I-A", [("boundary", ("A", 0, 1), ("A", 1, 2))]),
    "missed": ("B-A O O", "O O O", [("missed", ("A", 0, 0), None)]),
    "spurious": ("O O O", "O B-A O", [("spurious", None, ("A", 1, 1))]),
    "beside, no word shared": (
        "B-A O",
        "O B-A",
        [("missed", ("A", 0, 0), None), ("spurious", None, ("A", 1, 1))],
    ),
    "type and boundary": (
        "B-A I-A O",
        "B-B O O",
        [("missed", ("A", 0, 1), None), ("spurious", None, ("B", 0, 0))],
    ),
    "split: the longer part is the partner": (
        "B-A I-A I-A I-A",
        "B-A B-A I-A I-A",
        [("boundary", ("A", 0, 3), ("A", 1, 3)), ("spurious", None, ("A", 0, 0))],
    ),
    "split into equal parts: the left one is": (
        "B-A I-A I-A I-A",
        "B-A I-A B-A I-A",
        [("boundary", ("A", 0, 3), ("A", 0, 1)), ("spurious", None, ("A", 2, 3))],
    ),
    "two joined: the left one is": (
        "B-A B-A",
        "B-A I-A",
        [("boundary", ("A", 0, 0), ("A", 0, 1)), ("missed", ("A", 1, 1), None)],
    ),
    "a chain: the pair that shares the most words comes first": (
        "B-A I-A B-A I-A I-A O",
        "O B-A I-A I-A O O",
        [("missed", ("A", 0, 1), None), ("boundary", ("A", 2, 4), ("A", 1, 3))],
    ),
    "an entity with a partner is no second one's": (
        "B-A I-A I-A B-A",
        "B-A I-A B-A I-A",
        [("boundary", ("A", 0, 2), ("A", 0, 1)), ("boundary", ("A", 3, 3), ("A", 2, 3))],
    ),
    "a hit is no partner": ("B-A I-A O", "B-A I-A B-A", [("spurious", None, ("A", 2, 2))]),
}


@pytest.mark.parametrize("gold, answer, expected", CASES.values(), ids=CASES)
def test_each_entity_that_is_no_hit_is_of_one_kind(gold, answer, expected):
    assert mistakes(gold.split(), answer.split()) == expected


tag = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])


@given(st.lists(st.tuples(tag, tag), max_size=12))
def test_every_entity_is_a_hit_or_in_one_mistake(pairs):
    gold, answer = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = mistakes(gold, answer)
    kinds = Counter(mistake.kind for mistake in found)
    assert kinds.keys() <= KINDS.keys()
    hits = [entity for entity in entities(gold) if entity in entities(answer)]
    assert sorted(hits + [mistake.gold for mistake in found if mistake.gold]) == sorted(
        entities(gold)
    )
    assert sorted(hits + [mistake.predicted for mistake in found if mistake.predicted]) == sorted(
        entities(answer)
    )
    for kind, one, other in found:
        words = [
            set(range(entity[1], entity[2] + 1)) if entity else set() for entity in (one, other)
        ]
        same_type = bool(one and other and one[0] == other[0])
        if kind == "type":
            assert words[0] == words[1] and not same_type
        elif kind == "boundary":
            assert words[0] & words[1] and words[0] != words[1] and same_type
        else:
            assert (one is None, other is None) == (kind == "spurious", kind == "missed")
