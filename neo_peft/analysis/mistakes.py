"""The mistakes of a tagger. Each wrong entity is of one kind, and is counted once."""

from collections.abc import Sequence
from typing import NamedTuple

from neo_peft.metrics import Entity, entities

KINDS = {
    "boundary": "the type is right, the first or the last word is not",
    "type": "both ends are right, the type is not",
    "missed": "a gold entity without a partner in the answer",
    "spurious": "an entity of the answer without a partner in gold",
}


class Mistake(NamedTuple):
    """One mistake.

    kind: one of KINDS.
    gold: the gold entity, None where the mistake is spurious.
    answer: the predicted entity, None where the gold entity is missed.
    """

    kind: str
    gold: Entity | None
    answer: Entity | None


def mistakes(gold_tags: Sequence[str], answer_tags: Sequence[str]) -> list[Mistake]:
    """Return the mistakes of one sentence, from left to right.

      hit        type, first and last word agree; hits are not returned
      type       first and last word agree, the type does not
      boundary   the type agrees and a word is shared, but not both ends
      missed     a gold entity without a partner
      spurious   a predicted entity without a partner

    An entity has at most one partner. Entities that share the most words are paired first; of
    equal pairs the leftmost is first. So

      gold   = hits + type + boundary + missed
      answer = hits + type + boundary + spurious

    An entity that is wrong in both type and boundary is one missed and one spurious.
    """
    gold, answer = entities(gold_tags), entities(answer_tags)
    hits = {*gold} & {*answer}
    gold, answer = ([entity for entity in of if entity not in hits] for of in (gold, answer))
    pairs = [(one, other) for one in gold for other in answer if _kind(one, other)]
    found = []
    for one, other in sorted(pairs, key=lambda pair: -_shared(*pair)):  # stable: the leftmost first
        if one in gold and other in answer:
            gold.remove(one)
            answer.remove(other)
            found.append(Mistake(_kind(one, other), one, other))
    found += [Mistake("missed", one, None) for one in gold]
    found += [Mistake("spurious", None, other) for other in answer]
    return sorted(found, key=lambda mistake: (mistake.gold or mistake.answer)[1])


def _kind(one: Entity, other: Entity) -> str | None:
    """Return the kind of mistake of a pair, None where the two are no pair."""
    if one[1:] == other[1:]:
        return "type"  # of one type they would be a hit
    return "boundary" if one[0] == other[0] and _shared(one, other) > 0 else None


def _shared(one: Entity, other: Entity) -> int:
    """Return how many words two entities share; below 1 they share none."""
    return min(one[2], other[2]) - max(one[1], other[1]) + 1
