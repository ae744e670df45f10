"""A run that was killed at any moment and resumed ends in the same bits as one that was not. Real
processes are killed.

They are forked after all imports, those that a run puts off too, to be quick. NEO_PEFT_KILLS is how
often each method's run is killed, 5 unless set.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
from killing import SMALL, end, result, resumed, start
from transformers import AutoTokenizer  # noqa: F401

from neo_peft.runs import checkpoints, training

KILLS = int(os.environ.get("NEO_PEFT_KILLS", 5))
RUNS = {
    "lora": [
        "--task",
        "ner",
        "--dropout",
        "0.2",
        "--batch-size",
        "3",
        "--gradient-accumulation",
        "2",
    ],
    "prompt": ["--task", "sentiment", "--batch-size", "5", "--generate"],
    "full": [
        "--task",
        "similarity",
        "--batch-size",
        "4",
        "--precision",
        "fp16",
        "--warmup-ratio",
        "0.3",
    ],
    "head": [
        "--task",
        "sentiment",
        "--batch-size",
        "6",
        "--precision",
        "fp16",
        "--learning-rate",
        "0.1",
    ],
    "lora+prompt": [
        "--task",
        "ner",
        "--batch-size",
        "4",
        "--dropout",
        "0.1",
        "--head-dropout",
        "0.3",
        "--keep",
        "last",
    ],
}


def computed_for(process: int) -> float:
    """Say how many seconds a process has computed, by the clock that clock_getcpuclockid(3) names
    for it: other load on the machine moves a wall's clock, and with it all kills to before the
    first checkpoint, or behind the end."""
    return time.clock_gettime(~process << 3 | 2)


def killed_after(process: int, seconds: float) -> bool:
    """Kill a process once it has computed for so long; say whether it had not ended before."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while computed_for(process) < seconds and not os.waitid(os.P_PID, process, ended):
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return end(process) == -signal.SIGKILL


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tiny_folder, tmp_path_factory):
    """A run that nothing stops: its flags, what it has left, and how many seconds it computed."""
    argv = ["--method", request.param, "--model", str(tiny_folder), *RUNS[request.param], *SMALL]
    folder = tmp_path_factory.mktemp("whole")
    os.chdir(folder)
    run = start([*argv, "--out", "run"])
    os.waitid(os.P_PID, run, os.WEXITED | os.WNOWAIT)
    seconds = computed_for(run)
    assert end(run) == 0, Path("stderr").read_text()
    return argv, result(folder / "run"), seconds


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_bits(whole, tmp_path):
    argv, expected, seconds = whole
    moments = [seconds * (number + 0.5) / KILLS for number in range(KILLS)]
    killed, reached = 0, []
    for moment in moments:
        killed += killed_after(start([*argv, "--out", "run"]), moment)
        reached.append(len(list(Path("run").glob("checkpoints/step-*"))))
        resumed("run", expected, argv)
        shutil.rmtree("run")
    print(
        f"{killed} of {KILLS} killed within {seconds:.1f} seconds, {sum(map(bool, reached))} after "
        "a checkpoint"
    )
    assert any(reached), "no kill came after a checkpoint"


def at_call(function: str, call: int, kill_before: bool, kill_after: bool):
    """Make what replaces a function of os by one that kills the process at its so-manyth call, or
    counts its calls."""

    def patch() -> None:
        real, calls = getattr(os, function), 0

        def counted(*args, **named):
            nonlocal calls
            if (calls := calls + 1) == call and kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            value = real(*args, **named)
            if calls == call and kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            Path(f"calls of {function}").write_text(str(calls))
            return value

        setattr(os, function, counted)

    return patch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "after"), [("fsync", False), ("replace", False), ("replace", True)]
)
def test_a_run_that_is_killed_inside_a_write_ends_in_the_same_bits(
    whole, tmp_path, function, after
):
    """Before a file is on the disk, between that and its new name, and right after it; evenly over
    a run's writes."""
    argv, expected, _ = whole
    assert end(start([*argv, "--out", "run"], at_call(function, 0, False, False))) == 0
    calls, kills = int(Path(f"calls of {function}").read_text()), max(1, KILLS // 3)
    print(f"{kills} of {calls} calls of {function} killed {'after' if after else 'before'} it")
    shift = {("fsync", False): 0.2, ("replace", False): 0.5, ("replace", True): 0.8}[
        function, after
    ]
    for number in range(kills):
        shutil.rmtree("run")
        call = 1 + int(calls * (number + shift) / kills)
        assert (
            end(start([*argv, "--out", "run"], at_call(function, call, not after, after)))
            == -signal.SIGKILL
        )
        resumed("run", expected, argv)
        assert not [path for path in Path("run").rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize(
    ("function", "call", "left"),
    [
        ("fsync", 1, []),
        ("fsync", 2, [".settings.json.tmp"]),
        ("replace", 1, [".settings.json.tmp"]),
    ],
)
def test_a_run_that_is_killed_inside_its_first_write_is_begun_anew_in_its_folder(
    tiny_folder, tmp_path, function, call, left
):
    argv = ["--method", "head", "--model", str(tiny_folder), *RUNS["head"], *SMALL]
    assert end(start([*argv, "--out", "whole"])) == 0, Path("stderr").read_text()
    assert (
        end(start([*argv, "--out", "run"], at_call(function, call, True, False))) == -signal.SIGKILL
    )
    assert [path.name.rstrip("0123456789") for path in Path("run").iterdir()] == left
    resumed("run", result(Path("whole")), argv)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_obeyed_after_a_checkpoint(tiny_folder, tmp_path, number, status):
    argv = ["--method", "lora", "--model", str(tiny_folder), *RUNS["lora"], *SMALL]
    assert end(start([*argv, "--out", "whole"])) == 0
    for step in (1, 4, 5):  # the first, the end of an epoch, and one inside of one

        def stop_after(step=step) -> None:
            real = training.Log.step

            def stopping_at(log, taken):
                real(log, taken)
                if taken.step == step:
                    os.kill(os.getpid(), number)

            training.Log.step = stopping_at

        name = f"stopped-{step}"
        assert end(start([*argv, "--out", name], stop_after)) == status
        assert (
            Path("stderr").read_text().splitlines()[-1]
            == f"stopped; resume it: python -m neo_peft train --resume {name}"
        )
        assert checkpoints.newest_checkpoint(Path(name)).record["step"] == step
        resumed(name, result(Path("whole")))
