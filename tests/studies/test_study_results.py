"""A study's results, from made-up predictions, are compared with numpy."""

import dataclasses

import numpy as np
import pytest
import studies
from studies import AFTER, BEFORE, make_up, named_lines

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.runs.baselines import predict_baseline
from neo_peft.studies.plan import make_plan
from neo_peft.studies.study_page import page, write_page
from neo_peft.studies.study_results import collect
from neo_peft.tasks import get_task

PNG = b"\x89PNG\r\n\x1a\n"


def test_means_deviations_and_intervals_are_those_of_numpy(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=3, epochs=[1, 12])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    for split in ("validation", "test"):
        lines = named_lines(results, split)
        assert list(lines)[0] == "majority" and list(lines)[2:] == [
            "before",
            "1 epoch",
            "12 epochs",
        ]
        for name, value, kind in (
            ("before", 1, BEFORE),
            ("1 epoch", 1, AFTER),
            ("12 epochs", 12, AFTER),
        ):
            generated = kind._replace(generated=True)
            for metric, predictions in (("accuracy", kind), ("generated", generated)):
                hits, found = right[value, predictions, split], lines[name]["scores"][metric]
                assert found["seeds"] == pytest.approx(hits.mean(1))
                assert found["mean"] == pytest.approx(hits.mean())
                assert found["sd"] == pytest.approx(np.std(hits.mean(1), ddof=1))
                # A resample draws examples, each with the results of all seeds. So the interval is
                # that of a mean over examples, where each has its mean over the seeds.
                reach = 1.96 * np.std(hits.mean(0)) / np.sqrt(hits.shape[1])
                assert found["low"] == pytest.approx(hits.mean() - reach, abs=0.015)
                assert found["high"] == pytest.approx(hits.mean() + reach, abs=0.015)
            unanswered = 1 - right[value, generated, split].mean()
            assert lines[name]["scores"]["unanswered"]["mean"] == pytest.approx(unanswered)
    best = max((1, 12), key=lambda value: right[value, AFTER, "validation"].mean())
    assert results["protocols"]["single"]["best"] == best == 12
    assert results["seconds"] == 60.2


def test_one_seed_has_no_standard_deviation(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    score = named_lines(results, "test")["1 epoch"]["scores"]["accuracy"]
    assert score["sd"] is None and score["mean"] == right[1, AFTER, "test"].mean()
    assert "One seed." in page(results) and "±" not in page(results)


def test_seeds_with_different_rows_have_no_common_interval(tmp_path):
    """For example, where the seed draws the validation split."""
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1])
    plan["runs"][1]["flags"]["eval_limit"] = 40
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    for name in ("1 epoch", "baseline, word counts"):
        assert named_lines(results, "validation")[name]["scores"]["accuracy"].keys() == {
            "mean",
            "sd",
            "seeds",
        }
    # The baseline is not compared with a bootstrap either: only the means are.
    verdict = results["protocols"]["single"]["verdict"]
    baseline, tuned = (
        named_lines(results, "test")[name]["scores"]["accuracy"]["mean"]
        for name in ("baseline, word counts", "1 epoch")
    )
    assert verdict == {
        "compared_with": "word counts",
        "other_score": pytest.approx(baseline),
        "difference": pytest.approx(tuned - baseline),
    }
    assert (
        f"Compared with word counts ({baseline:.3f}), the tuned model's accuracy on test "
        f"differs by {tuned - baseline:+.3f}; each seed has its own rows, so there is no interval."
    ) in page(results)
    assert "There are no intervals, because each seed has its own validation rows" in page(results)
    assert "The interval is a 95 % bootstrap interval" not in page(results)


def test_seeds_with_different_training_rows_have_different_baselines(tmp_path):
    """For example, where the seed draws validation from the training rows. The test rows are the
    same."""
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1])
    plan["runs"][1]["flags"]["train_limit"] = 30
    right = make_up(tmp_path, plan)[1, AFTER, "test"]
    block, hits = collect(tmp_path, plan, {})["protocols"]["single"], []
    task, splits = get_task("sentiment"), load_splits(get_task("sentiment"), "sample")
    for train in (splits.train, limit_rows(splits.train, 30)):
        predicted = predict_baseline(task, train, splits.validation, splits.test)
        hits.append(
            [label == row["label"] for label, row in zip(predicted, splits.test, strict=True)]
        )
    hits = np.array(hits)
    [line] = [line for line in block["lines"]["test"] if line["kind"] == "baseline"]
    assert (
        line["scores"]["accuracy"]["seeds"] == pytest.approx(hits.mean(1))
        and np.ptp(hits.mean(1)) > 0.02
    )
    reach = 1.96 * np.std(hits.mean(0)) / np.sqrt(hits.shape[1])
    found = line["scores"]["accuracy"]
    assert (found["low"], found["high"]) == pytest.approx(
        (hits.mean() - reach, hits.mean() + reach), abs=0.015
    )
    differences = right.mean(0) - hits.mean(0)
    reach = 1.96 * np.std(differences) / np.sqrt(len(differences))
    over = block["verdict"]
    assert [over["difference"], over["low"], over["high"]] == pytest.approx(
        [differences.mean(), differences.mean() - reach, differences.mean() + reach], abs=0.015
    )


