"""Runs in processes of their own, which a test may kill."""

import json
import os
import sys
import threading
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

CLOCK = ("seconds", "finished", "memory", "sha256")


def start(argv, before=lambda: None, main=train.main) -> int:
    """Begin `python train.py ARGV`, or another command, in a process of its own, and return the
    process's number."""
    if process := os.fork():
        return process
    status = 1
    try:
        sys.stdout, sys.stderr = (open(name, "w") for name in ("stdout", "stderr"))  # noqa: SIM115
        # tqdm's own is shared by all forks: one that is killed holds it for ever
        tqdm.set_lock(threading.RLock())
        stopping.listen()
        before()
        status = exit_status(lambda: main(argv))
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(process: int) -> int:
    """Wait for a process's end; return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def result(folder: Path) -> dict:
    """Read all that a run has left but its clocks."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    content = {name: (folder / name).read_bytes() for name in names - {"run.json", "timings.jsonl"}}
    record = json.loads((folder / "run.json").read_text())
    content["run.json"] = {name: value for name, value in record.items() if name not in CLOCK}
    content["run.json"]["files"].pop("timings.jsonl")
    content["timings.jsonl"] = [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in (folder / "timings.jsonl").read_text().splitlines()
    ]
    return content


def resumed(name: str, expected: dict, argv: list | None = None) -> None:
    """Go on with a run, or begin it anew by `argv` where it was killed before it had its settings;
    compare its bits."""
    begun = argv is None or Path(name, "settings.json").exists()
    assert end(start(["--resume", name] if begun else [*argv, "--out", name])) == 0, Path(
        "stderr"
    ).read_text()
    found = result(Path(name))
    assert found.keys() == expected.keys()
    for file in expected:
        assert found[file] == expected[file], file
