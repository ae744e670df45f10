"""A study with the original study's recipe shows that study's figures beside its own."""

import json
from pathlib import Path

import pytest

from neo_peft.commands import study
from neo_peft.studies.original import ORIGINAL, original_lines, table_of


def test_the_table_has_the_numbers_of_epochs_that_both_have():
    ours = {0: {"generated": {"mean": 0.0}}, 1: {"generated": {"mean": 0.25}}, 3: {}, 10: {}}
    header, rows = table_of(ORIGINAL["similarity"], ours)
    assert header == ["epochs", "accuracy, generated: the study", "here"]
    assert rows == [
        ["before tuning", "0.000", "0.000"], ["1", "0.662", "0.250"], ["10", "0.726", "–"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "results, protocol, preset",
    [
        ({"task": "sentiment", "swept": "epochs"}, "clean", "paper"),  # its test is another one
        ({"task": "sentiment", "swept": "rank"}, "paper", "paper"),
        ({"task": "sentiment", "swept": "epochs"}, "paper", None),
        ({"task": "glue/rte", "swept": "epochs"}, "single", "paper"),
    ],
)
def test_only_the_recipe_on_the_same_splits_is_compared(results, protocol, preset):
    line = {"kind": "after", "value": 1, "scores": {"generated": {"mean": 0.5}}}
    block = {"preset": preset, "kept_epochs": None, "lines": {"test": [line]}}
    assert original_lines(results, protocol, block) == ([], [])
    block["preset"] = "paper"
    found = original_lines({"task": "sentiment", "swept": "epochs"}, "paper", block)
    assert found[1] == [["1", "0.647", "0.500"]]


@pytest.mark.parametrize("task, epochs", [("ner", ["2"]), ("similarity", ["1", "5"])])
def test_the_page_of_a_study_has_the_figures_of_both(tiny_folder, capsys, task, epochs):
    flags = ["--task", task, "--preset", "paper", "--model", str(tiny_folder), "--threads", "1"]
    flags += ["--data", "sample", "--train-limit", "8", "--eval-limit", "6", "--seeds", "1"]
    flags += ["--max-length", "100"] if task == "similarity" else []
    study.main([*flags, "--epochs", *epochs, "--out", "study"])
    text = Path("study/table.md").read_text()
    _, _, part = text.partition("## GPT-Neo 1.3B, as the original study prints it")
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    if task == "similarity":
        assert [row[0] for row in cells] == ["before tuning", "1", "5"]
        assert [row[1] for row in cells] == ["0.000", "0.662", "0.713"]
        return
    (run,) = Path("study").glob("*/metrics.jsonl")
    scored = [
        line for line in map(json.loads, run.read_text().splitlines()) if "validation" in line
    ]
    assert [row[0] for row in cells] == ["1", "2"] and cells[0][1] == "0.538"
    for row, line in zip(cells, scored, strict=True):
        ours = [*(line["validation"][name] for name in ("f1", "precision", "recall"))]
        ours += [line["validation_accuracy"], line["validation_loss"]]
        assert row[2::2] == [f"{value:.3f}" for value in ours]
