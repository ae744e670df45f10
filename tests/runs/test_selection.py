"""When a run scores validation, which weights it keeps, and when `--patience` ends it."""

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
    with pytest.raises(InputError, match="--metric needs the best score on validation, but --keep"):
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


# ---- --eval-every and --patience

SMALL = ["--train-limit", "30", "--eval-limit", "8", "--batch-size", "5"]  # 6 steps in each epoch


def lines_of(run: str) -> list[dict]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def with_scores(monkeypatch, *scores: float) -> None:
    """Give the scorings of a run these scores."""
    remaining = list(scores)

    def epoch_score(task, settings, scores, loss) -> float:
        return remaining.pop(0) if loss is not None else 0.5  # without a loss: for the printed line

    monkeypatch.setattr("neo_peft.runs.selection.epoch_score", epoch_score)


def train_small(tiny_folder, *flags: str, out: str = "run") -> dict:
    """Train on six steps an epoch. Return the content of run.json."""
    model = ["--task", "sentiment", "--method", "lora", "--model", str(tiny_folder)]
    train.main([*model, *SMALL, *flags, "--out", out])
    return json.loads(Path(out, "run.json").read_text())


@pytest.mark.parametrize(
    "flags, scored",
    [
        (["--epochs", "2"], [(6, 1), (12, 2)]),
        (["--epochs", "2", "--eval-every", "4"], [(4, 1), (8, 2), (12, 2)]),
        (["--epochs", "2", "--eval-every", "5"], [(5, 1), (10, 2), (12, 2)]),
        (["--epochs", "2", "--eval-every", "100"], [(12, 2)]),
        (["--epochs", "2", "--eval-every", "6", "--max-steps", "8"], [(6, 1), (8, 2)]),
        (["--epochs", "2", "--max-steps", "8"], [(6, 1), (8, 2)]),
    ],
)
def test_validation_is_scored_at_these_steps_and_at_the_end(tiny_folder, flags, scored):
    train_small(tiny_folder, *flags)
    lines = lines_of("run")
    found = [line for line in lines if "validation" in line]
    assert [(line["step"], line["epoch"]) for line in found] == scored
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    for line in found:  # all examples of sentiment have about the same number of targets
        of_epoch = [losses[step] for step in losses if 6 * line["epoch"] - 6 < step <= line["step"]]
        mean = sum(of_epoch) / len(of_epoch)
        assert line["train_loss"] == pytest.approx(mean, rel=0.02)


def test_the_weights_of_the_best_step_are_kept_and_no_step_changes_by_scoring(
    tiny_folder, monkeypatch, capsys
):
    train_small(tiny_folder, "--epochs", "2", "--dropout", "0.3", out="by-epoch")
    with_scores(monkeypatch, 0.1, 0.4, 0.3, 0.4)
    record = train_small(tiny_folder, "--epochs", "2", "--dropout", "0.3", "--eval-every", "3")
    assert (record["kept_step"], record["kept_epoch"]) == (6, 1)  # not the equal one after it
    assert "the weights are those after step 6 (epoch 1)" in capsys.readouterr().out
    steps = [[line for line in lines_of(run) if "loss" in line] for run in ("run", "by-epoch")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    "scores, last_epoch, kept",
    [
        ((0.5, 0.4, 0.5), 3, 1),  # an equal score is not a better one
        ((0.1, 0.2, 0.1, 0.3, 0.2, 0.1), 6, 4),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 7, 7),
        ((0.1, float("nan"), float("nan")), 3, 1),
    ],
)
def test_patience_ends_the_training_after_two_scorings_without_a_better_one(
    tiny_folder, monkeypatch, capsys, scores, last_epoch, kept
):
    with_scores(monkeypatch, *scores)
    record = train_small(tiny_folder, "--epochs", "7", "--patience", "2")
    assert record["steps"] == 6 * last_epoch and record["kept_epoch"] == kept
    assert record["ended_by_patience"] == (last_epoch < 7)
    said = (
        f"no better score in 2 scorings since epoch {kept}: the training ends after step "
        f"{6 * last_epoch} of 42 (--patience 2)"
    )
    assert (said in capsys.readouterr().out) == (last_epoch < 7)


def test_patience_needs_the_best_score():
    with pytest.raises(InputError, match="--patience needs the best score .* --keep is last"):
        settings(patience=2, keep="last")


def test_the_head_alone_is_scored_and_ended_like_the_run(tiny_folder, monkeypatch):
    monkeypatch.setattr("neo_peft.runs.head_alone.LEARNING_RATE", 1.0)
    flags = ["--task", "ner", "--model", str(tiny_folder), "--epochs", "9", *SMALL]
    flags += ["--eval-every", "2", "--patience", "2"]
    train.main([*flags, "--method", "lora", "--head-baseline", "--out", "both"])
    train.main([*flags, "--method", "head", "--learning-rate", "1", "--out", "head"])
    record = json.loads(Path("head/run.json").read_text())
    assert record["ended_by_patience"] and record["kept_step"] < record["steps"] < 54
    alone, head = (
        Path(run, "predictions", f"{kind}-test.jsonl").read_text()
        for run, kind in (("both", "head_alone"), ("head", "after"))
    )
    assert alone == head
