"""A study: its plans worked by hand; its results, from runs whose answers are made up, against numpy; and the real
command to its end, stopped, killed and resumed."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import METHODS, TASKS, cases, refused
from test_resume import end, start

from neo_peft import study, study_results, training
from neo_peft.commands import study as command
from neo_peft.decoding import majority_scores
from neo_peft.errors import InputError, Stopped, exit_status
from neo_peft.files import sha256, write_sealed
from neo_peft.floors import floor
from neo_peft.metrics import class_scores
from neo_peft.plan import make_plan, read_plan, read_sweep
from neo_peft.predictions import write_predictions
from neo_peft.runs import write_record
from neo_peft.settings import make_settings
from neo_peft.sources import limit_rows, load_splits
from neo_peft.study_page import page, write_page
from neo_peft.study_results import collect, rows_of
from neo_peft.tasks import get_task

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--train-limit", "20", "--eval-limit", "10", "--threads", "1"]


@pytest.fixture
def small(tiny_folder):
    return ["--model", str(tiny_folder), *SMALL]


def flags_of(plan: dict, *names: str) -> list[tuple]:
    return [tuple(run["flags"][name] for name in names) for run in plan["runs"]]


# ---------------------------------------------------------------------------------------------------------- the plan


def test_an_answer_task_has_a_run_for_each_number_of_epochs_and_each_seed():
    plan = make_plan({"task": "sentiment"})
    assert [run["name"] for run in plan["runs"]] == [
        "epochs-1-seed-0", "epochs-1-seed-1", "epochs-1-seed-2", "epochs-5-seed-0", "epochs-5-seed-1",
        "epochs-5-seed-2", "epochs-10-seed-0", "epochs-10-seed-1", "epochs-10-seed-2",
    ]  # fmt: skip
    assert flags_of(plan, "epochs", "seed") == [(n, seed) for n in (1, 5, 10) for seed in (0, 1, 2)]
    assert set(flags_of(plan, "method", "keep", "generate", "model")) == {("prompt", "last", True, "neo-mini")}
    assert (plan["swept"], plan["values"], plan["seeds"], plan["method"]) == ("epochs", [1, 5, 10], 3, "prompt")


def test_the_other_tasks_plans():
    assert make_plan({"task": "similarity"}, seeds=1)["values"] == [1, 5, 10, 20]
    plan = make_plan({"task": "ner", "rank": "4"})
    assert flags_of(plan, "epochs", "seed", "keep", "generate", "method", "rank") == [
        (10, seed, "best", False, "lora", 4) for seed in (0, 1, 2)
    ]
    plan = make_plan({"task": "sentiment", "method": "head", "keep": "best"}, seeds=2, epochs=[3])
    assert flags_of(plan, "epochs", "seed", "keep", "generate") == [(3, 0, "best", False), (3, 1, "best", False)]


def test_the_papers_recipe_gets_the_studys_epochs():
    plan = make_plan({"task": "sentiment", "preset": "paper", "data": "sample"}, seeds=1)
    names = ("method", "model", "epochs", "prompt_length", "learning_rate", "clip_norm", "keep", "max_length")
    recipe = ("prompt", "EleutherAI/gpt-neo-1.3B"), (8, 3e-2, 0.0, "last", 64)
    assert flags_of(plan, *names) == [(*recipe[0], epochs, *recipe[1]) for epochs in (1, 5, 10)]
    # A preset says itself which epoch is kept; that of the best names none, and train.py keeps the best.
    plan = make_plan({"task": "sentiment", "preset": "best"}, seeds=1, epochs=[5])
    assert flags_of(plan, "keep", "learning_rate", "readout") == [("best", 1.5e-3, "head")]


def test_phrasebank_is_studied_by_both_protocols():
    Path("bank").mkdir()
    lines = [f"Profit {word} by {n} .@{label}\r\n" for n in range(20) for word, label in
             (("rose", "positive"), ("fell", "negative"), ("came", "neutral"))]  # fmt: skip
    for name in ("50", "66"):
        Path(f"bank/Sentences_{name}Agree.txt").write_text("".join(lines), encoding="latin-1", newline="")
    plan = make_plan({"task": "sentiment", "data": "bank"}, seeds=1, epochs=[2])
    assert [run["name"] for run in plan["runs"]] == ["clean-epochs-2-seed-0", "paper-epochs-2-seed-0"]
    assert flags_of(plan, "protocol", "data") == [(name, str(Path("bank").resolve())) for name in ("clean", "paper")]
    plan = make_plan({"task": "sentiment", "data": "bank", "protocol": "paper"}, seeds=1, epochs=[2])
    assert [run["name"] for run in plan["runs"]] == ["epochs-2-seed-0"] and flags_of(plan, "protocol") == [("paper",)]


def test_a_sweep_is_over_one_flag_at_the_largest_number_of_epochs(tiny_folder):
    plan = make_plan({"task": "similarity"}, 2, None, ("learning_rate", ["0.01", ".3"]))
    assert flags_of(plan, "learning_rate", "epochs", "seed") == [
        (0.01, 20, 0), (0.01, 20, 1), (0.3, 20, 0), (0.3, 20, 1)
    ]  # fmt: skip
    assert plan["runs"][2]["name"] == "learning-rate-0.3-seed-0" and plan["values"] == [0.01, 0.3]
    plan = make_plan({"task": "ner"}, 1, [4], ("model", ["neo-mini", str(tiny_folder)]))
    assert flags_of(plan, "model", "epochs") == [("neo-mini", 4), (str(tiny_folder), 4)]
    assert [run["name"] for run in plan["runs"]] == ["model-neo-mini-seed-0", "model-model-seed-0"]
    plan = make_plan({"task": "sentiment"}, 1, [1], ("method", ["lora", "head"]))
    assert flags_of(plan, "method", "generate", "learning_rate") == [("lora", True, 5e-3), ("head", False, 1e-2)]


def test_what_can_be_swept_are_numbers_and_choices_that_make_a_run():
    for name in ("rank", "prompt-length", "learning_rate", "max_steps", "method", "precision", "keep"):
        assert read_sweep(f"{name}=a, b") == (name.replace("-", "_"), ["a", "b"])
    for name in ("task", "protocol", "seed", "preset", "data", "labels", "generate", "json", "threads", "nothing"):
        with pytest.raises(InputError, match=f"'{name}' is no flag that can be swept; those are train_limit, "):
            read_sweep(f"{name}=a,b")


def test_a_flag_that_is_there_or_not_is_swept_off_and_on():
    plan = make_plan({"task": "ner"}, 1, [2], read_sweep("echo=off,on"))
    assert flags_of(plan, "echo") == [(False,), (True,)] and plan["values"] == ["off", "on"]
    assert [run["name"] for run in plan["runs"]] == ["echo-off-seed-0", "echo-on-seed-0"]
    for wrong in ("true", "1", "ON"):
        with pytest.raises(InputError, match=f"^--rslora is there or not: '{wrong}' is neither off nor on$"):
            read_sweep(f"rslora=off,{wrong}")
    with pytest.raises(InputError, match="--rank on is not a whole number"):
        make_plan({"task": "ner"}, 1, [2], read_sweep("rank=on,4"))
    assert flags_of(make_plan({"task": "ner"}, 1, [2], ("model", ["on", "off"])), "model") == [("on",), ("off",)]


def test_an_adapter_settles_the_method_of_its_study(tiny_folder):
    Path("d").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["k_proj"]}
    Path("d/adapter_config.json").write_text(json.dumps(config))
    given = {"task": "sentiment", "adapter": "d", "model": str(tiny_folder)}
    plan = make_plan(given, seeds=1, epochs=[2])
    assert flags_of(plan, "method", "rank", "adapter") == [("lora", 4, str(Path("d").resolve()))]
    with pytest.raises(InputError, match="--rank is settled by --adapter d, to 4; leave it out, or --adapter"):
        make_plan(given, 1, [2], ("rank", ["4", "8"]))


# ------------------------------------------------------------------------------------------------------- the results


RIGHT = {"before": 0.2, "after": 0.6, "before, generate": 0.0, "after, generate": 0.5}


def answers_to(run: dict, when: str, split: str, rows: list[dict], labels: tuple) -> list:
    """Make up a run's answers: more of them are right after more epochs, and what is generated may be no label. Those
    before tuning differ by the seed, and by the size of the batches, as they do where another model is swept."""
    changes = run["name"] if when.startswith("after") else (run["seed"], run["flags"]["batch_size"])
    rng = random.Random(f"{changes} {when} {split}")
    right = RIGHT[when] + (0.01 * run["flags"]["epochs"] if when.startswith("after") else 0)
    wrong = [None] if "generate" in when else labels
    return [row["label"] if rng.random() < right else rng.choice(wrong) for row in rows]


def make_up(folder: Path, plan: dict) -> dict[tuple, np.ndarray]:
    """Write the run folders of a plan for sentiment as training leaves them; return which answers are right, by value,
    kind and split: (seeds, rows)."""
    right: dict[tuple, list] = {}
    for run in plan["runs"]:
        settings = make_settings(**run["flags"])
        task, path = get_task(settings.task), folder / run["name"]
        splits, scores = load_splits(task, settings.data), {when: {} for when in ("majority", *RIGHT)}
        path.mkdir(parents=True)
        for split in list(splits.named())[1:]:
            rows = limit_rows(splits.named()[split], settings.eval_limit)
            scores["majority"][split] = majority_scores(task, splits.train, rows)
            for when in RIGHT:
                predicted = answers_to(run, when, split, rows, task.labels)
                write_predictions(path, when, split, rows, predicted, None)
                scores[when][split] = class_scores([row["label"] for row in rows], predicted, task.labels)
                hits = [answer == row["label"] for answer, row in zip(predicted, rows, strict=True)]
                right.setdefault((run["value"], when, split), []).append(hits)
        files = {str(file.relative_to(path)): sha256(file) for file in path.rglob("*.jsonl")}
        write_record(path, {
            "task": task.name, "labels": list(task.labels), "flags": run["flags"], "base": {}, "files": files,
            "protocol": "single", "rows": {name: len(rows) for name, rows in splits.named().items()},
            "scores": scores, "kept_epoch": settings.epochs, "versions": {"python": "3"}, "commit": None,
            "device": "cpu", "seconds": 10.04,
        })  # fmt: skip
    return {key: np.array(hits) for key, hits in right.items() if len({*map(len, hits)}) == 1}


def named_lines(results: dict, split: str) -> dict[str, dict]:
    return {line["name"]: line for line in results["protocols"]["single"]["lines"][split]}


def test_results_are_numpys_over_the_runs_answers(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=3, epochs=[1, 12])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    for split in ("validation", "test"):
        lines = named_lines(results, split)
        assert list(lines)[0] == "majority" and list(lines)[2:] == ["before", "1 epoch", "12 epochs"]
        for name, value, kind in (("before", 1, "before"), ("1 epoch", 1, "after"), ("12 epochs", 12, "after")):
            for measure, when in (("accuracy", kind), ("generated", f"{kind}, generate")):
                hits, found = right[value, when, split], lines[name]["scores"][measure]
                assert found["seeds"] == pytest.approx(hits.mean(1))
                assert found["mean"] == pytest.approx(hits.mean())
                assert found["sd"] == pytest.approx(np.std(hits.mean(1), ddof=1))
                # An example enters the mean by its own mean over the seeds, whose standard error is known.
                reach = 1.96 * np.std(hits.mean(0)) / np.sqrt(hits.shape[1])
                assert found["low"] == pytest.approx(hits.mean() - reach, abs=0.015)
                assert found["high"] == pytest.approx(hits.mean() + reach, abs=0.015)
            unanswered = 1 - right[value, f"{kind}, generate", split].mean()
            assert lines[name]["scores"]["unanswered"]["mean"] == pytest.approx(unanswered)
    best = max((1, 12), key=lambda value: right[value, "after", "validation"].mean())
    assert results["protocols"]["single"]["best"] == best == 12
    assert results["seconds"] == 60.2


def test_one_seed_has_no_deviation(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    score = named_lines(results, "test")["1 epoch"]["scores"]["accuracy"]
    assert score["sd"] is None and score["mean"] == right[1, "after", "test"].mean()
    assert "One seed." in page(results) and "±" not in page(results)


def test_seeds_with_rows_of_their_own_have_no_common_interval(tmp_path):
    """As of a validation split that the seed draws."""
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1])
    plan["runs"][1]["flags"]["eval_limit"] = 40
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    for name in ("1 epoch", "floor, word counts"):
        assert named_lines(results, "validation")[name]["scores"]["accuracy"].keys() == {"mean", "sd", "seeds"}
    # Nor is the floor compared by a bootstrap, and is named where its mean alone is the higher one.
    assert results["protocols"]["single"]["over_floor"] is None and "paired bootstrap" not in page(results)
    floor, tuned = (
        named_lines(results, "test")[name]["scores"]["accuracy"] for name in ("floor, word counts", "1 epoch")
    )
    for floor["mean"], tuned["mean"], said in ((0.7, 0.6, True), (0.6, 0.7, False)):
        assert (
            "The floor, word counts, reaches 0.700 on test, no less than the tuned model's 0.600." in page(results)
        ) == said


def test_seeds_that_learn_from_rows_of_their_own_have_floors_of_their_own(tmp_path):
    """As where the seed draws validation from the training rows: the rows that are asked are the same."""
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1])
    plan["runs"][1]["flags"]["train_limit"] = 30
    right = make_up(tmp_path, plan)[1, "after", "test"]
    block, hits = collect(tmp_path, plan)["protocols"]["single"], []
    task, splits = get_task("sentiment"), load_splits(get_task("sentiment"), "sample")
    for train in (splits.train, limit_rows(splits.train, 30)):
        _, answers = floor(task, train, splits.validation, splits.test)
        hits.append([answer == row["label"] for answer, row in zip(answers, splits.test, strict=True)])
    hits = np.array(hits)
    [line] = [line for line in block["lines"]["test"] if line["kind"] == "floor"]
    assert line["scores"]["accuracy"]["seeds"] == pytest.approx(hits.mean(1)) and np.ptp(hits.mean(1)) > 0.02
    reach = 1.96 * np.std(hits.mean(0)) / np.sqrt(hits.shape[1])
    found = line["scores"]["accuracy"]
    assert (found["low"], found["high"]) == pytest.approx((hits.mean() - reach, hits.mean() + reach), abs=0.015)
    differences = right.mean(0) - hits.mean(0)
    reach = 1.96 * np.std(differences) / np.sqrt(len(differences))
    over = block["over_floor"]
    assert [over["difference"], over["low"], over["high"]] == pytest.approx(
        [differences.mean(), differences.mean() - reach, differences.mean() + reach], abs=0.015
    )


def test_a_sweep_that_changes_the_training_rows_has_a_floor_for_each(tmp_path):
    plan = make_plan({"task": "sentiment"}, 1, [5], ("train_limit", ["20", "200"]))
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    block = results["protocols"]["single"]
    names = {value: f"floor, word counts, train limit {value}" for value in (20, 200)}
    lines = named_lines(results, "test")
    means = {value: lines[name]["scores"]["accuracy"]["mean"] for value, name in names.items()}
    assert means[20] != means[200]
    tuned = lines[f"train limit {block['best']}"]["scores"]["accuracy"]["mean"]
    assert block["over_floor"]["difference"] == pytest.approx(tuned - means[block["best"]])
    assert f"Beside the {names[block['best']]}, the tuned model's accuracy on test" in page(results)


def test_what_is_tuned_is_judged_on_test_also_where_another_split_stands_beside_it(tmp_path, monkeypatch):
    """As GLUE's mnli has a mismatched one."""
    load = load_splits
    for module in (study_results, sys.modules[__name__]):
        beside = lambda *given: dataclasses.replace(load(*given), beside={"other": load(*given).test[:50]})  # noqa: E731
        monkeypatch.setattr(module, "load_splits", beside)
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    block = results["protocols"]["single"]
    assert list(block["lines"]) == ["validation", "test", "other"] and block["judged"] == "test"
    text = page(results)
    assert "the tuned model's accuracy on test differs by" in text and "accuracy on other" not in text


