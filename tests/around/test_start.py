"""The benchmark of a command's start."""

import os
import subprocess

import pytest

from benchmarks import start


def test_the_ratios_are_of_the_cpu_seconds_up_to_the_first_bar_and_the_first_step(
    monkeypatch, capsys
):
    marks = iter([{"first bar": 3.0, "first step": 8.0}, {"first bar": 1.0, "first step": 2.0}])
    monkeypatch.setattr(start, "COMMANDS", ("--task ner",))
    monkeypatch.setattr(start, "import_torch", lambda: 2.0)
    monkeypatch.setattr(start, "start", lambda command: next(marks))
    monkeypatch.setattr("sys.argv", ["start", "--pairs", "2"])
    start.main()
    _, _, bar, step = capsys.readouterr().out.splitlines()
    assert bar.split() == ["--task", "ner", "first", "bar", "1.5", "1.00", "0.50", "to", "1.50"]
    assert step.split()[-5:] == ["3.0", "2.50", "1.00", "to", "4.00"]


def test_a_process_ends_at_its_first_step_and_has_used_more_seconds_by_then(monkeypatch):
    """The bars before it do not count, and neither do steps of a head that trains alone."""
    limits = "--train-limit 40 --eval-limit 4"
    marks = start.start(f"--task ner --method lora {limits}")
    assert 0 < marks["first bar"] < marks["first step"]


def test_cpu_seconds_are_those_of_the_process(monkeypatch):
    before = start.cpu_seconds()
    while sum(os.times()[:2]) < before + 0.2:
        pass
    assert start.cpu_seconds() - before == pytest.approx(0.2, abs=0.1)
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command[1:]))
    assert start.import_torch() == 0 and calls == [["-c", "import torch"]]
