"""A study's page and plot show the values of its results. The results are made up."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from studies import AFTER, make_up, named_lines

from neo_peft.studies.plan import make_plan
from neo_peft.studies.study_page import metric_title, page, write_page
from neo_peft.studies.study_results import collect


def test_a_binary_f1_is_named_with_its_label():
    results = {"task": "pairs", "labels": ["no", "yes"]}
    assert metric_title(results, "f1") == "f1 of yes"
    assert metric_title(results, "macro_f1") == "macro f1"


@pytest.mark.parametrize(
    "low, high, differ, ending",
    [
        (0.01, 0.03, 10, "the tuned model is better."),
        (-0.01, 0.05, 10, "chance alone could explain it."),
        (-0.03, -0.01, 10, "word counts is better."),
        (0.01, 0.03, 9, "the predictions differ in 9 rows only, too few to tell."),
    ],
)
def test_the_page_compares_tuning_with_the_best_of_the_others(tmp_path, low, high, differ, ending):
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[1, 5])
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    verdict = results["protocols"]["single"]["verdict"]
    verdict |= {"difference": (low + high) / 2, "low": low, "high": high, "differ": differ}
    interval = f"95 % interval {low:+.3f} to {high:+.3f}, paired bootstrap"
    assert (
        f"\nCompared with word counts ({verdict['other_score']:.3f}), the tuned model's accuracy "
        f"on test differs by {verdict['difference']:+.3f} ({interval}): {ending}\n"
    ) in page(results)


def test_the_page_tells_that_a_head_alone_was_not_scored(tmp_path):
    plan = make_plan({"task": "sentiment"}, seeds=1, epochs=[1])
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    sentence = "Not all runs scored a linear head alone; --head-baseline scores it."
    assert sentence not in page(results)
    results["protocols"]["single"]["head_missing"] = True
    assert sentence in page(results)


def drawn(results: dict, path: Path, monkeypatch) -> tuple[dict, dict]:
    """Draw a study's plot. Return its curves, {name: (xs, ys, ends of the error bars)}, and its
    horizontal lines, {name: y}."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    write_page(path, results)
    [axes] = figures[-1].axes
    curves = {}
    for curve in axes.containers:
        [bars] = curve[2]
        ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
        curves[curve.get_label()] = (list(curve[0].get_xdata()), list(curve[0].get_ydata()), ends)
    levels = {
        line.get_label(): line.get_ydata()[0] for line in axes.lines if ", " in line.get_label()
    }
    return curves, levels


def test_the_plot_shows_means_standard_deviations_and_scores_without_tuning(tmp_path, monkeypatch):
    plan = make_plan({"task": "sentiment"}, seeds=3, epochs=[1, 12])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    curves, levels = drawn(results, tmp_path, monkeypatch)
    assert list(curves) == ["validation", "test"]
    for split, (xs, ys, ends) in curves.items():
        accuracies = [right[value, AFTER, split].mean(1) for value in (1, 12)]  # of each seed
        assert xs == [0, 1] and ys == pytest.approx([seeds.mean() for seeds in accuracies])
        for (low, high), seeds in zip(ends, accuracies, strict=True):
            mean, deviation = seeds.mean(), np.std(seeds, ddof=1)
            assert (low, high) == pytest.approx((mean - deviation, mean + deviation))
    lines = named_lines(results, "test")
    names = ("majority", "baseline, word counts", "before")
    assert levels == {f"{name}, test": lines[name]["scores"]["accuracy"]["mean"] for name in names}


def test_the_plot_of_a_sweep_shows_the_score_before_tuning_of_the_best_value(tmp_path, monkeypatch):
    plan = make_plan({"task": "sentiment"}, 2, [5], ("batch_size", ["4", "8", "16"]))
    make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    best = results["protocols"]["single"]["best"]
    _, levels = drawn(results, tmp_path, monkeypatch)
    assert list(levels) == [
        "majority, test",
        "baseline, word counts, test",
        f"before, batch size {best}, test",
    ]


def test_the_page_tells_which_epoch_is_kept(tmp_path):
    for keep, keeps_best in (("best", True), ("last", False)):
        plan = make_plan({"task": "sentiment", "keep": keep}, seeds=1, epochs=[1])
        make_up(tmp_path / keep, plan)
        results = collect(tmp_path / keep, plan, {})
        assert ("Each run keeps its best epoch on validation." in page(results)) == keeps_best
        results["protocols"]["single"]["kept_epochs"] = [
            1
        ]  # as for tagging, where each epoch has a line
        kept = "the best one on validation" if keep == "best" else "the last one"
        assert (
            f'"Kept by" counts the seeds that keep this epoch ({kept}); only the kept epoch is '
            "scored on test." in page(results)
        )
