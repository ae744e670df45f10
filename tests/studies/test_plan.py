"""A study's plan: the runs that its flags give, worked by hand. Invalid plans are refused."""

import json
import re
from pathlib import Path

import pytest

from neo_peft.errors import InputError
from neo_peft.studies.plan import make_plan, read_plan
from neo_peft.studies.sweep import read_sweep
from neo_peft.system.files import write_checked_json


def flags_of(plan: dict, *names: str) -> list[tuple]:
    """Return the values of some flags for each run."""
    return [tuple(run["flags"][name] for name in names) for run in plan["runs"]]


def test_a_classification_task_has_a_run_for_each_number_of_epochs_and_each_seed():
    plan = make_plan({"task": "sentiment"})
    assert [run["name"] for run in plan["runs"]] == [
        "epochs-1-seed-0",
        "epochs-5-seed-0",
        "epochs-10-seed-0",
        "epochs-1-seed-1",
        "epochs-5-seed-1",
        "epochs-10-seed-1",
        "epochs-1-seed-2",
        "epochs-5-seed-2",
        "epochs-10-seed-2",
    ]
    assert flags_of(plan, "epochs", "seed") == [(n, seed) for seed in (0, 1, 2) for n in (1, 5, 10)]
    assert set(flags_of(plan, "method", "keep", "generate", "model")) == {
        ("prompt", "last", True, "neo-mini")
    }
    assert (plan["swept"], plan["values"], plan["seeds"], plan["method"]) == (
        "epochs",
        [1, 5, 10],
        3,
        "prompt",
    )


def test_the_plans_of_other_tasks_and_flags():
    assert make_plan({"task": "similarity"}, seeds=1)["values"] == [1, 5, 10, 20]
    plan = make_plan({"task": "ner", "rank": "4"})
    assert flags_of(plan, "epochs", "seed", "keep", "generate", "method", "rank") == [
        (10, seed, "best", False, "lora", 4) for seed in (0, 1, 2)
    ]
    plan = make_plan({"task": "sentiment", "method": "head", "keep": "best"}, seeds=2, epochs=[3])
    assert flags_of(plan, "epochs", "seed", "keep", "generate") == [
        (3, 0, "best", False),
        (3, 1, "best", False),
    ]


def test_preset_paper_uses_the_epochs_of_the_study():
    plan = make_plan({"task": "sentiment", "preset": "paper", "data": "sample"}, seeds=1)
    names = (
        "method",
        "model",
        "epochs",
        "prompt_length",
        "learning_rate",
        "clip_norm",
        "keep",
        "max_length",
    )
    assert flags_of(plan, *names) == [
        ("prompt", "EleutherAI/gpt-neo-1.3B", epochs, 8, 3e-2, 0.0, "last", 64)
        for epochs in (1, 5, 10)
    ]
    # With a preset, `keep` is the preset's. The preset best has none, so it is train.py's default.
    plan = make_plan({"task": "sentiment", "preset": "best"}, seeds=1, epochs=[5])
    assert flags_of(plan, "keep", "learning_rate", "readout") == [("best", 1.5e-3, "head")]


def test_phrasebank_is_studied_with_both_protocols():
    Path("bank").mkdir()
    lines = [
        f"Profit {word} by {n} .@{label}\r\n"
        for n in range(20)
        for word, label in (("rose", "positive"), ("fell", "negative"), ("came", "neutral"))
    ]
    for name in ("50", "66"):
        Path(f"bank/Sentences_{name}Agree.txt").write_text(
            "".join(lines), encoding="latin-1", newline=""
        )
    plan = make_plan({"task": "sentiment", "data": "bank"}, seeds=1, epochs=[2])
    assert [run["name"] for run in plan["runs"]] == [
        "clean-epochs-2-seed-0",
        "paper-epochs-2-seed-0",
    ]
    assert flags_of(plan, "protocol", "data") == [
        (name, str(Path("bank").resolve())) for name in ("clean", "paper")
    ]
    plan = make_plan(
        {"task": "sentiment", "data": "bank", "protocol": "paper"}, seeds=1, epochs=[2]
    )
    assert [run["name"] for run in plan["runs"]] == ["epochs-2-seed-0"] and flags_of(
        plan, "protocol"
    ) == [("paper",)]


