"""A run that is killed at any moment and resumed has bit for bit the result of a run that is not.

The tests kill real processes. These are forked after all imports, including those that a run makes
late, to save time. Slow are all but one method and the kill at the first checkpoint. NEO_PEFT_KILLS
is the number of other kills for each method, 3 by default.
"""

import os
import shutil
import signal
from functools import partial
from glob import glob
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
from killing import (
    SMALL,
    computed_until_end,
    end,
    killed_after,
    killed_when,
    result,
    resumed,
    start,
)
from repeats import first_quick
from transformers import AutoTokenizer  # noqa: F401

from neo_peft.runs import checkpoints, training

KILLS = int(os.environ.get("NEO_PEFT_KILLS", 3))
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
        "--eval-every",
        "3",
    ],
    "prompt": ["--task", "sentiment", "--batch-size", "5", "--generate", "--patience", "1"],
    "prefix": ["--task", "ner", "--batch-size", "4", "--prompt-init", "random"],
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
        "--quantize",
        "nf4",
    ],
}


@pytest.fixture(scope="module", params=first_quick(RUNS))
def finished(request, drawn_curves, tiny_folder, tmp_path_factory):
    """Return the flags, the result and the seconds of CPU time of a run that nothing stops."""
    argv = ["--method", request.param, "--model", str(tiny_folder), *RUNS[request.param], *SMALL]
    folder = tmp_path_factory.mktemp("finished")
    os.chdir(folder)
    seconds = computed_until_end(start([*argv, "--out", "run"]))
    return argv, result(folder / "run"), seconds


@pytest.mark.parametrize("kills", first_quick([0, KILLS]))
def test_a_run_that_is_killed_at_any_moment_has_the_same_result(finished, tmp_path, kills):
    argv, expected, seconds = finished
    for number in range(kills):  # also before the first checkpoint
        killed_after(start([*argv, "--out", "run"]), seconds * (number + 0.75) / kills)
        resumed("run", expected, argv)
        shutil.rmtree("run")
    checkpoints_of_run = partial(glob, "run/checkpoints/step-*")
    while not killed_when(start([*argv, "--out", "run"]), checkpoints_of_run):
        shutil.rmtree("run")  # it ended before it was killed
    resumed("run", expected, argv)


def kill_at_call(function: str, call: int, kill_before: bool, kill_after: bool):
    """Return a patch of a function of os. It kills the process before or after call number `call`,
    and writes the number of calls to a file."""

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


WRITES = [("fsync", False), ("replace", False), ("replace", True)]
FIRST, *OTHERS = RUNS
# The first method is killed at all of them, each other method at one.
KILLED_WRITES = [pytest.param(FIRST, *write) for write in WRITES] + [
    pytest.param(name, *WRITES[index % len(WRITES)], marks=pytest.mark.slow)
    for index, name in enumerate(OTHERS)
]


@pytest.mark.parametrize(("finished", "function", "after"), KILLED_WRITES, indirect=["finished"])
def test_a_run_that_is_killed_while_it_writes_has_the_same_result(
    finished, tmp_path, function, after
):
    """Kill it before a file is on the disk, before the file gets its final name, or right after.
    The kills are spread evenly over all writes of the run."""
    argv, expected, _ = finished
    assert end(start([*argv, "--out", "run"], kill_at_call(function, 0, False, False))) == 0
    calls, kills = int(Path(f"calls of {function}").read_text()), max(1, KILLS // 3)
    print(f"killed {'after' if after else 'before'} {kills} of {calls} calls of {function}")
    shift = {("fsync", False): 0.2, ("replace", False): 0.5, ("replace", True): 0.8}[
        function, after
    ]
    for number in range(kills):
        shutil.rmtree("run")
        call = 1 + int(calls * (number + shift) / kills)
        assert (
            end(start([*argv, "--out", "run"], kill_at_call(function, call, not after, after)))
            == -signal.SIGKILL
        )
        resumed("run", expected, argv)
        assert not [path for path in Path("run").rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("finished", ["lora"], indirect=True)
@pytest.mark.parametrize(
    ("function", "call", "left"),
    [
        ("fsync", 1, []),
        ("fsync", 2, [".settings.json.tmp"]),
        ("replace", 1, [".settings.json.tmp"]),
    ],
)
def test_a_run_that_is_killed_in_its_first_write_can_start_again_in_its_folder(
    finished, tmp_path, function, call, left
):
    argv, expected, _ = finished
    assert (
        end(start([*argv, "--out", "run"], kill_at_call(function, call, True, False)))
        == -signal.SIGKILL
    )
    assert [path.name.rstrip("0123456789") for path in Path("run").iterdir()] == left
    resumed("run", expected, argv)


@pytest.mark.parametrize("finished", ["lora"], indirect=True)
@pytest.mark.parametrize(
    ("number", "status", "steps"),
    [  # the first step, the last one of an epoch, and one inside an epoch
        (signal.SIGTERM, 143, [1, 5]),
        (signal.SIGINT, 130, [4]),
        pytest.param(signal.SIGTERM, 143, [4], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, [1, 5], marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_run_after_it_wrote_a_checkpoint(
    finished, tmp_path, number, status, steps
):
    argv, expected, _ = finished
    for step in steps:

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
        resumed(name, expected)
