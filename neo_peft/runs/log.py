"""What a run writes as it trains: metrics.jsonl, which holds no clock so that equal runs give equal
files, and timings.jsonl, which does.

A run that goes on cuts both after its checkpoint's step. Of several processes the first alone
writes them.
"""

import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

from neo_peft import processes
from neo_peft.errors import InputError
from neo_peft.loop import Step
from neo_peft.runs.checkpoints import Checkpoint
from neo_peft.runs.folder import METRICS, TIMINGS
from neo_peft.system.files import sha256, write_whole


class Log:
    """The two files of a run, open: a line for each step and epoch. One that goes on cuts them
    after its checkpoint."""

    def __init__(self, folder: Path, checkpoint: Checkpoint | None):
        paths, self.started = [folder / METRICS, folder / TIMINGS], time.monotonic()
        if checkpoint:
            self.started -= checkpoint.record["seconds"]
            processes.on_first_process(lambda: cut(*paths, checkpoint))
        if processes.process_index:
            paths = [os.devnull, os.devnull]
        mode = "ab" if checkpoint else "wb"
        self.metrics, self.timings = (open(path, mode) for path in paths)  # noqa: SIM115

    def close(self) -> None:
        self.metrics.close()
        self.timings.close()

    def epoch(self, line: dict) -> None:
        self.metrics.write(as_line(line))
        self.metrics.flush()

    def step(self, step: Step) -> None:
        line = step._asdict()
        timing = {
            "step": step.step,
            "seconds": round(time.monotonic() - self.started, 3),
            "tokens": line.pop("tokens"),
        }
        self.metrics.write(as_line(line))
        self.timings.write(as_line(timing))

    def position(self) -> dict:
        """Put what was written onto the disk, and say how much that is, for a checkpoint."""
        for file in (self.metrics, self.timings):
            file.flush()
            if not processes.process_index:
                os.fsync(file.fileno())
        return {
            "bytes": self.metrics.tell(),
            "sha256": sha256(Path(self.metrics.name)),
            "timings": self.timings.tell(),
        }


def cut(metrics: Path, timings: Path, checkpoint: Checkpoint) -> None:
    """Cut both files to what they held when a checkpoint was written."""
    log = checkpoint.record["log"]
    for path, size in ((metrics, log["bytes"]), (timings, log["timings"])):
        kept = path.read_bytes()[:size] if path.is_file() else b""
        if path == metrics and hashlib.sha256(kept).hexdigest() != log.get("sha256"):
            raise InputError(
                f"{path} was changed, or cut short, since {checkpoint.folder} was written"
            )
        write_whole(path, partial(Path.write_bytes, data=kept))


def as_line(value: dict) -> bytes:
    return (json.dumps(value) + "\n").encode()
