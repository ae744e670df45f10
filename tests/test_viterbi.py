"""The best allowed tags: against all sequences written out, and against what no search is needed
for."""

import math
from itertools import product

import pytest
import torch

from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.metrics import entities
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS
from neo_peft.viterbi import best_sequences, transitions

LABELS = ("O", "B-A", "I-A", "B-B-C", "I-B-C")


def is_bio(tags) -> bool:
    """Strict IOB2 finds all that the default finds only where no I- stands alone."""
    return entities(tags) == entities(tags, strict=True)


def test_what_may_follow_what_worked_by_hand():
    first, step = transitions(LABELS)
    no = -math.inf
    assert first.tolist() == [0, 0, no, 0, no]
    assert step.tolist() == [
        [0, 0, no, 0, no],
        [0, 0, 0, 0, no],
        [0, 0, 0, 0, no],
        [0, 0, no, 0, 0],
        [0, 0, no, 0, 0],
    ]


def test_a_type_without_a_beginning_begins_with_what_it_has():
    first, step = transitions(("O", "I-A", "B-C", "I-C"))
    no = -math.inf
    assert first.tolist() == [0, 0, 0, no]
    assert step.tolist() == [[0, 0, 0, no], [0, 0, 0, no], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_it_is_the_best_of_all_sequences_that_are_allowed():
    counts, changed = [3, 1, 5, 4, 2], 0
    for seed in range(20):
        scores = torch.randn(
            sum(counts), len(LABELS), generator=torch.Generator().manual_seed(seed)
        ).log_softmax(1)
        found = best_sequences(scores, counts, LABELS).split(counts)
        for sentence, own in zip(found, scores.split(counts)):
            every = (
                tags
                for tags in product(range(len(LABELS)), repeat=len(own))
                if is_bio([LABELS[t] for t in tags])
            )
            best = max(
                every,
                key=lambda tags: sum(own[place, tag].item() for place, tag in enumerate(tags)),
            )
            assert tuple(sentence.tolist()) == best
            changed += best != tuple(own.argmax(1).tolist())
    assert changed > 20


def test_where_each_words_best_tags_are_allowed_they_are_the_answer():
    tags = torch.tensor([0, 1, 2, 2, 0, 3, 4, 1])
    scores = torch.randn(8, 5).log_softmax(1)
    scores[torch.arange(8), tags] = 0.0
    assert torch.equal(best_sequences(scores, [4, 1, 3], LABELS), tags)


@pytest.mark.parametrize("counts", [[0, 2, 0], [0], []])
def test_a_sentence_whose_words_were_all_cut_away_has_no_tags(counts):
    scores = torch.randn(sum(counts), 5)
    assert (
        best_sequences(scores, counts, LABELS).tolist()
        == best_sequences(scores, [sum(counts)], LABELS).tolist()
    )


def test_a_run_that_asks_for_it_answers_so(tiny_folder):
    """Of a random head few greedy answers are allowed, and all of the others'."""
    rows, found = load_splits(TASKS["ner"], "sample").validation[:40], {}
    for decoding in ("greedy", "viterbi"):
        settings = make_settings(
            task="ner",
            method="lora",
            model=str(tiny_folder),
            threads=1,
            tag_decoding=decoding,
            max_length=40,
        )
        tuned = load_untuned(settings, with_method=True)
        found[decoding] = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows))
    greedy, viterbi = (found[decoding].predicted for decoding in ("greedy", "viterbi"))
    assert [*map(len, greedy)] == [*map(len, viterbi)]
    assert all(map(is_bio, viterbi)) and sum(map(is_bio, greedy)) < 20
    same = sum(a == b for a, b in zip(greedy, viterbi))
    assert same == sum(map(is_bio, greedy))
    # The probability beside a tag is that tag's own, which is at most the best one's.
    for chosen, best in zip(found["viterbi"].probabilities, found["greedy"].probabilities):
        assert all(0 < a <= b * (1 + 1e-6) for a, b in zip(chosen, best, strict=True))
