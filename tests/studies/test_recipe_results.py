"""A comparison's table, from made-up runs: differences from the head alone, costs, choices."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from studies import AFTER, make_up

from neo_peft.runs.folder import RUN, write_record
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.studies.measure import measured_file
from neo_peft.studies.plan import make_plan
from neo_peft.studies.recipe_table import choice_table, points, recipe_table
from neo_peft.studies.study_page import page, write_page
from neo_peft.studies.study_results import collect
from neo_peft.system.files import read_checked_json, sha256, write_checked_json

RECIPES = {"LoRA": {"method": "lora"}, "a head": {"method": "head"}}


def change_record(run: Path, **fields) -> None:
    record = read_checked_json(run / RUN)
    record.pop("sha256", None)
    write_record(run, record | fields)


def add_costs(run: Path, seconds: float, forgotten: float) -> None:
    """Give a made-up run the records of its costs."""
    lines = [{"step": 1, "cpu_seconds": seconds / 2}, {"step": 2, "cpu_seconds": seconds}]
    (run / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "adapter_model.safetensors").write_bytes(bytes(2_000))
    files = read_checked_json(run / RUN)["files"]
    files |= {name: sha256(run / name) for name in ("timings.jsonl", "adapter_model.safetensors")}
    costs = {"trainable": 500, "total": 1_700, "base": {"parameters": 1_000}}
    change_record(run, files=files, memory={"peak_bytes": 3e6 * seconds}, **costs)
    measures = {
        "forgetting": {"before": 1.5, "after": 1.5 + forgotten},
        "inference": {"time": 1 + forgotten},
    }
    write_checked_json(measured_file(run), measures)


def test_the_table_has_the_differences_from_the_head_recipe_and_the_mean_costs(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[5], recipes=RECIPES)
    right = make_up(tmp_path, plan)
    for seed in (0, 1):
        add_costs(tmp_path / f"LoRA-seed-{seed}", 10.0 + 4 * seed, 0.25)
        add_costs(tmp_path / f"a-head-seed-{seed}", 2.0, 0.0)
    results = collect(tmp_path, plan, {})
    block = results["protocols"]["single"]
    lora, head = block["recipes"]
    assert (lora["name"], lora["compared_with"], head["difference"]) == ("LoRA", "a head", None)
    # the interval is that of the mean of the rows' differences
    differences = right["LoRA", AFTER, "test"].mean(0) - right["a head", AFTER, "test"].mean(0)
    found, reach = lora["difference"], 1.96 * np.std(differences) / np.sqrt(len(differences))
    assert found["difference"] == pytest.approx(differences.mean())
    assert (found["low"], found["high"]) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.015
    )
    assert {name: lora[name] for name in lora if name not in ("difference", "compared_with")} == {
        "name": "LoRA",
        "trainable": 500,
        "added_parameters": 700,
        "added_positions": 0,
        "stored_bytes": 2_000,
        "cpu_seconds": 12.0,
        "peak_bytes": 36e6,
        "forgetting": {"before": 1.5, "after": 1.75},
        "inference": {"time": 1.25},
    }
    header, rows = recipe_table(results, block, "accuracy")
    cells = dict(zip(header, rows[0]))
    assert rows[1][3:5] == ["–", ""] and cells["minus a head"] == f"{differences.mean():+.3f}"
    names = ("trained numbers", "stored, kB", "CPU seconds", "peak MB", "forgotten")
    assert [cells[name] for name in names] == ["500", "2", "12.0", "36", "+0.250"]
    assert [cells[name] for name in ("time to predict", "added positions")] == ["1.25 ×", "0"]
    shown = points(results, block, "cpu_seconds")
    test_score = right["LoRA", AFTER, "test"].mean()
    assert [(point.name, point.cost) for point in shown] == [("LoRA", 12.0), ("a head", 2.0)]
    assert shown[0].score == pytest.approx(test_score) and shown[0].low < test_score
    text = write_page(tmp_path, results)
    assert "| LoRA" in text and "only this value is shown on test" not in text
    pictures = ("pareto-trained-numbers.svg", "pareto-cpu-seconds.svg")
    for name in pictures:
        assert f"]({name})" in text
        svg = (tmp_path / name).read_text()
        assert "prefers-color-scheme: dark" in svg and "--first: #1d5fa6" in svg
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 2 and "Scores against costs" in html


def test_without_a_head_recipe_each_run_is_compared_with_its_own_head_alone(tmp_path):
    plan = make_plan({"task": "sentiment"}, 1, [5], recipes={"LoRA": {"method": "lora"}})
    right = make_up(tmp_path, plan)
    [line] = collect(tmp_path, plan, {})["protocols"]["single"]["recipes"]
    assert line["difference"] is None  # no run has scored a head alone
    run = tmp_path / "LoRA-seed-0"
    record, alone = read_checked_json(run / RUN), PredictionKind("head_alone")
    for split in ("validation", "test"):
        rows = read_predictions(run, PredictionKind("majority"), split)
        (run / alone.path(split)).write_bytes(
            (run / PredictionKind("majority").path(split)).read_bytes()
        )
        record["files"][str(alone.path(split))] = sha256(run / alone.path(split))
    record["scores"]["head_alone"] = record["scores"]["majority"]
    change_record(run, scores=record["scores"], files=record["files"])
    [line] = collect(tmp_path, plan, {})["protocols"]["single"]["recipes"]
    majority = np.mean([row["predicted"] == row["label"] for row in rows])
    difference = right["LoRA", AFTER, "test"].mean() - majority
    assert line["difference"]["difference"] == pytest.approx(difference)
    assert line["compared_with"] == "a linear head alone"


def test_runs_of_an_older_version_have_dashes_for_their_costs(tmp_path):
    plan = make_plan({"task": "sentiment"}, 1, [5], recipes=RECIPES)
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    header, rows = recipe_table(results, results["protocols"]["single"], "accuracy")
    cells = dict(zip(header, rows[0]))
    names = ("trained numbers", "CPU seconds", "peak MB", "forgotten", "time to predict")
    assert {cells[name] for name in names} == {"–"}
    assert "pareto" not in page(results)


def test_only_the_chosen_value_of_a_recipe_is_in_the_table(tmp_path):
    sweep = ("learning_rate", ["0.3x", "1x"])
    plan = make_plan({"task": "sentiment"}, 2, [5], sweep, recipes=RECIPES)
    make_up(tmp_path, plan)
    first = [run for run in plan["runs"] if run["seed"] == 0]
    accuracy = {
        run["name"]: read_checked_json(tmp_path / run["name"] / RUN)["scores"]["after"][
            "validation"
        ]["accuracy"]
        for run in first
    }
    results = collect(tmp_path, plan, {})
    compared = []
    for recipe in RECIPES:
        tried = [run for run in first if run["value"] == recipe]
        best = max(tried, key=lambda run: accuracy[run["name"]])
        assert results["choices"][recipe]["chosen"] == best["choice"]
        compared += [best["name"], best["name"].replace("seed-0", "seed-1")]
    assert sorted(results["runs"]) == sorted(compared)
    others = {run["name"] for run in first} - {*compared}
    assert {*results["not_compared"]} == others and results["seconds"] == 60.2
    header, rows = choice_table(results)
    assert header == ["learning rate", "0.3x", "1x"] and [row[0] for row in rows] == [*RECIPES]
    for row, recipe in zip(rows, RECIPES):
        tried = [run for run in first if run["value"] == recipe]
        chosen = results["choices"][recipe]["chosen"]
        assert row[1:] == [
            f"{accuracy[run['name']]:.3f} ({run['choice']:g})" + " *" * (run["choice"] == chosen)
            for run in tried
        ]
    assert "6 runs in 60 seconds" in page(results)


def test_a_recipe_with_other_scores_before_tuning_has_a_line_of_its_own(tmp_path):
    recipes = {name: {"method": "lora"} for name in ("a", "b", "c")}
    recipes["b"] = {"method": "lora", "batch_size": 4}  # with it, predictions before are others
    plan = make_plan({"task": "sentiment"}, 1, [5], recipes=recipes)
    make_up(tmp_path, plan)
    lines = collect(tmp_path, plan, {})["protocols"]["single"]["lines"]["test"]
    names = [line["name"] for line in lines if line["kind"] == "before"]
    assert names == ["before", "before, b"]
    assert [line["name"] for line in lines if line["kind"] == "after"] == ["a", "b", "c"]
