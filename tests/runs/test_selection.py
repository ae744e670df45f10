"""`--metric` names the score on validation that chooses the best epoch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neo_peft.commands import train
from neo_peft.errors import InputError
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.runs.selection import epoch_score, metrics_of, refuse_metric
from neo_peft.settings import SELECTION_METRICS, make_settings, with_labels
from neo_peft.tasks import TASKS

NER, SENTIMENT = TASKS["ner"], TASKS["sentiment"]
YES_NO = with_labels(TASKS["classification"], ("no", "yes"))
GOLD, PREDICTED = ["no", "no", "no", "yes", "yes"], ["no", "no", "yes", "yes", "no"]


def settings(task="classification", **given):
    return make_settings(task=task, method="lora", **given)


@pytest.mark.parametrize(
    "metric, by_hand",
    [
        (None, 3 / 5),
        ("accuracy", 3 / 5),
        ("macro_f1", (2 / 3 + 1 / 2) / 2),  # no: 2 of 3 and 2 of 3; yes: 1 of 2 and 1 of 2
        ("f1", 1 / 2),
        ("matthews", (2 * 1 - 1 * 1) / (3 * 2 * 3 * 2) ** 0.5),
        ("loss", -0.25),  # a lower loss is better
    ],
)
def test_the_score_of_an_epoch_is_the_metric_by_hand(metric, by_hand):
    scores = class_scores(GOLD, PREDICTED, YES_NO.labels)
    found = epoch_score(YES_NO, settings(metric=metric), scores, 0.25)
    assert found == pytest.approx(by_hand)


def test_for_tags_macro_f1_is_the_mean_over_the_types():
    gold = [["B-DNA", "O", "B-RNA", "O", "B-RNA"]]
    scores = entity_scores(gold, [["B-DNA", "O", "B-RNA", "B-RNA", "O"]])
    assert epoch_score(NER, settings("ner", metric="macro_f1"), scores, 1.0) == (1 + 0.5) / 2
    assert epoch_score(NER, settings("ner"), scores, 1.0) == scores["f1"] == 4 / 6


def test_a_metric_that_the_task_does_not_have_is_refused_with_those_it_has():
    for task in (NER, SENTIMENT, YES_NO):
        for metric in SELECTION_METRICS:
            chosen = settings(metric=metric)
            if metric in metrics_of(task):
                refuse_metric(task, chosen)
                continue
            with pytest.raises(InputError, match=f"--metric {metric}: .* choose one of .*loss"):
                refuse_metric(task, chosen)
    with pytest.raises(InputError, match="sentiment with 3 labels has no such score"):
        refuse_metric(SENTIMENT, settings(metric="matthews"))
    with pytest.raises(InputError, match="--metric chooses the best epoch, but --keep is last"):
        settings(metric="loss", keep="last")


@pytest.mark.parametrize("metric", ["loss", "macro_f1", "accuracy"])
def test_a_run_keeps_the_epoch_with_the_best_value(tiny_folder, metric):
    """The rate is so high that the scores and the loss of the epochs go up and down."""
    flags = ["--task", "ner", "--method", "head", "--model", str(tiny_folder), "--epochs", "6"]
    flags += ["--train-limit", "40", "--eval-limit", "40", "--learning-rate", "1"]
    train.main([*flags, "--metric", metric, "--out", "run"])
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    epochs = [line for line in lines if "validation" in line]
    values = [
        -line["validation_loss"] if metric == "loss" else line["validation"][metric]
        for line in epochs
    ]
    assert len(set(values)) > 2
    record = json.loads(Path("run/run.json").read_text())
    assert record["kept_epoch"] == 1 + values.index(max(values))


def test_the_first_epoch_is_kept_even_with_the_worst_score(tiny_folder, monkeypatch):
    """A correlation can be -1, which is no better than no epoch at all."""
    monkeypatch.setattr("neo_peft.runs.selection.epoch_score", lambda *given: -1.0)
    flags = ["--task", "ner", "--method", "head", "--model", str(tiny_folder), "--epochs", "2"]
    train.main([*flags, "--train-limit", "4", "--eval-limit", "4", "--out", "run"])
    assert json.loads(Path("run/run.json").read_text())["kept_epoch"] == 1


def test_the_head_alone_is_chosen_by_the_same_metric(tiny_folder, monkeypatch):
    monkeypatch.setattr("neo_peft.runs.head_alone.LEARNING_RATE", 1.0)
    flags = ["--task", "ner", "--model", str(tiny_folder), "--epochs", "6", "--metric", "loss"]
    flags += ["--train-limit", "40", "--eval-limit", "40"]
    train.main([*flags, "--method", "lora", "--head-baseline", "--out", "both"])
    train.main([*flags, "--method", "head", "--learning-rate", "1", "--out", "head"])
    alone, head = (
        Path(run, "predictions", f"{kind}-test.jsonl").read_text()
        for run, kind in (("both", "head_alone"), ("head", "after"))
    )
    assert alone == head


def test_the_default_is_the_metric_of_the_task():
    scores = class_scores(GOLD, PREDICTED, YES_NO.labels)
    task = replace(YES_NO, metric="f1")
    assert epoch_score(task, settings(), scores, 0.1) == scores["f1"]
