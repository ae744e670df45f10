"""The heat map of two sweeps has the mean scores on validation, each in its cell."""

import numpy as np
from studies import AFTER, make_up

from neo_peft.runs.curves import new_figure
from neo_peft.studies.heat_map import cells, draw_heat_map, grid_table
from neo_peft.studies.plan import make_plan
from neo_peft.studies.study_page import write_page
from neo_peft.studies.study_results import collect

SWEEPS = ("batch_size", ["4", "8"]), ("clip_norm", ["0", "1", "2"])


def test_each_cell_has_the_mean_over_the_seeds_of_its_two_values(tmp_path):
    plan = make_plan({"task": "sentiment"}, 2, [5], SWEEPS[0], second=SWEEPS[1])
    right = make_up(tmp_path, plan)
    results = collect(tmp_path, plan, {})
    block = results["protocols"]["single"]
    means = {
        (size, norm): right[
            f"batch size {size}, clip norm {float(norm)}", AFTER, "validation"
        ].mean()
        for size in (4, 8)
        for norm in (0, 1, 2)
    }
    best = max(means, key=means.get)
    header, rows = grid_table(results, block)
    assert header == ["batch size \\ clip norm", "0.0", "1.0", "2.0"]
    for size, row in zip((4, 8), rows):
        assert row[0] == str(size)
        assert row[1:] == [
            f"{means[size, norm]:.3f}" + " *" * ((size, norm) == best) for norm in (0, 1, 2)
        ]
    assert [[line["best"] for line in row] for row in cells(results, block)] == [
        [(size, norm) == best for norm in (0, 1, 2)] for size in (4, 8)
    ]

    axes = new_figure().subplots()
    draw_heat_map(axes, results, block)
    for patch in axes.patches:
        x, y = patch.get_xy()
        share = (means[(4, 8)[y], x] - min(means.values())) / np.ptp(list(means.values()))
        assert np.isclose(patch.get_alpha(), 0.06 + 0.5 * share)
    assert len(axes.patches) == 6
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (x + 0.5, y + 0.5): f"{means[size, x]:.3f}"
        for y, size in enumerate((4, 8))
        for x in range(3)
    }
    text = write_page(tmp_path, results)
    assert "| batch size \\ clip norm | " in text and "](heat-map.svg)" in text
    assert (tmp_path / "heat-map.svg").read_text().startswith("<svg")
    assert "Heat map, on validation" in (tmp_path / "report.html").read_text()


def test_a_combination_without_a_result_has_a_dash(tmp_path):
    plan = make_plan({"task": "sentiment"}, 1, [5], SWEEPS[0], second=SWEEPS[1])
    make_up(tmp_path, plan)
    failed = {plan["runs"][1]["name"]: "diverged"}
    results = collect(tmp_path, plan, failed)
    block = results["protocols"]["single"]
    assert grid_table(results, block)[1][0][2] == "–"
    axes = new_figure().subplots()
    draw_heat_map(axes, results, block)
    assert len(axes.patches) == 5
