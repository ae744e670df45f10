"""Run commands in separate processes, which a test can kill."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import safetensors.torch  # noqa: F401
from tqdm import tqdm
from transformers import AutoTokenizer  # noqa: F401

import train
from neo_peft.system import signals as stopping
from neo_peft.system.exit_status import exit_status

SMALL = [
    "--threads",
    "1",
    "--train-limit",
    "24",
    "--eval-limit",
    "10",
    "--epochs",
    "3",
    "--checkpoint-every",
    "2",
]

# The entries of run.json that differ between two equal runs.
VARYING = ("seconds", "finished", "memory", "sha256")


def start(argv, before=lambda: None, main=train.main) -> int:
    """Start `python train.py ARGV`, or another command, in a new process; return the process id."""
    if process := os.fork():
        return process
    status = 1
    try:
        sys.stdout, sys.stderr = (open(name, "w") for name in ("stdout", "stderr"))  # noqa: SIM115
        # tqdm's own lock is shared by all forks: a process that is killed never releases it
        tqdm.set_lock(threading.RLock())
        stopping.listen()
        before()
        status = exit_status(lambda: main(argv))
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(process: int) -> int:
    """Wait for a process; return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def computed_for(process: int) -> float:
    """Return the seconds of CPU time of a process (its clock is that of clock_getcpuclockid(3)).

    With wall time, other load on the machine could move all kills to before the first checkpoint,
    or to after the end of the run.
    """
    return time.clock_gettime(~process << 3 | 2)


def computed_until_end(process: int) -> float:
    """Wait for a process, which must succeed. Return the seconds of its CPU time."""
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    seconds = computed_for(process)
    assert end(process) == 0, Path("stderr").read_text()
    return seconds


def killed_when(process: int, happened: Callable[[], bool]) -> bool:
    """Kill a process when this has happened. Return False if it ended before."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not happened() and not os.waitid(os.P_PID, process, ended):
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return end(process) == -signal.SIGKILL


def killed_after(process: int, seconds: float) -> bool:
    """Kill a process after this CPU time. Return False if it ended before."""
    return killed_when(process, lambda: computed_for(process) >= seconds)


def result(folder: Path) -> dict:
    """Return the contents of a run's files, without the entries that vary."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    content = {name: (folder / name).read_bytes() for name in names - {"run.json", "timings.jsonl"}}
    record = json.loads((folder / "run.json").read_text())
    content["run.json"] = {name: value for name, value in record.items() if name not in VARYING}
    content["run.json"]["files"].pop("timings.jsonl")
    content["timings.jsonl"] = [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in ("seconds", "cpu_seconds")
        }
        for line in (folder / "timings.jsonl").read_text().splitlines()
    ]
    return content


def resumed(name: str, expected: dict, argv: list | None = None) -> None:
    """Resume a run to its end and assert that its files are the expected ones.

    A run that was killed before it wrote its settings is started again with `argv`.
    """
    can_resume = argv is None or Path(name, "settings.json").exists()
    assert end(start(["--resume", name] if can_resume else [*argv, "--out", name])) == 0, Path(
        "stderr"
    ).read_text()
    actual = result(Path(name))
    assert actual.keys() == expected.keys()
    for file in expected:
        assert actual[file] == expected[file], file
