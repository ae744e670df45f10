"""Plans of recipes and of two sweeps, and which runs are done, worked by hand."""

import pytest

from neo_peft.errors import InputError
from neo_peft.studies.choice import choice_of, choices, is_compared, is_done, number_of_runs
from neo_peft.studies.plan import make_plan
from neo_peft.studies.sweep import read_sweep

RECIPES = {"small": {"method": "lora", "rank": "2"}, "a head": {"method": "head"}}


def test_recipes_are_the_values_and_each_has_all_seeds():
    plan = make_plan({"task": "sentiment"}, seeds=2, epochs=[4], recipes=RECIPES)
    assert [run["name"] for run in plan["runs"]] == [
        "small-seed-0",
        "a-head-seed-0",
        "small-seed-1",
        "a-head-seed-1",
    ]
    assert (plan["swept"], plan["method"], plan["values"]) == (
        "recipe",
        "recipes",
        ["small", "a head"],
    )
    flags = [run["flags"] for run in plan["runs"][:2]]
    assert [(item["method"], item["rank"], item["epochs"]) for item in flags] == [
        ("lora", 2, 4),
        ("head", 8, 4),
    ]
    # a comparison is of the best epochs, not of numbers of epochs as in the original study
    assert {item["keep"] for item in flags} == {"best"}
    assert number_of_runs(plan) == 4 and all(is_done(plan, run, {}) for run in plan["runs"])


def test_the_flags_of_a_recipe_replace_those_of_the_study():
    recipes = {"own": {"method": "lora", "batch_size": "4", "epochs": "3"}, "common": {}}
    given = {"task": "ner", "batch_size": "8", "method": "head"}
    plan = make_plan(given, seeds=1, epochs=[7], recipes=recipes)
    found = [run["flags"] for run in plan["runs"]]
    assert [(item["method"], item["batch_size"], item["epochs"]) for item in found] == [
        ("lora", 4, 3),
        ("head", 8, 7),
    ]


def test_a_multiple_is_of_each_recipes_own_rate():
    plan = make_plan({"task": "ner"}, 1, [2], read_sweep("learning-rate=0.3x,1x"), recipes=RECIPES)
    assert [(run["value"], run["choice"]) for run in plan["runs"]] == [
        ("small", 0.0015),
        ("small", 0.005),
        ("a head", 0.003),
        ("a head", 0.01),
    ]
    assert [run["flags"]["learning_rate"] for run in plan["runs"]] == [0.0015, 0.005, 0.003, 0.01]
    assert plan["runs"][0]["name"] == "small-learning-rate-0.0015-seed-0"
    for wrong in ("x", "-1x", "ax"):
        with pytest.raises(InputError, match="--learning-rate .* is not a number above 0"):
            make_plan({"task": "ner"}, 1, [2], read_sweep(f"learning_rate={wrong},1x"))
    with pytest.raises(InputError, match="--rank 2x is not a whole number"):
        make_plan({"task": "ner"}, 1, [2], read_sweep("rank=2x"))


def test_the_first_seed_chooses_the_value_that_the_other_seeds_run():
    sweep = read_sweep("learning_rate=0.1,0.2,0.3")
    plan = make_plan({"task": "ner"}, 3, [2], sweep, recipes=RECIPES)
    assert len(plan["runs"]) == 18 and number_of_runs(plan) == 2 * 3 + 2 * 2
    scores = {
        "small-learning-rate-0.1-seed-0": 0.5,
        "small-learning-rate-0.2-seed-0": 0.7,
        "small-learning-rate-0.3-seed-0": 0.7,  # a tie: the first one is chosen
        "a-head-learning-rate-0.3-seed-0": 0.2,  # its other two runs have diverged
    }
    done = [run["name"] for run in plan["runs"] if is_done(plan, run, scores)]
    assert done[6:] == [
        "small-learning-rate-0.2-seed-1",
        "a-head-learning-rate-0.3-seed-1",
        "small-learning-rate-0.2-seed-2",
        "a-head-learning-rate-0.3-seed-2",
    ]
    compared = [run["name"] for run in plan["runs"] if is_compared(plan, run, scores)]
    assert compared == [
        "small-learning-rate-0.2-seed-0",
        "a-head-learning-rate-0.3-seed-0",
        *done[6:],
    ]
    failed = {f"a-head-learning-rate-{rate}-seed-0": "diverged" for rate in (0.1, 0.2)}
    assert choices(plan, scores, failed)["a head"] == {
        "chosen": 0.3,
        "tried": [
            {"value": 0.1, "score": None, "failed": "diverged"},
            {"value": 0.2, "score": None, "failed": "diverged"},
            {"value": 0.3, "score": 0.2, "failed": None},
        ],
    }
    assert choice_of(plan, "small", {}) is None
    assert not any(is_done(plan, run, {}) for run in plan["runs"] if run["seed"])


def test_two_sweeps_have_a_run_for_each_combination():
    sweeps = read_sweep("rank=2,4"), read_sweep("learning_rate=0.01,4x,0.3")
    plan = make_plan({"task": "ner"}, 1, [2], sweeps[0], second=sweeps[1])
    pairs = [(rank, rate) for rank in (2, 4) for rate in (0.01, 0.02, 0.3)]
    found = [(run["flags"]["rank"], run["flags"]["learning_rate"]) for run in plan["runs"]]
    assert found == pairs
    assert plan["values"] == [f"rank {rank}, learning rate {rate}" for rank, rate in pairs]
    assert plan["runs"][1]["name"] == "rank-2-learning-rate-0.02-seed-0"
    assert (plan["swept"], plan["grid"]) == (
        "settings",
        [
            {"swept": "rank", "values": [2, 4]},
            {"swept": "learning_rate", "values": [0.01, 0.02, 0.3]},
        ],
    )


def test_class_weights_are_swept_by_their_words():
    plan = make_plan({"task": "ner"}, 1, [2], read_sweep("class_weights=none,balanced"))
    assert [run["flags"]["class_weights"] for run in plan["runs"]] == [None, ["balanced"]]
    assert plan["values"] == ["none", "balanced"]
    assert plan["runs"][1]["name"] == "class-weights-balanced-seed-0"