def test_a_study_whose_data_was_changed_meanwhile_says_so(tmp_path, monkeypatch):
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    make_up(tmp_path, plan)
    load = study_results.load_splits
    for changed in (lambda rows: rows[1:], lambda rows: rows[::-1]):
        other = lambda *given, changed=changed: dataclasses.replace(load(*given), test=changed(load(*given).test))  # noqa: E731
        monkeypatch.setattr(study_results, "load_splits", other)
        with pytest.raises(InputError, match="sample was changed since .*/epochs-1-seed-0: test holds other rows; "):
            collect(tmp_path, plan)


def test_of_a_sweep_the_best_on_validation_alone_is_tested(tmp_path):
    plan = make_plan({"task": "sentiment"}, 2, [5], ("batch_size", ["4", "8", "16"]))
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    best = max((4, 8, 16), key=lambda value: right[value, "after", "validation"].mean())
    tuned = {
        split: [name for name, line in named_lines(results, split).items() if line["kind"] == "after"]
        for split in ("validation", "test")
    }
    names = ["batch size 4", "batch size 8", "batch size 16"]
    assert tuned == {"validation": names, "test": [f"batch size {best}"]}
    assert {f"before, {name}" for name in names} < set(named_lines(results, "validation"))
    text = write_page(tmp_path, results)
    assert f"\n| batch size {best} *" in text and text.count("batch size 4 ") + text.count("batch size 8 ") > 2
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_the_floor_stands_beside_the_best_with_its_interval_and_their_paired_difference(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=3, epochs=[1, 12])
    right = make_up(tmp_path, plan)
    block = collect(tmp_path, plan)["protocols"]["single"]
    task, splits = get_task("sentiment"), load_splits(get_task("sentiment"), "sample")
    rows = splits.test
    _, answers = floor(task, splits.train, splits.validation, rows)
    hits = np.array([answer == row["label"] for answer, row in zip(answers, rows, strict=True)])
    [line] = [line for line in block["lines"]["test"] if line["kind"] == "floor"]
    found, reach = line["scores"]["accuracy"], 1.96 * np.std(hits) / np.sqrt(len(hits))
    assert found["mean"] == hits.mean()
    assert (found["low"], found["high"]) == pytest.approx((hits.mean() - reach, hits.mean() + reach), abs=0.015)
    over, differences = block["over_floor"], right[12, "after", "test"].mean(0) - hits
    reach = 1.96 * np.std(differences) / np.sqrt(len(hits))
    assert block["judged"] == "test" and over["difference"] == pytest.approx(differences.mean())
    assert (over["low"], over["high"]) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.015
    )


