"""The two logs of a run: metrics.jsonl, and timings.jsonl.

metrics.jsonl contains no times, so that equal runs give equal files; timings.jsonl has them. Its
"cpu_seconds" are the user and system time of the process since training began, with the scoring of
validation after each epoch. A resumed run first cuts off the lines after its checkpoint, and counts
on from the last one left. Of several processes only the first one writes.
"""

import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.loop import Step
from neo_peft.runs.checkpoints import Checkpoint
from neo_peft.runs.folder import METRICS, TIMINGS
from neo_peft.system import processes
from neo_peft.system.files import sha256, write_whole


class Log:
    """The two open log files. metrics.jsonl gets a line for each step and each scoring of
    validation, timings.jsonl for each step."""

    def __init__(self, folder: Path, checkpoint: Checkpoint | None):
        paths, self.started = [folder / METRICS, folder / TIMINGS], time.monotonic()
        self.cpu_started = time.process_time()
        if checkpoint:
            self.started -= checkpoint.record["seconds"]
            processes.on_first_process(lambda: cut_after(checkpoint, *paths))
            self.cpu_started -= cpu_seconds(paths[1]) or 0.0
        if processes.process_index:
            paths = [os.devnull, os.devnull]
        mode = "ab" if checkpoint else "wb"
        self.metrics, self.timings = (open(path, mode) for path in paths)  # noqa: SIM115

    def close(self) -> None:
        self.metrics.close()
        self.timings.close()

    def scoring(self, line: dict) -> None:
        self.metrics.write(json_line(line))
        self.metrics.flush()

    def step(self, step: Step) -> None:
        line = step._asdict()
        timing = {
            "step": step.step,
            "seconds": round(time.monotonic() - self.started, 3),
            "tokens": line.pop("tokens"),
            "cpu_seconds": round(time.process_time() - self.cpu_started, 3),
        }
        self.metrics.write(json_line(line))
        self.timings.write(json_line(timing))

    def position(self) -> dict:
        """Write all lines to the disk. Return the lengths of the files and the hash of
        metrics.jsonl, for a checkpoint."""
        for file in (self.metrics, self.timings):
            file.flush()
            if not processes.process_index:
                os.fsync(file.fileno())
        return {
            "bytes": self.metrics.tell(),
            "sha256": sha256(Path(self.metrics.name)),
            "timings": self.timings.tell(),
        }


def cut_after(checkpoint: Checkpoint, metrics: Path, timings: Path) -> None:
    """Remove the lines that were written after a checkpoint from both files."""
    log = checkpoint.record["log"]
    for path, size in ((metrics, log["bytes"]), (timings, log["timings"])):
        content = path.read_bytes()[:size] if path.is_file() else b""
        if path == metrics and hashlib.sha256(content).hexdigest() != log.get("sha256"):
            raise InputError(
                f"{path} was changed, or cut short, since {checkpoint.folder} was written"
            )
        write_whole(path, partial(Path.write_bytes, data=content))


def cpu_seconds(timings: Path) -> float | None:
    """Return the CPU seconds of training in a timings.jsonl, up to its last step; None for a run of
    an older version."""
    lines = timings.read_text(encoding="utf-8").splitlines() if timings.is_file() else []
    return json.loads(lines[-1]).get("cpu_seconds") if lines else None


def json_line(value: dict) -> bytes:
    return (json.dumps(value) + "\n").encode()
