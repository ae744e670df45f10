"""What a tagger gets wrong, entity by entity: each one that is no hit is of one kind, and counted
once."""

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
    kind: str
    gold: Entity | None
    answer: Entity | None


def mistakes(gold_tags: Sequence[str], answer_tags: Sequence[str]) -> list[Mistake]:
    """Pair the entities of a sentence's gold tags with those of the answer, and name what is wrong
    with each.

      hit        type, first and last word agree; not among what is returned
      type       first and last word agree, the type does not
      boundary   the type agrees and a word is shared, but not both ends
      missed     a gold entity without a partner
      spurious   an answer's entity without a partner

    An entity has one partner at most: those pair first that share the most words, of equals the
    leftmost. So

      gold   = hits + type + boundary + missed
      answer = hits + type + boundary + spurious

    and what is wrong in type and boundary both is one missed and one spurious.
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
    if one[1:] == other[1:]:
        return "type"  # of one type they would be a hit
    return "boundary" if one[0] == other[0] and _shared(one, other) > 0 else None


def _shared(one: Entity, other: Entity) -> int:
    """Count the words that two entities share."""
    return min(one[2], other[2]) - max(one[1], other[1]) + 1