def test_a_sweep_is_over_one_flag_at_the_largest_number_of_epochs(tiny_folder):
    plan = make_plan({"task": "similarity"}, 2, None, ("learning_rate", ["0.01", ".3"]))
    assert flags_of(plan, "learning_rate", "epochs", "seed") == [
        (0.01, 20, 0),
        (0.3, 20, 0),
        (0.01, 20, 1),
        (0.3, 20, 1),
    ]
    assert plan["runs"][1]["name"] == "learning-rate-0.3-seed-0" and plan["values"] == [0.01, 0.3]
    plan = make_plan({"task": "ner"}, 1, [4], ("model", ["neo-mini", str(tiny_folder)]))
    assert flags_of(plan, "model", "epochs") == [("neo-mini", 4), (str(tiny_folder), 4)]
    assert [run["name"] for run in plan["runs"]] == ["model-neo-mini-seed-0", "model-model-seed-0"]
    plan = make_plan({"task": "sentiment"}, 1, [1], ("method", ["lora", "head"]))
    assert flags_of(plan, "method", "generate", "learning_rate") == [
        ("lora", True, 5e-3),
        ("head", False, 1e-2),
    ]


def test_read_sweep_accepts_only_flags_that_can_be_swept():
    for name in (
        "rank",
        "prompt-length",
        "learning_rate",
        "max_steps",
        "method",
        "precision",
        "keep",
    ):
        assert read_sweep(f"{name}=a, b") == (name.replace("-", "_"), ["a", "b"])
    for name in (
        "task",
        "protocol",
        "seed",
        "preset",
        "data",
        "labels",
        "generate",
        "json",
        "threads",
        "nothing",
    ):
        with pytest.raises(
            InputError, match=f"'{name}' cannot be swept; the flags that can are wording, "
        ):
            read_sweep(f"{name}=a,b")


def test_a_flag_without_a_value_is_swept_with_off_and_on():
    plan = make_plan({"task": "ner"}, 1, [2], read_sweep("echo=off,on"))
    assert flags_of(plan, "echo") == [(False,), (True,)] and plan["values"] == ["off", "on"]
    assert [run["name"] for run in plan["runs"]] == ["echo-off-seed-0", "echo-on-seed-0"]
    for wrong in ("true", "1", "ON"):
        with pytest.raises(InputError, match=f"^--rslora can be off or on, not '{wrong}'$"):
            read_sweep(f"rslora=off,{wrong}")
    with pytest.raises(InputError, match="--rank on is not a whole number"):
        make_plan({"task": "ner"}, 1, [2], read_sweep("rank=on,4"))
    assert flags_of(make_plan({"task": "ner"}, 1, [2], ("model", ["on", "off"])), "model") == [
        ("on",),
        ("off",),
    ]


def test_the_method_of_a_study_is_taken_from_its_adapter(tiny_folder):
    Path("d").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["k_proj"]}
    Path("d/adapter_config.json").write_text(json.dumps(config))
    flags = {"task": "sentiment", "adapter": "d", "model": str(tiny_folder)}
    plan = make_plan(flags, seeds=1, epochs=[2])
    assert flags_of(plan, "method", "rank", "adapter") == [("lora", 4, str(Path("d").resolve()))]
    with pytest.raises(
        InputError, match=r"--rank is fixed by --adapter d \(4\); leave out one of them"
    ):
        make_plan(flags, 1, [2], ("rank", ["4", "8"]))


def test_an_invalid_plan_is_refused():
    plan = make_plan({"task": "ner"}, seeds=1)
    Path("study").mkdir()
    outside = [plan["runs"][0] | {"name": "../elsewhere"}]
    for broken, message in (
        ({"task": "ner"}, "study/study.json is not a study's plan: it has no valid 'method'"),
        (plan | {"runs": []}, "each run needs a name, a value, a seed and flags"),
        (plan | {"runs": outside}, "each run needs a name, a value, a seed and flags"),
    ):
        write_checked_json(Path("study/study.json"), broken)
        with pytest.raises(InputError, match=re.escape(message)):
            read_plan(Path("study"))
    write_checked_json(Path("study/study.json"), plan)
    text = Path("study/study.json").read_text()
    Path("study/study.json").write_text(text.replace('"seeds": 1', '"seeds": 2'))
    with pytest.raises(
        InputError, match="study/study.json was changed since it was written, or cut short"
    ):
        read_plan(Path("study"))


def test_with_patience_the_best_weights_are_kept_and_lines_of_epochs_stay_epochs():
    given = {"task": "sentiment", "patience": 2}
    assert {run["flags"]["keep"] for run in make_plan(given)["runs"]} == {"best"}
    with pytest.raises(InputError, match="--eval-every: a study of ner is scored after each epoch"):
        make_plan({"task": "ner", "eval_every": 5})
    plan = make_plan({"task": "ner", "eval_every": 5}, sweep=("rank", ["2", "4"]))
    assert {run["flags"]["eval_every"] for run in plan["runs"]} == {5}
