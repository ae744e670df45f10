"""The warnings of a run whose scores are worthless: printed at its end, and written to run.json."""

import json
import re
from pathlib import Path

import pytest

import train
from neo_peft.corpora.sources import load_splits
from neo_peft.runs import record
from neo_peft.runs.curves import read_metrics
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

SMALL = [
    "--threads",
    "1",
    "--train-limit",
    "24",
    "--eval-limit",
    "20",
    "--epochs",
    "2",
    "--out",
    "run",
]


def warned(capsys, tiny_folder, *flags) -> list[str]:
    """Do a small run. Return its warnings, which are the same in the output and in run.json."""
    train.main([*SMALL, "--model", str(tiny_folder), *map(str, flags)])
    printed = re.findall(r"^warning: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert printed == json.loads(Path("run/run.json").read_text())["warnings"]
    return printed


def test_a_good_run_has_no_warnings(capsys, tiny_folder):
    assert (
        warned(capsys, tiny_folder, "--task", "ner", "--method", "lora", "--learning-rate", 1e-3)
        == []
    )


def test_a_run_warns_of_a_lora_b_that_is_still_zero(capsys, tiny_folder):
    """The only step is the first of the warm-up. Its learning rate is zero."""
    lines = warned(
        capsys,
        tiny_folder,
        "--task",
        "ner",
        "--method",
        "lora",
        "--max-steps",
        1,
        "--warmup-ratio",
        0.5,
    )
    name = "transformer.h.0.attn.attention.v_proj.lora_B.weight"
    assert (
        f"LoRA's B is still zero in 8 layers; the first is {name}. These layers learned nothing"
        in lines
    )


def test_a_run_warns_of_a_rising_training_loss(capsys, tiny_folder):
    lines = warned(
        capsys,
        tiny_folder,
        "--task",
        "sentiment",
        "--method",
        "head",
        "--learning-rate",
        50,
        "--clip-norm",
        0,
    )
    assert any(
        re.fullmatch(r"the training loss rose from .* to .*: try a smaller --learning-rate", line)
        for line in lines
    )


def test_a_run_notes_at_once_that_the_training_loss_has_risen(capsys, tiny_folder):
    flags = ["--task", "sentiment", "--method", "head", "--clip-norm", "0", "--epochs", "4"]
    flags += ["--train-limit", "40", "--eval-limit", "10", "--threads", "1", "--batch-size", "8"]
    train.main([*flags, "--learning-rate", "50", "--model", str(tiny_folder), "--out", "run"])
    lines = capsys.readouterr().out.splitlines()
    epochs = [index for index, line in enumerate(lines) if line.startswith("epoch ")]
    losses = [read_metrics(Path("run/metrics.jsonl"))[0]["loss"]]
    for index in epochs:
        losses.append(float(re.search("train loss ([0-9.]+)", lines[index])[1]))
        rose, had_risen = (
            values[-1] > max(1.1 * min(values), min(values) + 0.001)
            for values in (losses, losses[:-1])
        )
        assert lines[index + 1].startswith("note    the training loss rose") == (
            rose and not had_risen
        )
    assert len(epochs) == 4 and rose


def test_a_run_warns_of_a_validation_split_with_one_label(capsys, tiny_folder):
    rows = load_splits(TASKS["sentiment"], "sample").train
    Path("data").mkdir()
    for name, part in (
        ("train", rows),
        ("validation", [row for row in rows if row["label"] == "neutral"]),
    ):
        lines = [
            json.dumps({"sentence": row["sentence"], "label": row["label"]}) for row in part[:40]
        ]
        Path(f"data/{name}.jsonl").write_text("\n".join(lines))
    flags = ["--task", "sentiment", "--method", "head", "--data", "data", "--learning-rate", 0.5]
    lines = warned(capsys, tiny_folder, *flags)
    assert "validation has only one label, neutral: its scores mean nothing" in lines


def test_a_run_warns_of_a_validation_split_without_entities(capsys, tiny_folder):
    Path("data").mkdir()
    tagged = [
        {"tokens": ["aspirin", "helps"], "tags": ["B-drug", "O"]},
        {"tokens": ["it", "helps"], "tags": ["O", "O"]},
    ]
    for name, rows in (("train", tagged), ("validation", tagged[1:])):
        Path(f"data/{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = warned(capsys, tiny_folder, "--task", "tagging", "--method", "head", "--data", "data")
    assert "validation has only one label, O: its scores mean nothing" in lines


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        (
            [[3, 0, 0, 0], [5, 0, 0, 0], [1, 0, 0, 0]],
            ["the prediction is the same for every row of validation: negative"],
        ),
        (
            [[0, 0, 0, 3], [0, 0, 0, 5], [0, 0, 0, 1]],
            ["the prediction is the same for every row of validation: no label"],
        ),
        ([[3, 0, 0, 0], [4, 0, 1, 0], [1, 0, 0, 0]], []),
    ],
)
def test_a_run_warns_of_a_prediction_that_is_always_the_same(tmp_path, confusion, expected):
    """`confusion` has a row for each gold label and a column for each predicted label. The last
    column counts rows without a predicted label."""
    step = {"step": 1, "epoch": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": 1.0}
    epoch = {
        "step": 1,
        "epoch": 1,
        "train_loss": 1.5,
        "validation_loss": 1.5,
        "validation": {"accuracy": 0.5},
    }
    Path("metrics.jsonl").write_text(f"{json.dumps(step)}\n{json.dumps(epoch)}\n")

    class Job:
        task, rows = (
            TASKS["sentiment"],
            {"validation": [{"label": "negative"}, {"label": "neutral"}]},
        )

        settings = make_settings(task="sentiment", method="head")

        class tuned:
            model = None  # the method head has no warnings of its own

        class output:
            folder = Path()

    class State:
        skipped, step = 0, 2

    found = record.warnings(Job, {"after": {"validation": {"confusion": confusion}}}, State)
    assert len(found) == len(expected) and all(
        line.startswith(beginning) for line, beginning in zip(found, expected)
    )
    State.skipped = 1
    found = record.warnings(Job, {"after": {"validation": {"confusion": confusion}}}, State)
    assert found[-1] == "fp16 skipped 1 of 2 steps: their gradients were not finite"
