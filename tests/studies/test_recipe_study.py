"""The study command with recipes, on real runs: stopped in the middle, resumed, and measured."""

import json
import signal
from pathlib import Path

import pytest

from neo_peft.commands import study as command
from neo_peft.errors import Stopped
from neo_peft.runs import training
from neo_peft.runs.loading import load
from neo_peft.studies import forgetting, measure
from neo_peft.studies.forgetting import bits_of_free_text
from neo_peft.studies.measure import measured_file, read_measured
from neo_peft.system.bars import Bar
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import read_checked_json

FILE = """head: --method head
LoRA: --method lora --rank 2
prompt: --method prompt --prompt-length 4
"""


@pytest.fixture
def argv(tiny_folder, monkeypatch):
    """Return the flags of a small comparison, without its folder."""
    Path("page.txt").write_text("A short page of free text, which is soon read.\n")
    monkeypatch.setattr(forgetting, "FREE_TEXT", Path("page.txt").resolve())
    Path("recipes.txt").write_text(FILE)
    small = ["--train-limit", "20", "--eval-limit", "10", "--threads", "1", "--epochs", "1"]
    sweep = ["--sweep", "learning_rate=0.3x,1x", "--seeds", "2"]
    recipes = ["--recipes", str(Path("recipes.txt").resolve())]
    return ["--task", "ner", "--model", str(tiny_folder), *small, *sweep, *recipes]


def without_times(folder: str) -> dict:
    """Return the results of a study without what differs between two equal ones."""
    results = read_checked_json(Path(folder, "results.json")) | {"seconds": 0, "command": ""}
    for line in results["protocols"]["single"]["recipes"]:
        line |= dict.fromkeys(("cpu_seconds", "peak_bytes", "inference"))
    return results


def test_recipes_are_compared_and_a_stopped_study_has_the_same_results(argv, capsys, monkeypatch):
    jumps, jump = [], Bar.jump
    monkeypatch.setattr(Bar, "jump", lambda bar, n: (jumps.append((bar.desc, n)), jump(bar, n)))
    command.main([*argv, "--out", "finished"])
    out = capsys.readouterr().out
    assert "9 runs; runs and their logs are in finished" in out and "\n9/9  prompt-" in out
    assert ("study", 1) not in jumps
    results = read_checked_json(Path("finished/results.json"))
    assert len(results["runs"]) == 6 and len(results["not_compared"]) == 3
    assert len([path for path in Path("finished").glob("*-seed-1")]) == 3
    lines = {line["name"]: line for line in results["protocols"]["single"]["recipes"]}
    head, lora, prompt = (lines[name] for name in ("head", "LoRA", "prompt"))
    assert head["forgetting"]["before"] == head["forgetting"]["after"]
    assert lora["forgetting"]["before"] == prompt["forgetting"]["before"]
    assert len({line["forgetting"]["after"] for line in lines.values()}) == 3
    assert (head["added_positions"], prompt["added_positions"]) == (0, 4)
    assert prompt["trainable"] - head["trainable"] == 4 * 24
    assert all(line["cpu_seconds"] > 0 and line["peak_bytes"] > 1e7 for line in lines.values())

    real, count = training.run, []

    def stops_at_the_eighth(settings, *others):
        count.append(settings.out or settings.resume)
        if len(count) == 8:
            raise Stopped(signal.SIGTERM)
        return real(settings, *others)

    monkeypatch.setattr(training, "run", stops_at_the_eighth)
    assert exit_status(lambda: command.main([*argv, "--out", "stopped"])) == 128 + signal.SIGTERM
    assert not list(Path("stopped").glob("*.measured.json"))
    capsys.readouterr()
    command.main(["--resume", "stopped"])
    assert len(count) == 8 + 2 and count[8] == count[7]
    assert [n for name, n in jumps if name == "study"] == [1, 2, 3, 4, 5, 6, 7]
    assert without_times("stopped") == without_times("finished")
    before = {path: path.read_bytes() for path in Path("stopped").glob("*.measured.json")}
    assert len(before) == 6
    command.main(["--resume", "stopped"])  # neither runs nor measures again
    assert len(count) == 10
    assert {path: path.read_bytes() for path in Path("stopped").glob("*.measured.json")} == before


def test_methods_are_recipes_with_their_names(argv, capsys):
    start = argv.index("--sweep")
    command.main([*argv[:start], "--seeds", "1", "--methods", "lora", "prompt", "--out", "study"])
    results = read_checked_json(Path("study/results.json"))
    assert results["values"] == ["lora", "prompt"] and not results["choices"]
    for name in results["values"]:
        run = Path("study", f"{name}-seed-0")
        found, tuned = read_measured(run)["forgetting"], load(run)
        assert found["after"] == bits_of_free_text(tuned) != found["before"]
        last = (run / "timings.jsonl").read_text().splitlines()[-1]
        [line] = [
            line for line in results["protocols"]["single"]["recipes"] if line["name"] == name
        ]
        assert line["cpu_seconds"] == json.loads(last)["cpu_seconds"]
    assert measured_file(run) == Path("study/prompt-seed-0.measured.json")


def test_the_time_of_predicting_is_that_of_the_tuned_model_over_that_of_the_base(argv, monkeypatch):
    """The clock counts tokens: a sentence that is repeated costs twice as much."""
    start = argv.index("--sweep")
    Path("recipes.txt").write_text("once: --method lora\ntwice: --method lora --echo\n")
    clock = [0.0]
    real = measure.evaluate

    def evaluate(model, encoder, examples, **options):
        clock[0] += len(examples.ids)
        return real(model, encoder, examples, **options)

    monkeypatch.setattr(measure, "evaluate", evaluate)
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    command.main([*argv[:start], "--seeds", "1", *argv[-2:], "--out", "study"])
    results = read_checked_json(Path("study/results.json"))
    times = [line["inference"]["time"] for line in results["protocols"]["single"]["recipes"]]
    assert times == [1.0, 2.0]