def test_a_page_says_where_tuning_is_beaten(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1, 5])
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan)
    block = results["protocols"]["single"]
    [tuned] = [line for line in block["lines"]["test"] if line.get("best")]
    tuned["scores"]["accuracy"]["mean"], majority = 0.7999, block["lines"]["test"][0]["scores"]["accuracy"]
    begin = "Beside the floor, word counts, the tuned model's accuracy on test differs by "
    for low, high, ending in (
        (0.01, 0.03, "+0.020 (+0.010 to +0.030, a paired bootstrap): the tuned model is better."),
        (-0.01, 0.05, "+0.020 (-0.010 to +0.050, a paired bootstrap): chance alone could do it."),
        (-0.03, -0.01, "-0.020 (-0.030 to -0.010, a paired bootstrap): the floor, word counts, is better."),
    ):
        block["over_floor"] = {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.05}
        majority["mean"] = 0.5
        assert f"\n{begin}{ending}\n" in page(results) and "The majority class" not in page(results)
        majority["mean"] = 0.8
        said = "The majority class reaches 0.800 on test, no less than the tuned model's 0.800."
        assert f"\n{said}\n" in page(results)


# ------------------------------------------------------------------------------------------------------- the command


def numbers(text: str, heading: str, row: str) -> list[str]:
    """Read a row of a table in a page: its cells without its name."""
    part = text.split(f"## {heading}")[1].split("\n## ")[0]
    [line] = [line for line in part.splitlines() if re.match(rf"\| {re.escape(row)} +\|", line)]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def shown(values: list[float]) -> str:
    """Show a mean and its deviation, as a table does."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if np.std(values) else ""
    return f"{np.mean(values):.3f}{deviation}"


def test_a_study_of_tagging(small, capsys):
    command.main(["--task", "ner", "--epochs", "2", "--seeds", "2", *small])
    out, folder = capsys.readouterr().out, Path("studies/ner-lora")
    assert {path.name for path in folder.iterdir()} == {
        "study.json", "results.json", "table.md", "plot.png", "epochs-2-seed-0", "epochs-2-seed-0.log",
        "epochs-2-seed-1", "epochs-2-seed-1.log",
    }  # fmt: skip
    text = (folder / "table.md").read_text()
    assert text in out and "2/2  epochs-2-seed-1: validation f1 0." in out
    assert (folder / "plot.png").read_bytes().startswith(PNG)
    assert "epoch 2: train loss" in (folder / "epochs-2-seed-0.log").read_text()
    runs = [folder / f"epochs-2-seed-{seed}" for seed in (0, 1)]
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    measures = ("f1", "precision", "recall", "span_f1")
    for split in ("validation", "test"):
        for row, kind in (("before", "before"), ("tuned, the kept epoch", "after"), ("majority", "majority")):
            of = [record["scores"][kind][split] for record in records]
            expected = [shown([scores[measure] for scores in of]) for measure in measures]
            cells = numbers(text, f"{split}: 10 rows", row)
            assert [cells[0], *cells[2:]] == expected
    assert "typed f1 |" in text and "typed recall |" in text and "span-only f1 |" in text
    for epoch in (1, 2):
        lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
        of = [[line["validation"] for line in run if "validation" in line][epoch - 1] for run in lines]
        kept = sum(record["kept_epoch"] == epoch for record in records)
        cells = numbers(text, "validation: 10 rows", f"epoch {epoch}" + (f", kept by {kept}" if kept else ""))
        assert [cells[0], *cells[2:]] == [shown([scores[measure] for scores in of]) for measure in measures]
        assert f"epoch {epoch}" not in text.split("## test")[1]
    assert "python -m neo_peft study --task ner --epochs 2 --seeds 2 --model" in text


def test_a_study_of_answers_that_is_stopped_goes_on(small, capsys, monkeypatch):
    argv = ["--task", "sentiment", "--epochs", "1", "2", "--seeds", "1", *small]
    command.main([*argv, "--out", "whole"])
    whole = json.loads(Path("whole/results.json").read_text())
    record = json.loads(Path("whole/epochs-2-seed-0/run.json").read_text())
    scores = record["scores"]
    text = Path("whole/table.md").read_text()
    cells = numbers(text, "test: 10 rows", "before")
    before, said = scores["before"]["test"], scores["before, generate"]["test"]
    assert [cells[0], *cells[2:4], cells[5]] == [
        f"{value:.3f}"
        for value in (before["accuracy"], before["macro_f1"], said["accuracy"], said["unanswered"] / said["total"])
    ]

    real, calls = training.run, []

    def stops_at_the_second(settings, say, progress):
        calls.append(settings.out or settings.resume)
        if len(calls) == 2:
            raise Stopped(signal.SIGTERM)
        return real(settings, say, progress)

    monkeypatch.setattr(training, "run", stops_at_the_second)
    capsys.readouterr()
    assert exit_status(lambda: command.main([*argv, "--out", "stopped"])) == 128 + signal.SIGTERM
    advice = "stopped; go on with it: python -m neo_peft study --resume stopped"
    assert capsys.readouterr().err.splitlines()[-1].split("\r")[-1] == advice
    assert not Path("stopped/results.json").exists()
    command.main([*argv, "--out", "stopped", "--resume", "stopped"])  # the same command, and --resume
    assert calls == ["stopped/epochs-1-seed-0", "stopped/epochs-2-seed-0", "stopped/epochs-2-seed-0"]
    again = json.loads(Path("stopped/results.json").read_text())
    # The command names its folder; the seconds are a clock's.
    assert again["command"] == whole["command"].replace("whole", "stopped")
    assert {**again, "seconds": 0, "command": ""} == {**whole, "seconds": 0, "command": ""}
    command.main(["--resume", "stopped"])  # of a study that is done: its runs are kept
    assert len(calls) == 3 and json.loads(Path("stopped/results.json").read_text()) == again


def test_a_run_that_diverges_is_a_result_of_a_sweep(small, capsys):
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "2", "--sweep", "learning_rate=1e30,0.001", *small]
    for again in ([], ["--resume", "studies/ner-lora"]):
        command.main([*argv, *again])
        out = capsys.readouterr().out
        assert re.search(
            r"\n2/4  learning-rate-1e\+30-seed-1: diverged: the loss is \w+ at step 2 \(epoch 1\): try a", out
        )
        cells = numbers(out, "validation: 10 rows", "learning rate 1e+30, 2 of 2 diverged")
        assert cells == ["–", "", "–", "–", "–"]
        assert "\n| learning rate 0.001 *" in out and "1e+30" not in out.split("## test")[1].split("\n\n")[1]
    shutil.rmtree("studies/ner-lora/learning-rate-0.001-seed-0")
    shutil.rmtree("studies/ner-lora/learning-rate-0.001-seed-1")
    with pytest.raises(InputError, match="no run of studies/ner-lora came to an end: all have diverged"):
        collect(Path("studies/ner-lora"), read_plan(Path("studies/ner-lora")))


@pytest.mark.slow
def test_a_study_that_is_killed_at_any_moment_gives_the_same_results(small):
    argv = ["--task", "ner", "--epochs", "2", "--seeds", "2", "--out", "study", *small]
    began = time.monotonic()
    assert end(start(argv, main=command.main)) == 0, Path("stderr").read_text()
    seconds, whole = time.monotonic() - began, json.loads(Path("study/results.json").read_text())
    for share in (0.3, 0.6, 0.9):
        shutil.rmtree("study")
        process = start(argv, main=command.main)
        time.sleep(share * seconds)
        os.kill(process, signal.SIGKILL)
        end(process)
        assert end(start(["--resume", "study"], main=command.main)) == 0, Path("stderr").read_text()
        again = json.loads(Path("study/results.json").read_text())
        assert {**again, "seconds": 0} == {**whole, "seconds": 0}
        assert not [path for path in Path("study").rglob("*") if ".tmp" in path.name or path.name == "checkpoints"]


# ---------------------------------------------------------------------------------------------------------- bad input


STUDY, ANSWERS = "study --task ner", "study --task sentiment"


@cases([
    ("study", f"--task is missing; the tasks are {TASKS}"),
    ("study --task nre", f"there is no task 'nre'; the tasks are {TASKS}"),
    (f"{STUDY} --method X", f"--method 'X' is none of {METHODS}"),
    (f"{STUDY} --rank 0", "--rank 0 is not a whole number of at least 1"),
    (f"{STUDY} --prompt-length 4", "--prompt-length belongs to the method prompt; the method here is lora"),
    (f"{STUDY} --seed 3", "--seed: a study runs several; --seeds N runs those from 0 to N - 1"),
    (f"{STUDY} --json", "--json: a study leaves results.json in its folder; leave it out"),
    (f"{STUDY} --seeds 0", "argument --seeds: 0 is not a whole number of at least 1; see --help"),
    (f"{STUDY} --epochs 0", "argument --epochs: 0 is not a whole number of at least 1; see --help"),
    (f"{STUDY} --epochs 1 5", "--epochs 1 5: ner is one run that is scored after each epoch; give one number"),
    (f"{ANSWERS} --epochs 5 5", "--epochs 5 comes twice, or too much alike; name each value once"),
    (f"{STUDY} --models a/b a/b", "--model a/b comes twice, or too much alike; name each value once"),
    (f"{STUDY} --sweep rank=4 --models a b", "--sweep and --models are two sweeps; name one of them"),
    (f"{ANSWERS} --epochs 1 5 --sweep rank=4,8", "--epochs 1 5: a sweep has one number of epochs; give one"),
    (f"{STUDY} --epochs 1 --sweep epochs=1,2", "--epochs is what the sweep is over; leave it out"),
    (f"{STUDY} --rank 4 --sweep rank=4,8", "--rank is what the sweep is over; leave it out"),
    (f"{STUDY} --model a --models a b", "--model is what the sweep is over; leave it out"),
    (f"{STUDY} --sweep bias", "'bias' is not NAME=VALUE,VALUE, as in rank=4,8,16"),
    (f"{STUDY} --sweep rank=4,", "'rank=4,' is not NAME=VALUE,VALUE, as in rank=4,8,16"),
    (f"{STUDY} --sweep seed=1,2", "'seed' is no flag that can be swept; those are train_limit, …"),
    (f"{STUDY} --sweep rank=4,x", "--rank x is not a whole number of at least 1"),
    (f"{STUDY} --sweep prompt-length=4,8", "--prompt-length belongs to the method prompt; the method here is lora"),
    (f"{STUDY} --data no", "--data no: there is no such folder; --data may be sample, hub or a folder"),
    ("study --resume no", "--resume no holds no study.json: no study was begun there"),
    (f"{STUDY} --out ' '", "argument --out: is empty; see --help"),
])  # fmt: skip
def test_bad_flags(capfd, case):
    refused(capfd, *case)


def test_a_folder_that_holds_something(capfd, small):
    plan = make_plan({"task": "ner"}, seeds=1)
    study.begin(plan, "held")
    refused(capfd, f"{STUDY} --out held",
            "--out held holds a study; --resume held goes on with it, another folder begins anew")  # fmt: skip
    refused(capfd, f"{STUDY} --resume held --rank 4",
            "--resume held was begun with other flags; leave them out, or begin anew")  # fmt: skip
    refused(capfd, "study --resume held --seeds 3",
            "--resume held was begun with other flags; leave them out, or begin anew")  # fmt: skip
    refused(capfd, "study --resume held --out other", "--out other: --resume held goes on there; leave --out away")
    Path("used").mkdir()
    Path("used/file").touch()
    refused(capfd, f"{STUDY} --out used", "--out used holds something already; name a folder that is new")


def test_a_study_that_cannot_go_on_loses_nothing(capsys, small, monkeypatch):
    """Before its first run has a folder, too, and what others have put there."""
    Path("held").mkdir()
    plan = make_plan({"task": "ner"}, seeds=1)
    study.begin(plan, "other")
    shutil.copy("other/study.json", "held")
    Path("held/notes.log").write_text("mine")

    def full(*given):
        raise InputError("the disk is full")

    monkeypatch.setattr(study.training, "run", full)
    with pytest.raises(InputError, match="epochs-10-seed-0: the disk is full"):
        command.main(["--resume", "held"])
    assert {path.name for path in Path("held").iterdir()} >= {"study.json", "notes.log"}
    assert Path("held/notes.log").read_text() == "mine"
    study.abandon(Path("other"), [], plan)
    assert not list(Path("other").iterdir())


def test_a_floor_is_fitted_to_the_rows_that_the_runs_were_given(tmp_path):
    """`--train-limit` and `--eval-limit` are of different splits."""
    flags = dataclasses.asdict(make_settings(task="ner", method="lora", train_limit=7, eval_limit=5, out="x"))
    rows = rows_of(flags)
    splits = load_splits(get_task("ner"), "sample")
    assert rows["train"] == limit_rows(splits.train, 7) and rows["test"] == limit_rows(splits.test, 5)
    assert rows["validation"] == limit_rows(splits.validation, 5)


def test_a_study_whose_first_run_is_refused_leaves_nothing(capsys, small):
    argv = ["--task", "sentiment", "--prompt-length", "200", *small]
    assert exit_status(lambda: command.main(argv)) == 2
    line = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert line.startswith("error: epochs-1-seed-0: what stands in front (a prompt of 200 rows") and line.endswith(
        "take a shorter prompt, or shorter label words\n"
    )
    assert not list(Path().iterdir())


def test_another_run_in_a_studys_folder_is_refused(small):
    command.main(["--task", "ner", "--epochs", "1", "--seeds", "1", "--out", "study", *small])
    plan = read_plan(Path("study"))
    plan["runs"][0]["flags"]["rank"] = 4
    write_sealed(Path("study/study.json"), plan)
    with pytest.raises(InputError, match="epochs-1-seed-0 was begun with other settings than study/study.json has"):
        study.run_study(Path("study"), plan)


def test_a_plan_that_is_none():
    plan = make_plan({"task": "ner"}, seeds=1)
    Path("study").mkdir()
    named = [plan["runs"][0] | {"name": "../elsewhere"}]
    for broken, message in (
        ({"task": "ner"}, "study/study.json is no study's plan: it lacks its method"),
        (plan | {"runs": []}, "not each of its runs has a name, a value, a seed, flags"),
        (plan | {"runs": named}, "not each of its runs has a name, a value, a seed, flags"),
    ):
        write_sealed(Path("study/study.json"), broken)
        with pytest.raises(InputError, match=re.escape(message)):
            read_plan(Path("study"))
    Path("study/study.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="study/study.json was changed since it was written, or cut short"):
        read_plan(Path("study"))
