"""A run's prediction files: its scores can be computed from them, and broken files are refused."""

import json
from pathlib import Path

import pytest

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import score
from neo_peft.errors import InputError
from neo_peft.runs import training
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.settings import make_settings
from neo_peft.system import files
from neo_peft.tasks import TASKS

SMALL = {"threads": 1, "train_limit": 12, "eval_limit": 10, "epochs": 1, "out": "run"}


def make_run(tiny_folder, **settings) -> dict:
    settings = make_settings(model=str(tiny_folder), **SMALL, **settings)
    training.run(settings, lambda line: None)
    return json.loads(Path("run/run.json").read_text())


@pytest.mark.parametrize(
    ("given", "generates"),
    [
        ({"task": "ner", "method": "lora"}, False),
        ({"task": "sentiment", "method": "prompt", "generate": True}, True),
        ({"task": "similarity", "method": "head"}, False),
    ],
)
def test_scores_are_those_of_the_written_predictions(tiny_folder, given, generates):
    record, task = make_run(tiny_folder, **given), TASKS[given["task"]]
    assert list(record["scores"]) == ["majority", "baseline", "before", "after"]
    assert list(record["generated"]) == (["before", "after"] if generates else [])
    kinds = [("scores", when) for when in record["scores"]]
    kinds += [("generated", when) for when in record["generated"]]
    for split in ("validation", "test"):
        rows = limit_rows(load_splits(task, "sample").named()[split], SMALL["eval_limit"])
        for field, when in kinds:
            kind = PredictionKind(when, generated=field == "generated")
            rows_read = read_predictions(Path("run"), kind, split)
            assert [{name: row[name] for name in task.fields} for row in rows_read] == rows
            predicted = [row["predicted"] for row in rows_read]
            assert (
                json.loads(json.dumps(score(task, rows, predicted))) == record[field][when][split]
            )
            assert ("generated" in rows_read[0]) == kind.generated
    assert record["memory"]["peak_bytes"] > 1e8  # torch alone


def test_a_preset_generates_only_without_a_head():
    assert make_settings(task="sentiment", preset="paper").generate
    assert not make_settings(task="sentiment", preset="paper", method="head").generate


@pytest.mark.parametrize(
    "given",
    [
        {"task": "ner", "method": "lora"},
        {"task": "sentiment", "method": "head"},
        {"task": "sentiment", "method": "lora", "readout": "head"},
    ],
)
def test_generating_is_refused_with_a_head(given):
    with pytest.raises(
        InputError, match="^--generate needs the language model to predict the label; here a linear"
    ):
        make_settings(generate=True, **given)


def test_predictions_that_are_missing_or_changed_are_refused(tiny_folder):
    make_run(tiny_folder, task="sentiment", method="head")
    run, path = Path("run"), Path("run") / PredictionKind("after").path("test")
    with pytest.raises(
        InputError,
        match="^run/predictions/after-train.jsonl is missing; the run has the predictions "
        "predictions/after-test",
    ):
        read_predictions(run, PredictionKind("after"), "train")
    content = path.read_text()
    path.write_text(content + "\n")
    with pytest.raises(
        InputError, match="^run/predictions/after-test.jsonl was changed since the run: its sha256"
    ):
        read_predictions(run, PredictionKind("after"), "test")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        read_predictions(run, PredictionKind("after"), "test")


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_a_line_without_a_valid_row_and_prediction_is_refused(tiny_folder, task):
    record = make_run(tiny_folder, task=task, method="lora" if task == "ner" else "head")
    path = Path("run") / PredictionKind("after").path("test")
    first, *others = path.read_text().splitlines()
    row = json.loads(first)
    wrong = [
        "[]",
        "1",
        json.dumps(row | {"predicted": "wrong"}),
        json.dumps(row | {"predicted": 1}),
    ]
    wrong += [json.dumps({name: value for name, value in row.items() if name != "predicted"})]
    wrong += [
        json.dumps(row | {TASKS[task].fields[0]: 3}),
        json.dumps(row | {TASKS[task].fields[-1]: None}),
    ]
    if task == "ner":
        wrong += [
            json.dumps(row | {"predicted": row["predicted"][1:]}),
            json.dumps(row | {"tags": row["tags"] + ["O"]}),
        ]

    def read(line):
        path.write_text("\n".join([*others, line]) + "\n")
        record["files"]["predictions/after-test.jsonl"] = files.sha256(path)
        files.write_checked_json(
            Path("run/run.json"), {name: record[name] for name in record if name != "sha256"}
        )
        return read_predictions(Path("run"), PredictionKind("after"), "test")

    for line in wrong:
        with pytest.raises(
            InputError, match=rf"^{path}, line 10: no row of {task} with its prediction$"
        ):
            read(line)
    with pytest.raises(InputError, match=rf"^{path}, line 10: Expecting value"):
        read("{oops: 1}".replace("{oops", "oops"))
    assert len(read(first)) == 10