def test_a_sweep_that_changes_the_training_rows_has_a_baseline_for_each(tmp_path):
    plan = make_plan({"task": "sentiment"}, 1, [5], ("train_limit", ["20", "200"]))
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    block = results["protocols"]["single"]
    names = {value: f"baseline, word counts, train limit {value}" for value in (20, 200)}
    lines = named_lines(results, "test")
    means = {value: lines[name]["scores"]["accuracy"]["mean"] for value, name in names.items()}
    assert means[20] != means[200]
    tuned = lines[f"train limit {block['best']}"]["scores"]["accuracy"]["mean"]
    assert block["verdict"]["difference"] == pytest.approx(tuned - means[block["best"]])
    sentence = f"Compared with word counts ({means[block['best']]:.3f}), the tuned model's accuracy"
    assert sentence in page(results)


def test_the_tuned_model_is_compared_on_test_even_if_there_are_other_test_splits(
    tmp_path, monkeypatch
):
    """For example, mnli of GLUE also has a mismatched split."""
    load = load_splits
    for module in (studies,):

        def load_with_other(*args):
            splits = load(*args)
            return dataclasses.replace(splits, extra_tests={"other": splits.test[:50]})

        monkeypatch.setattr(module, "load_splits", load_with_other)
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    block = results["protocols"]["single"]
    assert list(block["lines"]) == ["validation", "test", "other"] and block["judged"] == "test"
    text = page(results)
    assert (
        "the tuned model's accuracy on test differs by" in text and "accuracy on other" not in text
    )


def test_only_the_best_value_on_validation_of_a_sweep_is_scored_on_test(tmp_path):
    plan = make_plan({"task": "sentiment"}, 2, [5], ("batch_size", ["4", "8", "16"]))
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    best = max((4, 8, 16), key=lambda value: right[value, AFTER, "validation"].mean())
    tuned = {
        split: [
            name for name, line in named_lines(results, split).items() if line["kind"] == "after"
        ]
        for split in ("validation", "test")
    }
    names = ["batch size 4", "batch size 8", "batch size 16"]
    assert tuned == {"validation": names, "test": [f"batch size {best}"]}
    assert {f"before, {name}" for name in names} < set(named_lines(results, "validation"))
    text = write_page(tmp_path, results)
    assert (
        f"\n| batch size {best} *" in text
        and text.count("batch size 4 ") + text.count("batch size 8 ") > 2
    )
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_the_baseline_has_an_interval_and_a_paired_difference_to_the_best_value(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=3, epochs=[1, 12])
    right = make_up(tmp_path, plan)
    block = collect(tmp_path, plan, {})["protocols"]["single"]
    task, splits = get_task("sentiment"), load_splits(get_task("sentiment"), "sample")
    rows = splits.test
    predicted = predict_baseline(task, splits.train, splits.validation, rows)
    hits = np.array([label == row["label"] for label, row in zip(predicted, rows, strict=True)])
    [line] = [line for line in block["lines"]["test"] if line["kind"] == "baseline"]
    found, reach = line["scores"]["accuracy"], 1.96 * np.std(hits) / np.sqrt(len(hits))
    assert found["mean"] == hits.mean()
    assert (found["low"], found["high"]) == pytest.approx(
        (hits.mean() - reach, hits.mean() + reach), abs=0.015
    )
    over, differences = block["verdict"], right[12, AFTER, "test"].mean(0) - hits
    reach = 1.96 * np.std(differences) / np.sqrt(len(hits))
    assert block["judged"] == "test" and over["difference"] == pytest.approx(differences.mean())
    assert (over["low"], over["high"]) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.015
    )


def test_failed_runs_are_left_out_and_a_value_with_fewer_seeds_is_not_the_best(tmp_path):
    plan = make_plan({"task": "sentiment"}, 2, [1, 5, 12])
    right = make_up(tmp_path, plan)
    assert right[12, AFTER, "validation"].mean() > right[5, AFTER, "validation"].mean()
    failed = {
        "epochs-1-seed-0": "refused",
        "epochs-12-seed-0": "diverged",
        "epochs-12-seed-2": "of another study",
    }
    results = collect(tmp_path, plan, failed)
    block = results["protocols"]["single"]
    assert block["best"] == 5 and len(results["runs"]) == 4
    for split in ("validation", "test"):
        lines = block["lines"][split]
        assert [line["kind"] for line in lines] == [
            "majority",
            "baseline",
            "before",
            "after",
            "after",
            "after",
        ]
        assert lines[2]["scores"]["accuracy"]["seeds"] == pytest.approx(
            right[1, BEFORE, split].mean(1)
        )
        assert lines[5]["scores"]["accuracy"]["seeds"] == pytest.approx(
            right[12, AFTER, split].mean(1)[1:]
        )
    text = page(results)
    assert "\n| 1 epoch, 1 of 2 refused " in text and "\n| 12 epochs, 1 of 2 diverged " in text
    assert (
        "* is the best value on validation, among the values with the most finished seeds." in text
    )
    assert "* is the best value on validation." in page(collect(tmp_path, plan, {}))
