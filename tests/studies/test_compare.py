"""Comparing runs and studies: the numbers are those of metrics.py and bootstrap.py. Runs that
cannot be compared are refused."""

import json
import random
import shutil
from pathlib import Path

import pytest

from neo_peft.commands import compare
from neo_peft.decoding import Evaluation
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.runs import training
from neo_peft.runs.bootstrap import intervals, paired
from neo_peft.runs.folder import RUN, SETTINGS, flags_of, write_record
from neo_peft.runs.predictions import PredictionKind, write_predictions
from neo_peft.settings import make_settings
from neo_peft.studies.plan import PLAN, RESULTS
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import sha256, write_checked_json
from neo_peft.tasks import TASKS

TAGS = [
    ["B-DNA", "I-DNA", "O", "B-RNA"],
    ["O", "B-protein", "O"],
    ["O", "B-cell_type", "I-cell_type"],
    ["O"],
] * 20


def make_run(name, task, splits, **flags):
    """Write the folder of a finished run. `splits` is {split: (rows, predicted)}."""
    folder = Path(name)
    folder.mkdir()
    for split, (rows, predicted) in splits.items():
        write_predictions(folder, PredictionKind("after"), split, rows, Evaluation(predicted))
    files = {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*.jsonl")}
    settings = {"task": task, "method": "lora", **flags}
    write_record(
        folder, {"task": task, "labels": [], "flags": settings, "base": {}, "files": files}
    )
    return folder


def tagged():
    """Return rows of ner, predictions for them, and better predictions."""
    rows = [{"tokens": [f"word{n}" for n in range(len(tags))], "tags": tags} for tags in TAGS]
    rng = random.Random(0)
    worse = [
        [tag if rng.random() < 0.6 else rng.choice(TASKS["ner"].labels) for tag in tags]
        for tags in TAGS
    ]
    return rows, worse, [tags if rng.random() < 0.5 else wrong for tags, wrong in zip(TAGS, worse)]


def labelled(count=100):
    """Return rows of sentiment."""
    return [
        {"sentence": f"Text {n} .", "label": TASKS["sentiment"].labels[n % 3]} for n in range(count)
    ]


@pytest.fixture
def run(capsys):
    """Return a function that runs the command and returns (exit status, output, error output)."""

    def run_compare(*argv):
        status = exit_status(lambda: compare.main(argv))
        return (status, *capsys.readouterr())

    return run_compare


def test_tags_are_compared_by_typed_and_by_span_only_f1(run):
    rows, worse, better = tagged()
    make_run("a", "ner", {"test": (rows, worse)})
    make_run("b", "ner", {"test": (rows, better)})
    status, out, _ = run("a", "b")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "ner, 80 sentences of test; a is a, b is b; 95 % intervals in brackets"
    assert [line.split("  ")[0] for line in lines[4:9]] == [
        "typed f1",
        "typed precision",
        "typed recall",
        "span-only f1",
        "accuracy of words",
    ]
    found = paired(TASKS["ner"], rows, [worse], [better])
    for line, metric in zip(
        lines[4:9], ("f1", "precision", "recall", "span_f1", "accuracy"), strict=True
    ):
        numbers = [
            float(text.strip("[],<+")) for text in line.replace("of words", "").split()[-10:]
        ]
        expected = []
        for predicted in (worse, better):
            expected += [
                entity_scores(TAGS, predicted)[metric],
                *intervals(TASKS["ner"], rows, [predicted])[metric],
            ]
        expected += [found[metric][name] for name in ("difference", "low", "high", "p")]
        assert numbers == pytest.approx(expected, abs=0.0011)
    assert lines[10].startswith(
        f"b is better: its typed f1 is {found['f1']['difference']:.3f} higher, "
    )
    assert lines[10].endswith(
        f", 95 % interval {found['f1']['low']:.3f} to {found['f1']['high']:.3f}, p <0.001."
    )
    assert len(lines) == 11
    # if a and b are swapped, the same run is better
    assert run("b", "a")[1].splitlines()[10].startswith("b is better: its typed f1 is")


def test_json_has_each_metric_with_its_intervals(run):
    rows, worse, better = tagged()
    make_run("a", "ner", {"test": (rows, worse)})
    make_run("b", "ner", {"test": (rows, better)})
    status, out, err = run("a", "b", "--json")
    found = json.loads(out)
    metrics = found.pop("metrics")
    assert (status, err) == (0, "")
    differ = sum(tags_a != tags_b for tags_a, tags_b in zip(worse, better, strict=True))
    names = {"a": "a", "b": "b", "a_runs": ["a"], "b_runs": ["b"], "better": "b"}
    assert found == {"task": "ner", "split": "test", "rows": 80, "rows_that_differ": differ} | names
    assert 10 < differ < 80
    expected = paired(TASKS["ner"], rows, [worse], [better])
    for name, low_high in intervals(TASKS["ner"], rows, [better]).items():
        a_interval = metrics[name].pop("a_interval")
        assert metrics[name].pop("b_interval") == list(low_high) != a_interval
        assert metrics[name] == expected[name]
    assert json.loads(run("b", "a", "--json")[1])["better"] == "a"


def test_a_difference_that_chance_could_explain_makes_no_side_better(run):
    rows = labelled()
    gold = [row["label"] for row in rows]
    a, b = gold[:70] + [None] * 30, gold[:68] + [None] * 30 + gold[98:]
    b[0] = None
    make_run("a", "sentiment", {"test": (rows, a)})
    make_run("b", "sentiment", {"test": (rows, b)})
    status, out, _ = run("a", "b")
    found = paired(TASKS["sentiment"], rows, [a], [b])["accuracy"]
    assert class_scores(gold, b, TASKS["sentiment"].labels)["accuracy"] == 0.69
    assert out.splitlines()[-1] == (
        "Chance alone could explain the difference: accuracy differs by -0.010, 95 % interval "
        f"{found['low']:+.3f} to {found['high']:+.3f}, p {found['p']:.3f}."
    )
    assert [line.split("  ")[0] for line in out.splitlines()[4:6]] == ["accuracy", "macro f1"]
    assert json.loads(run("a", "b", "--json")[1])["better"] is None
    same = run("a", "a")[1].splitlines()[-1]
    assert same == (
        "There is no difference: accuracy is 0.700 in both, and equal in every bootstrap resample."
    )


@pytest.mark.parametrize("fixed", [4, 9, 10])
def test_too_few_differing_rows_make_no_side_better(run, fixed):
    """The predictions differ in a few rows, and b is right in all of them. The bootstrap interval
    excludes 0, but for 4 rows the exact sign test has p = 2 · (1/2)^4 = 0.125."""
    rows = labelled()
    gold = [row["label"] for row in rows]
    a = [None] * fixed + gold[fixed:]
    make_run("a", "sentiment", {"test": (rows, a)})
    make_run("b", "sentiment", {"test": (rows, gold)})
    assert paired(TASKS["sentiment"], rows, [a], [gold])["accuracy"]["low"] > 0
    conclusion, found = run("a", "b")[1].splitlines()[-1], json.loads(run("a", "b", "--json")[1])
    assert found["rows_that_differ"] == fixed
    if fixed < 10:
        too_few = (
            f"accuracy differs by +0.0{fixed}0, but the predictions differ in {fixed} rows only: "
            "too few to tell which is better."
        )
        assert (conclusion, found["better"]) == (too_few, None)
    else:
        assert conclusion.startswith("b is better: its accuracy is 0.100 higher")
        assert found["better"] == "b"


def test_a_difference_that_is_the_same_in_every_resample_is_reported(run):
    """All five rows are wrong in one run and right in the other."""
    rows = labelled(5)
    make_run("a", "sentiment", {"test": (rows, [None] * 5)})
    make_run("b", "sentiment", {"test": (rows, [row["label"] for row in rows])})
    assert run("a", "b")[1].splitlines()[-1] == (
        "accuracy differs by +1.000, but the predictions differ in 5 rows only: too few to tell "
        "which is better."
    )


def test_test_is_compared_if_both_runs_have_it_else_validation(run):
    rows = labelled()
    splits = {"validation": (rows[:30], ["neutral"] * 30), "test": (rows, ["neutral"] * 100)}
    make_run("both", "sentiment", splits)
    make_run("one", "sentiment", {"validation": splits["validation"]})
    assert " 100 rows of test;" in run("both", "both")[1]
    assert " 30 rows of validation;" in run("one", "both")[1]
    assert " 30 rows of validation;" in run("both", "one", "--split", "validation")[1]


def make_study(name, runs, best, protocols=("clean",)):
    """Write the folder of a finished study. `runs` is {(value, seed): (rows, predicted)}, with None
    for a run that diverged."""
    folder, plan = Path(name), []
    folder.mkdir()
    for (value, seed), test in runs.items():
        plan.append(
            {
                "name": f"rank-{value}-seed-{seed}",
                "value": value,
                "seed": seed,
                "flags": {"rank": value},
            }
        )
        if test:
            make_run(folder / plan[-1]["name"], "sentiment", {"test": test}, rank=value)
    study = {
        "task": "sentiment",
        "method": "lora",
        "model": "neo-mini",
        "data": "sample",
        "swept": "rank",
    }
    study |= {"values": [4, 8], "seeds": 2, "command": "", "runs": plan}
    write_checked_json(folder / PLAN, study)
    finished = [run["name"] for run in plan if runs[run["value"], run["seed"]]]
    write_checked_json(
        folder / RESULTS,
        {"protocols": {protocol: {"best": best} for protocol in protocols}, "runs": finished},
    )
    return folder


def test_of_a_study_the_seeds_of_its_best_value_are_compared(run):
    rows = labelled()
    gold = [row["label"] for row in rows]
    predictions = {
        (value, seed): gold[: 10 * value + seed] + [None] * (100 - 10 * value - seed)
        for value in (4, 8)
        for seed in (0, 1, 2)
    }
    make_study("study", {key: (rows, predicted) for key, predicted in predictions.items()}, best=8)
    make_run("alone", "sentiment", {"test": (rows, gold[:60] + [None] * 40)})
    status, out, _ = run("alone", "study")
    assert status == 0
    assert "a is alone, b is study (rank 8, 3 seeds);" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith("study is better: its accuracy is 0.210 higher, ")
    found = json.loads(run("study", "alone", "--json")[1])
    assert (found["a_runs"], found["b_runs"]) == (
        [f"study/rank-8-seed-{seed}" for seed in (0, 1, 2)],
        ["alone"],
    )
    expected = paired(
        TASKS["sentiment"],
        rows,
        [predictions[8, seed] for seed in (0, 1, 2)],
        [gold[:60] + [None] * 40],
    )
    assert expected["accuracy"]["a"] == pytest.approx(0.81)
    for name, comparison in expected.items():
        assert {key: found["metrics"][name][key] for key in comparison} == comparison
    low, high = intervals(TASKS["sentiment"], rows, [predictions[8, seed] for seed in (0, 1, 2)])[
        "accuracy"
    ]
    assert found["metrics"]["accuracy"]["a_interval"] == [low, high]


def test_diverged_runs_of_a_study_are_left_out_and_unclear_studies_are_refused(run):
    rows = labelled()
    right = rows, [row["label"] for row in rows]
    make_study("diverged", {(8, 0): right, (8, 1): None}, best=8)
    assert "a is diverged (rank 8, 1 of 2 seeds)," in run("diverged", "diverged")[1]
    make_study("two", {(8, 0): right}, best=8, protocols=("clean", "paper"))
    (make_study("unfinished", {(8, 0): right}, best=8) / RESULTS).unlink()
    write_checked_json(make_study("odd", {(8, 0): right}, best=8) / RESULTS, {"protocols": [1]})
    write_checked_json(
        make_study("none", {(8, 0): right}, best=8) / RESULTS, {"protocols": {"clean": {"best": 5}}}
    )
    results = make_study("changed", {(8, 0): right, (4, 0): right}, best=8) / RESULTS
    results.write_text(results.read_text().replace('"best": 8', '"best": 4'))
    for name, message in {
        "two": "two is a study with the protocols clean and paper; compare single runs in it",
        "unfinished": "unfinished is a study that is not finished; resume it: python -m "
        "neo_peft study --resume "
        "unfinished",
        "changed": "changed/results.json was changed since it was written, or cut short: its "
        "sha256 differs",
        "odd": "odd/results.json is not a study's results file; write it again: python -m neo_peft "
        "study --resume odd",
        "none": "none/results.json is not a study's results file; write it again: python -m "
        "neo_peft study --resume none",
    }.items():
        assert run("diverged", name) == (2, "", f"error: {message}\n")


def test_runs_of_a_study_with_other_rows_or_another_task_are_refused(run):
    rows = labelled()
    right, fewer = (rows, [row["label"] for row in rows]), (rows[:90], ["neutral"] * 90)
    for place in range(3):
        tests = [right] * 3
        tests[place] = fewer
        make_study(f"rows-{place}", {(8, seed): test for seed, test in enumerate(tests)}, best=8)
        status, out, err = run(f"rows-{place}", f"rows-{place}")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "predicted different rows of test: " in err
        folder = make_study(f"task-{place}", {(8, seed): right for seed in range(3)}, best=8)
        shutil.rmtree(folder / f"rank-8-seed-{place}")
        make_run(folder / f"rank-8-seed-{place}", "ner", {"test": tagged()[:2]})
        status, out, err = run(f"task-{place}", f"task-{place}")
        assert (status, out) == (2, "") and "have different tasks: " in err and err.count("\n") == 1


def test_a_missing_run_is_not_counted_as_diverged(run):
    rows = labelled()
    right = rows, [row["label"] for row in rows]
    (make_study("study", {(8, 0): right, (8, 1): right}, best=8) / "rank-8-seed-1" / RUN).unlink()
    assert run("study", "study") == (2, "", "error: study/rank-8-seed-1/run.json does not exist\n")


def test_runs_that_cannot_be_compared_are_refused_in_one_line(run):
    rows, other = labelled(), [{**row, "sentence": row["sentence"] + "."} for row in labelled()[:3]]
    make_run("sentiment", "sentiment", {"test": (rows, ["neutral"] * 100)})
    make_run("ner", "ner", {"test": tagged()[:2]})
    make_run("fewer", "sentiment", {"test": (rows[:90], ["neutral"] * 90)})
    make_run(
        "changed", "sentiment", {"test": (rows[:1] + other[1:2] + rows[2:], ["neutral"] * 100)}
    )
    own = [{"sentence": "Good .", "label": "yes"}, {"sentence": "Bad .", "label": "no"}]
    for name, labels in (("yes-no", ["yes", "no"]), ("no-yes", ["no", "yes"])):
        make_run(name, "classification", {"test": (own, ["yes", "no"])}, labels=labels)
    Path("unfinished").mkdir()
    flags = flags_of(make_settings(task="ner", method="lora"))
    write_checked_json(Path("unfinished") / SETTINGS, flags)
    Path("empty").mkdir()
    same = (
        "compare runs with the same --data, --protocol and --eval-limit, and with the same --seed "
        "if the data has no validation file"
    )
    for argv, message in {
        (
            "sentiment",
            "ner",
        ): "sentiment and ner have different tasks: sentiment and ner; compare runs of one task",
        (
            "yes-no",
            "no-yes",
        ): "yes-no and no-yes have different labels: yes, no and no, yes; compare runs of one task",
        (
            "sentiment",
            "fewer",
        ): f"sentiment and fewer predicted different rows of test: 100 and 90 rows; {same}",
        (
            "sentiment",
            "changed",
        ): "sentiment and changed predicted different rows of test: the first difference "
        f"is in row 2; {same}",
        ("sentiment", "nowhere"): "there is no run folder nowhere",
        (
            "unfinished",
            "ner",
        ): "unfinished is a run that is not finished; resume it: python -m neo_peft train "
        "--resume unfinished",
        ("empty", "ner"): "empty/run.json does not exist",
        (
            "ner",
            "ner",
            "--split",
            "dev",
        ): "ner/predictions/after-dev.jsonl is missing; the run has the predictions "
        "predictions/after-test.jsonl",
    }.items():
        assert run(*argv) == (2, "", f"error: {message}\n")
    path = Path("ner/predictions/after-test.jsonl")
    path.write_text(path.read_text().replace("I-DNA", "O", 1))
    assert "after-test.jsonl was changed since the run" in run("ner", "ner")[2]


@pytest.mark.parametrize(
    "argv", [[], ["a"], ["a", "b", "c"], ["a", ""], ["a", "b", "--split", " "], ["--josn"]]
)
def test_a_bad_flag_is_one_line(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        compare.main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_runs_that_were_trained_are_compared(run, tiny_folder):
    for name, seed in (("a", 0), ("b", 1)):
        settings = make_settings(
            task="similarity",
            method="head",
            model=str(tiny_folder),
            threads=1,
            train_limit=16,
            eval_limit=20,
            epochs=1,
            seed=seed,
            out=name,
        )
        training.run(settings, lambda line: None)
    found = json.loads(run("a", "b", "--json")[1])
    assert list(found["metrics"]) == ["accuracy", "macro_f1", "f1", "matthews"]
    for name in "ab":
        scores = json.loads(Path(name, "run.json").read_text())["scores"]["after"]["test"]
        assert {
            metric: comparison[name] for metric, comparison in found["metrics"].items()
        } == pytest.approx({metric: scores[metric] for metric in found["metrics"]})
