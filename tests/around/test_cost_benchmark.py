"""The benchmark of predicted costs: each run is predicted, then measured, and compared."""

import json

import pytest

from benchmarks import cost, peers


@pytest.fixture
def no_processes(monkeypatch, tmp_path):
    """Give each run its numbers, without a process."""
    monkeypatch.setattr(peers, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(cost, "RUNS", (("neo-mini", "--task a"), ("125m", "--task b")))
    monkeypatch.setattr(cost, "write_base", lambda folder, *shape: folder.mkdir())
    calls = []

    def predict(command):
        calls.append(["predict", *command])
        return {"predicted_memory": 120 * 10**6, "predicted_seconds": 8.0}

    def measure(command, folder):
        calls.append(["measure", *command])
        return {"memory": 100 * 10**6, "seconds": 10.0 if "a" in command else 12.0}

    monkeypatch.setattr(cost, "predict", predict)
    monkeypatch.setattr(cost, "measure", measure)
    return calls


def test_each_run_is_predicted_and_measured_with_the_same_flags(no_processes, tmp_path, capsys):
    cost.main([])
    assert [call[0] for call in no_processes] == ["predict", "measure"] * 2
    for predicted, measured in zip(no_processes[::2], no_processes[1::2]):
        assert predicted[1:] == measured[1:]
    assert no_processes[0][-2:] == ["--model", "neo-mini"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split()[-7:] == ["100", "120", "1.20", "10.0", "8.0", "0.80", "yes"]
    assert printed[3].split()[-3:] == ["8.0", "0.67", "no"]
    lines = json.loads((tmp_path / "records" / "cost-fp32-cpu.json").read_text())["lines"]
    assert [line["base"] for line in lines] == ["neo-mini", "125m"]


def test_the_numbers_are_those_of_the_dry_run_and_of_the_process(tiny_folder, tmp_path):
    flags = f"train.py --task ner --method lora --model {tiny_folder} --threads 1 --max-steps 1"
    command = f"{flags} --train-limit 4 --eval-limit 3".split()
    predicted, measured = cost.predict(command), cost.measure(command, tmp_path / "run")
    assert 0.5 < predicted["predicted_memory"] / measured["memory"] < 2
    assert predicted["predicted_seconds"] > 0 and measured["seconds"] > 0
