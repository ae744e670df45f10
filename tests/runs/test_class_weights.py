"""`--class-weights`: the weighted loss is torch's, for a head and for label words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neo_peft import loop
from neo_peft.commands import train
from neo_peft.corpora.sources import load_splits
from neo_peft.encoding import collate
from neo_peft.errors import InputError
from neo_peft.progress import no_progress
from neo_peft.runs.class_weights import label_weights, weigh
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

SENTIMENT, NER = TASKS["sentiment"], TASKS["ner"]


def rows_of(labels):
    return [{"sentence": f"Sales {i} .", "label": label} for i, label in enumerate(labels)]


def test_balanced_is_one_over_the_share_of_a_label():
    rows = rows_of(["neutral"] * 6 + ["positive"] * 3 + ["negative"])
    found = label_weights(SENTIMENT, rows, ("balanced",))
    assert found == {"negative": 10 / 3, "neutral": 10 / 18, "positive": 10 / 9}
    # as scikit-learn's compute_class_weight: n / (classes * counts); the mean over the rows is 1
    assert sum(found[row["label"]] for row in rows) == pytest.approx(10)
    # a label without a row does not count
    assert label_weights(SENTIMENT, rows[:9], ("balanced",)) == {
        "negative": 1.0, "neutral": 9 / 12, "positive": 9 / 6
    }  # fmt: skip


def test_weights_are_given_by_label_and_for_tags_by_type():
    assert label_weights(SENTIMENT, [], ("negative=5", "positive=0.5")) == {
        "negative": 5.0, "neutral": 1.0, "positive": 0.5
    }  # fmt: skip
    found = label_weights(NER, [], ("O=0.5", "DNA=3", "B-RNA=2"))
    assert {label: weight for label, weight in found.items() if weight != 1} == {
        "O": 0.5, "B-DNA": 3.0, "I-DNA": 3.0, "B-RNA": 2.0
    }  # fmt: skip
    with pytest.raises(
        InputError, match="--class-weights good=2: there is no label good; the labels"
    ):
        label_weights(SENTIMENT, [], ("good=2",))


@pytest.mark.parametrize("wrong", ["heavy", "=2", "A=0", "A=-1", "A=nan", "A=x", "balanced,A=2"])
def test_a_wrong_weight_is_refused(wrong):
    with pytest.raises(InputError, match="--class-weights"):
        make_settings(task="sentiment", method="lora", class_weights=wrong)


def prepared(folder, task, given, **flags):
    """Return a model with a method, its training examples, and the same examples with weights."""
    settings = make_settings(task=task, model=str(folder), threads=1, head_dropout=0, **flags)
    tuned = load_untuned(settings, with_method=True)
    rows = load_splits(TASKS[task], "sample").train[:24]
    examples, weights = tuned.encoder(rows), label_weights(TASKS[task], rows, given)
    return tuned, rows, examples, weights


CASES = [
    ("ner", ("O=0.1", "DNA=3"), {"method": "lora"}),
    ("sentiment", ("positive=3", "negative=0.25"), {"method": "lora", "readout": "head"}),
    ("sentiment", ("positive=3", "negative=0.25"), {"method": "prompt"}),
    ("similarity", ("equivalent=4",), {"method": "lora"}),  # label texts of two tokens
]


@pytest.mark.parametrize("task, given, flags", CASES)
def test_the_weighted_loss_is_that_of_a_plain_loop(tiny_folder, task, given, flags):
    tuned, rows, examples, weights = prepared(tiny_folder, task, given, **flags)
    weighted = weigh(tuned.model, tuned.encoder, examples, weights)
    batch = collate(weighted, range(24))
    logits = tuned.model.logits(tuned.model(batch)).float()
    losses = F.cross_entropy(logits, batch.targets, reduction="none").split(
        batch.target_counts.tolist()
    )
    total = count = 0.0
    for row, row_losses in zip(rows, losses, strict=True):
        labels = row["tags"] if task == "ner" else [row["label"]] * len(row_losses)
        for label, loss in zip(labels, row_losses, strict=True):
            total, count = total + weights[label] * loss, count + weights[label]
    assert len({*weights.values()}) > 1
    torch.testing.assert_close(tuned.model.loss(batch), total)
    assert weighted.labelled.sum() == pytest.approx(count)
    # scoring has no weights
    hidden = tuned.model(batch)
    torch.testing.assert_close(tuned.model.loss_of(hidden, batch.targets), torch.cat(losses).sum())


def test_for_a_head_it_is_torchs_own_weighted_mean(tiny_folder):
    tuned, _, examples, weights = prepared(tiny_folder, "ner", ("O=0.1", "DNA=3"), method="head")
    weighted = weigh(tuned.model, tuned.encoder, examples, weights)
    batch = collate(weighted, range(24))
    logits = tuned.model.logits(tuned.model(batch))
    expected = F.cross_entropy(logits, batch.targets, torch.tensor([*weights.values()]))
    found = tuned.model.loss(batch) / weighted.labelled.sum()
    torch.testing.assert_close(found, expected, check_dtype=False)


def one_step(folder, task, given, flags, **sizes):
    tuned, _, examples, weights = prepared(folder, task, given, **flags, **sizes)
    weighted = weigh(tuned.model, tuned.encoder, examples, weights)
    state = loop.make_state(tuned.model, tuned.settings)
    step = next(loop.steps(tuned.model, weighted, tuned.settings, state, no_progress))
    return step.loss, [p.detach().clone() for p in tuned.model.trainable().values()]


@pytest.mark.parametrize("task, given, flags", CASES)
def test_four_batches_of_two_take_the_step_of_one_batch_of_eight(tiny_folder, task, given, flags):
    sizes = ({"batch_size": 8}, {"batch_size": 2, "gradient_accumulation": 4})
    (loss, together), (same, parts) = (
        one_step(tiny_folder, task, given, flags, **size) for size in sizes
    )
    assert loss == pytest.approx(same, rel=1e-5)
    for ours, theirs in zip(together, parts, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_equal_weights_change_no_prediction_and_unequal_ones_do(tiny_folder):
    flags = [
        "--task",
        "sentiment",
        "--method",
        "lora",
        "--model",
        str(tiny_folder),
        "--epochs",
        "2",
    ]
    flags += ["--train-limit", "40", "--eval-limit", "40"]
    found = {}
    for name, given in {"none": "none", "equal": "neutral=1", "heavy": "positive=1000"}.items():
        train.main([*flags, "--class-weights", given, "--out", name])
        lines = Path(name, "predictions/after-test.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["predicted"] for line in lines]
    assert found["none"] == found["equal"]
    assert found["heavy"].count("positive") > found["none"].count("positive")


def test_the_head_alone_has_the_same_weights(tiny_folder, capsys):
    flags = [
        "--task",
        "ner",
        "--model",
        str(tiny_folder),
        "--epochs",
        "2",
        "--class-weights",
        "O=0.05",
    ]
    flags += ["--train-limit", "40", "--eval-limit", "40"]
    train.main([*flags, "--method", "lora", "--head-baseline", "--out", "both"])
    assert (
        "note    class weights of the training loss: O 0.05, B-DNA 1, " in capsys.readouterr().out
    )
    train.main([*flags, "--method", "head", "--out", "head"])
    alone, head = (
        Path(run, "predictions", f"{kind}-test.jsonl").read_text()
        for run, kind in (("both", "head_alone"), ("head", "after"))
    )
    assert alone == head


def test_the_digest_depends_on_the_weights(tiny_folder):
    tuned, _, examples, weights = prepared(tiny_folder, "ner", ("O=0.1",), method="head")
    first = weigh(tuned.model, tuned.encoder, examples, weights)
    other = weigh(tuned.model, tuned.encoder, examples, weights | {"O": 0.2})
    assert len({examples.digest(), first.digest(), other.digest()}) == 3
    unlabelled = weigh(tuned.model, tuned.encoder, tuned.encoder([{"tokens": ["a", "b"]}]), weights)
    assert np.array_equal(unlabelled.labelled, [0.0])


def test_types_come_before_their_tags_and_a_label_has_one_weight():
    for given in (("DNA=3", "B-DNA=1"), ("B-DNA=1", "DNA = 3".replace(" = ", "="))):
        found = label_weights(NER, [], given)
        assert (found["B-DNA"], found["I-DNA"]) == (1.0, 3.0)
    with pytest.raises(InputError, match="--class-weights has negative twice"):
        label_weights(SENTIMENT, [], ("negative=2", "negative=3"))
