"""The best allowed sequence of tags, compared with a search over all sequences."""

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
    """Return whether tags follow IOB2: strict IOB2 and the default then find the same entities."""
    return entities(tags) == entities(tags, strict=True)


def test_the_allowed_transitions_worked_by_hand():
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


def test_a_type_without_a_b_label_can_start_with_i():
    first, step = transitions(("O", "I-A", "B-C", "I-C"))
    no = -math.inf
    assert first.tolist() == [0, 0, 0, no]
    assert step.tolist() == [[0, 0, 0, no], [0, 0, 0, no], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_result_is_the_best_of_all_allowed_sequences():
    counts, not_greedy = [3, 1, 5, 4, 2], 0
    for seed in range(20):
        scores = torch.randn(
            sum(counts), len(LABELS), generator=torch.Generator().manual_seed(seed)
        ).log_softmax(1)
        results = best_sequences(scores, counts, LABELS).split(counts)
        for result, words in zip(results, scores.split(counts)):
            allowed = (
                tags
                for tags in product(range(len(LABELS)), repeat=len(words))
                if is_bio([LABELS[t] for t in tags])
            )
            best = max(
                allowed,
                key=lambda tags: sum(words[index, tag].item() for index, tag in enumerate(tags)),
            )
            assert tuple(result.tolist()) == best
            not_greedy += best != tuple(words.argmax(1).tolist())
    assert not_greedy > 20


def test_the_best_tags_of_the_words_are_returned_if_they_are_allowed():
    tags = torch.tensor([0, 1, 2, 2, 0, 3, 4, 1])
    scores = torch.randn(8, 5).log_softmax(1)
    scores[torch.arange(8), tags] = 0.0
    assert torch.equal(best_sequences(scores, [4, 1, 3], LABELS), tags)


@pytest.mark.parametrize("counts", [[0, 2, 0], [0], []])
def test_a_sentence_without_words_has_no_tags(counts):
    scores = torch.randn(sum(counts), 5)
    assert (
        best_sequences(scores, counts, LABELS).tolist()
        == best_sequences(scores, [sum(counts)], LABELS).tolist()
    )


def test_a_run_with_tag_decoding_viterbi_predicts_allowed_tags(tiny_folder):
    """With a random head few greedy sequences are allowed, but all of Viterbi are."""
    rows, results = load_splits(TASKS["ner"], "sample").validation[:40], {}
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
        results[decoding] = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows))
    greedy, viterbi = (results[decoding].predicted for decoding in ("greedy", "viterbi"))
    assert [*map(len, greedy)] == [*map(len, viterbi)]
    assert all(map(is_bio, viterbi)) and sum(map(is_bio, greedy)) < 20
    same = sum(a == b for a, b in zip(greedy, viterbi))
    assert same == sum(map(is_bio, greedy))
    # Each probability is that of the predicted tag, so at most that of the best tag.
    for chosen, best in zip(results["viterbi"].probabilities, results["greedy"].probabilities):
        assert all(0 < a <= b * (1 + 1e-6) for a, b in zip(chosen, best, strict=True))
