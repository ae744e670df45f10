"""With --no-before the untuned base is not scored, and all outputs say that."""

import json
from pathlib import Path

import pytest

import train
from neo_peft.commands import compare, report, study
from neo_peft.errors import InputError
from neo_peft.runs import before
from neo_peft.runs.job import untuned_base
from neo_peft.runs.verdict import BEFORE_MISSING
from neo_peft.studies.sweep import read_sweep

SMALL = ["--threads", "1", "--train-limit", "20", "--eval-limit", "10", "--epochs", "1"]


@pytest.fixture
def small(tiny_folder, monkeypatch):
    """Return the flags of a small run without scores before tuning."""
    monkeypatch.setattr(before, "untuned_base", lambda *_: pytest.fail("the base was scored"))
    return ["--model", str(tiny_folder), *SMALL, "--no-before"]


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_a_run_without_before_has_null_and_says_that_it_is_not_known(small, capsys, task):
    given = ["--task", task, "--method", "lora", *small]
    given += ["--generate"] * (task == "sentiment")
    train.main([*given, "--json", "--out", "run"])
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["before"] is None and summary["after"]["test"]
    record = json.loads(Path("run/run.json").read_text())
    assert record["scores"].keys() == {"majority", "baseline", "after"}
    assert record["flags"]["no_before"] and record["verdict"]["before_missing"]
    assert record["verdict"]["compared_with"] in ("majority", "baseline")
    header = next(line for line in err.splitlines() if "majority" in line and "after" in line)
    assert header.split() == ["majority", "baseline", "after"] + ["after,", "generate"] * (
        task == "sentiment"
    )
    assert f"{BEFORE_MISSING}\n" in err and "Before tuning" not in err
    assert not list(Path("run/predictions").glob("before*"))
    report.main(["run"])
    page = Path("run/report.html").read_text()
    assert BEFORE_MISSING in page and "<th>before" not in page
    capsys.readouterr()
    train.main(["--resume", "run", "--json"])  # prints the results again
    assert json.loads(capsys.readouterr().out)["before"] is None


def test_the_rest_of_a_run_does_not_depend_on_the_scores_before(small, monkeypatch):
    given = ["--task", "ner", "--method", "lora", "--dropout", "0.2", *small]
    train.main([*given, "--out", "without"])
    monkeypatch.setattr(before, "untuned_base", untuned_base)
    train.main([*given[:-1], "--out", "with"])
    for name in ("adapter_model.safetensors", "metrics.jsonl", "predictions/after-test.jsonl"):
        assert Path("without", name).read_bytes() == Path("with", name).read_bytes()
    with_before, without = (
        json.loads(Path(run, "run.json").read_text())["scores"] for run in ("with", "without")
    )
    del with_before["before"]
    assert with_before == without


def test_a_study_without_before_says_that_it_is_not_known(small, capsys):
    argv = ["--task", "ner", "--seeds", "2", *small, "--out", "study"]
    study.main(argv)
    table = Path("study/table.md").read_text()
    assert BEFORE_MISSING in table and "| before" not in table and "| majority" in table
    capsys.readouterr()
    compare.main(["study/epochs-1-seed-0", "study/epochs-1-seed-1"])
    assert capsys.readouterr().out.startswith("ner, 10 sentences of test; a is")
    with pytest.raises(InputError, match="'no_before' cannot be swept"):
        read_sweep("no_before=off,on")
