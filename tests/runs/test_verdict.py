"""The verdict compares the tuned model with the best of the others, and claims no more."""

import json
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from trained import make_job

import train
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.errors import InputError
from neo_peft.runs.baselines import predict_baseline
from neo_peft.runs.before import score_before
from neo_peft.runs.job import ScoredModel, score_model
from neo_peft.runs.verdict import judge, verdict_line
from neo_peft.tasks import TASKS

VERDICT = {
    "split": "test",
    "metric": "f1",
    "rows": 200,
    "compared_with": "head_alone",
    "score": 0.532,
    "other_score": 0.49,
    "low": 0.01,
    "high": 0.07,
    "p": 0.01,
    "differing": 90,
    "only_label": None,
    "head_missing": False,
}


INTERVAL = "95 % interval of a paired bootstrap"


def line(task: str = "ner", method: str = "lora", keep: str = "best", **changes) -> str:
    """Return the verdict of a run in which these fields are other ones."""
    return verdict_line(
        TASKS[task], {"flags": {"method": method, "keep": keep}, "verdict": VERDICT | changes}
    )


def test_it_says_that_validation_has_chosen_the_epoch():
    ending = " Validation has also chosen the epoch."
    assert line(split="validation").endswith(f"on validation, {INTERVAL}.{ending}")
    assert line(split="validation", keep="last").endswith(f"on validation, {INTERVAL}.")


def test_it_names_what_the_method_adds_to_what():
    assert line() == (
        "LoRA adds 0.042 (0.010 to 0.070) to a linear head alone (0.490): typed f1 on test, 95 % "
        "interval of a paired bootstrap."
    )
    assert line("sentiment", "lora+prompt", compared_with="baseline", metric="accuracy") == (
        "LoRA with prompt tuning adds 0.042 (0.010 to 0.070) to word counts (0.490): accuracy on "
        "test, 95 % interval of a paired bootstrap."
    )


def test_it_says_that_nothing_certain_is_added():
    for low, shown in ((-0.02, "-0.020"), (0.0, "+0.000")):
        assert line(low=low, compared_with="majority") == (
            "LoRA adds nothing certain to the majority class (0.490): typed f1 on test differs by "
            f"+0.042 ({shown} to +0.070), 95 % interval of a paired bootstrap."
        )


def test_it_says_that_the_tuned_model_is_worse():
    worse = line(score=0.4, low=-0.14, high=-0.04, compared_with="before", split="validation")
    assert worse == (
        "LoRA is 0.090 (0.040 to 0.140) worse than the untuned model (0.490): typed f1 on "
        "validation, 95 % interval of a paired bootstrap. Validation has also chosen the epoch."
    )


@pytest.mark.parametrize("rows, differing", [(1, 1), (200, 9), (200, 0)])
def test_few_differing_predictions_allow_no_conclusion(rows, differing):
    assert line(rows=rows, differing=differing, low=0.3, high=0.3) == (
        f"Whether LoRA adds anything to a linear head alone (0.490) cannot be told: {differing} of "
        f"the {rows} rows of test are predicted differently."
    )


def test_rows_of_one_label_allow_no_conclusion():
    expected = "Nothing can be concluded: all rows of test have the same label, neutral."
    assert line("sentiment", only_label="neutral", differing=0) == expected


def test_it_says_that_the_head_alone_was_not_scored():
    ending = " A linear head alone was not scored; --head-baseline scores it."
    for changes in ({}, {"differing": 3}):
        assert line(head_missing=True, **changes) == line(**changes) + ending


def test_with_an_adapter_the_head_alone_would_have_fewer_epochs():
    record = {"flags": {"method": "lora", "keep": "best", "adapter": "run"}, "verdict": VERDICT}
    record["verdict"] = VERDICT | {"head_missing": True}
    ending = " A linear head alone was not scored: with --adapter it would have fewer epochs."
    assert verdict_line(TASKS["ner"], record) == line() + ending


def test_a_run_of_an_older_version_has_no_verdict():
    assert verdict_line(TASKS["ner"], {"flags": {"method": "lora"}}) == ""


# ---- From the predictions of a run


def right(when: str, split: str) -> np.ndarray:
    """Return which predictions of a run are right."""
    lines = Path("run", "predictions", f"{when}-{split}.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in lines]
    return np.array([row["predicted"] == row["label"] for row in rows])


def test_it_compares_with_the_best_of_the_others_on_test(tiny_folder, capsys):
    given = ["--task", "sentiment", "--method", "lora", "--model", str(tiny_folder), "--threads"]
    train.main([*given, "1", "--max-steps", "3", "--train-limit", "60", "--out", "run"])
    record = json.loads(Path("run/run.json").read_text())
    verdict, names = record["verdict"], ("majority", "baseline", "before")
    accuracy = {name: right(name, "test").mean() for name in names}
    best = max(names, key=accuracy.get)
    differences = right("after", "test").astype(int) - right(best, "test")
    assert verdict["compared_with"] == best and verdict["split"] == "test"
    assert verdict["score"] == pytest.approx(right("after", "test").mean())
    assert verdict["other_score"] == pytest.approx(accuracy[best])
    reach = 1.96 * differences.std() / np.sqrt(len(differences))
    interval = differences.mean() - reach, differences.mean() + reach
    assert (verdict["low"], verdict["high"]) == pytest.approx(interval, abs=0.015)
    assert verdict["rows"] == len(differences) and not verdict["head_missing"]
    assert verdict_line(TASKS["sentiment"], record) in capsys.readouterr().out.splitlines()


def test_the_baselines_get_only_the_training_rows_of_the_run(tiny_folder):
    given = ["--task", "sentiment", "--method", "head", "--model", str(tiny_folder), "--threads"]
    train.main([*given, "1", "--max-steps", "1", "--train-limit", "30", "--out", "run"])
    task, splits = TASKS["sentiment"], load_splits(TASKS["sentiment"], "sample")
    rows = limit_rows(splits.train, 30)
    lines = Path("run/predictions/baseline-test.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    expected = predict_baseline(task, rows, splits.validation, splits.test)
    assert [row["predicted"] for row in found] == expected
    assert expected != predict_baseline(task, splits.train, splits.validation, splits.test)


def test_predictions_that_were_changed_during_the_run_are_refused(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="sentiment")
    scores = score_before(job)
    score_model(job, ScoredModel(job.tuned.model, job.tuned.encoder), "after", scores)
    judge(job, scores)
    for path in (tmp_path / "predictions").glob("*-test.jsonl"):
        path.write_text(
            path.read_text().replace('"predicted": "', '"predicted": "neutral", "x": "')
        )
    with pytest.raises(InputError, match="-test.jsonl was changed since the run wrote it"):
        judge(job, scores)


def test_a_head_baseline_of_the_head_itself_is_refused(capfd):
    refused(
        capfd,
        "train --task ner --method head --head-baseline",
        "--head-baseline needs a method that trains a new linear head and other weights",
    )


def test_a_head_baseline_without_a_head_is_refused(capfd):
    refused(
        capfd,
        "train --task sentiment --method lora --head-baseline",
        "--head-baseline needs a method that trains a new linear head and other weights",
    )
