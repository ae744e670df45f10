"""The lines that a run prints about its labels, and the names of its metrics."""

from dataclasses import replace

import pytest

from neo_peft.metrics import class_scores
from neo_peft.runs import tables
from neo_peft.runs.summary import kept_moment, label_line, scoring_line, untrained_labels
from neo_peft.settings import make_settings, with_labels
from neo_peft.tasks import TASKS

CLASSIFICATION, TAGGING = TASKS["classification"], TASKS["tagging"]
YES_NO = with_labels(CLASSIFICATION, ("no", "yes"))


@pytest.mark.parametrize(
    "task, with_head, line",
    [
        (TASKS["sentiment"], False, "negative, neutral, positive: predicted as these texts"),
        (YES_NO, False, "no, yes: predicted as these texts; yes is the positive one"),
        (YES_NO, True, "no, yes: classes of a linear head; yes is the positive one"),
        (
            with_labels(CLASSIFICATION, ("0", "1"), ("no", "yes")),
            False,
            '0 as "no", 1 as "yes": predicted as these texts; 1 is the positive one',
        ),
        (
            with_labels(CLASSIFICATION, [f"l{i}" for i in range(30)]),
            False,
            "l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, … (30 in all): predicted as these "
            "texts",
        ),
        (with_labels(TAGGING, ("x",)), True, "O, B-x, I-x: classes of a linear head"),
        (with_labels(TAGGING, ("O", "B-x")), True, "O, B-x: classes of a linear head"),
    ],
)
def test_the_line_on_labels_has_their_order_and_their_texts(task, with_head, line):
    assert label_line(task, with_head) == line


def test_labels_without_a_training_row_are_noted():
    rows = [{"sentence": "a", "label": "yes"}]
    note = "no training row has the label no: the model cannot learn it"
    assert untrained_labels(YES_NO, rows) == [note]
    assert untrained_labels(YES_NO, [*rows, {"sentence": "b", "label": "no"}]) == []
    # For tags, types count: a type with entities of one word has no I-.
    task, rows = with_labels(TAGGING, ("x", "y")), [{"tokens": ["a", "b"], "tags": ["O", "B-y"]}]
    note = "no training row has the entity type x: the model cannot learn it"
    assert untrained_labels(task, rows) == [note]


def test_a_binary_f1_names_its_label_everywhere():
    scores = class_scores(["yes", "no", "no"], ["no"] * 3, YES_NO.labels)
    assert scores["f1"] == 0  # of yes; of no it is 0.8
    assert "f1 of yes 0.000, matthews 0.000, macro f1 0.400" in tables.scores(YES_NO, scores)
    reversed_task = with_labels(CLASSIFICATION, ("yes", "no"))
    reversed_scores = class_scores(["yes", "no", "no"], ["no"] * 3, reversed_task.labels)
    assert "f1 of no 0.800" in tables.scores(reversed_task, reversed_scores)
    task = replace(YES_NO, metric="f1")
    table = tables.before_after(task, {"test": {"after": scores}})
    assert "test f1 of yes" in table and "test macro_f1" in table
    line = {
        "step": 8,
        "epoch": 2,
        "train_loss": 1.0,
        "validation_loss": 2.0,
        "validation": {"f1": 0.25},
    }
    settings = make_settings(task="classification", method="lora")
    printed = scoring_line(task, settings, line, False)
    assert printed.startswith("epoch 2: ") and printed.endswith("2.0000, f1 of yes 0.250")
    printed = scoring_line(TAGGING, replace(settings, eval_every=4), line, True)
    assert printed.startswith("step 8 (epoch 2): ") and printed.endswith(", f1 0.250, kept")
    older_record = {"kept_epoch": 2, "flags": {}}
    assert kept_moment(older_record) == "epoch 2"
    named = with_labels(CLASSIFICATION, ("not_ok", "is_ok"))
    assert tables.shown_name(named, "f1") == "f1 of is_ok"
    assert tables.shown_name(named, "macro_f1") == "macro f1"
    assert tables.shown_name(TASKS["glue/mrpc"], "f1") == "f1 of equivalent"
    assert tables.shown_name(TAGGING, "f1") == "typed f1"
