"""The mistakes of a tagger. Each wrong entity is of one kind, and is counted once."""

from collections.abc import Sequence
from typing import NamedTuple

from neo_peft.metrics import Entity, entities

KINDS = {
    "boundary": "the type is correct, the first or last word is wrong",
    "type": "the first and last word are correct, the type is wrong",
    "missed": "a gold entity without a matching predicted entity",
    "spurious": "a predicted entity without a matching gold entity",
}


class Mistake(NamedTuple):
    """A wrong gold entity, a wrong predicted entity, or a pair of both."""

    kind: str  # one of KINDS
    gold: Entity | None  # None for a spurious entity
    predicted: Entity | None  # None for a missed entity


def mistakes(gold_tags: Sequence[str], predicted_tags: Sequence[str]) -> list[Mistake]:
    """Return the mistakes of one sentence, from left to right.

      hit        type, first and last word agree; hits are not returned
      type       first and last word agree, the type does not
      boundary   the type agrees, and they share a word, but not both ends
      missed     a gold entity without a partner
      spurious   a predicted entity without a partner

    An entity has at most one partner. Entities that share the most words are paired first; if two
    pairs share equally many, the left pair is first. So

      gold      = hits + type + boundary + missed
      predicted = hits + type + boundary + spurious

    If both type and boundary are wrong, the gold entity is missed and the predicted one spurious.
    """
    gold, predicted = entities(gold_tags), entities(predicted_tags)
    hits = {*gold} & {*predicted}
    gold = [entity for entity in gold if entity not in hits]
    predicted = [entity for entity in predicted if entity not in hits]
    pairs = [(a, b) for a in gold for b in predicted if _kind(a, b)]
    found = []
    # The sort is stable: of pairs that share equally many words, the left one stays first.
    for a, b in sorted(pairs, key=lambda pair: -_shared_words(*pair)):
        if a in gold and b in predicted:
            gold.remove(a)
            predicted.remove(b)
            found.append(Mistake(_kind(a, b), a, b))
    found += [Mistake("missed", entity, None) for entity in gold]
    found += [Mistake("spurious", None, entity) for entity in predicted]
    return sorted(found, key=lambda mistake: (mistake.gold or mistake.predicted)[1])


def _kind(gold: Entity, predicted: Entity) -> str | None:
    """Return the kind of mistake of two entities, or None if they do not match at all."""
    if gold[1:] == predicted[1:]:
        return "type"  # with the same type they would be a hit
    same_type = gold[0] == predicted[0]
    return "boundary" if same_type and _shared_words(gold, predicted) > 0 else None


def _shared_words(a: Entity, b: Entity) -> int:
    """Return the number of words that two entities share, or 0 or less if they share none."""
    return min(a[2], b[2]) - max(a[1], b[1]) + 1
