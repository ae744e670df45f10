"""What a run writes as it trains: metrics.jsonl, which holds no clock so that equal runs give equal
files, and timings.jsonl, which does.

A run that goes on cuts both after its checkpoint's step. Of several processes the first alone
writes them.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from neo_peft import processes
from neo_peft.errors import InputError
from neo_peft.loop import Step
from neo_peft.runs.checkpoints import Checkpoint
from neo_peft.runs.folder import METRICS, TIMINGS
from neo_peft.system.files import write_whole


class Log:
    """The two files of a run, open: a line for each step and epoch. One that goes on cuts them
    after its checkpoint."""

    def __init__(self, folder: Path, checkpoint: Checkpoint | None):
        metrics, timings = folder / METRICS, folder / TIMINGS
        self.digest, self.bytes, self.started = hashlib.sha256(), 0, time.monotonic()
        mode = "ab" if checkpoint else "wb"
        if checkpoint:
            self._cut(metrics, timings, checkpoint)
        if processes.process_index:
            metrics = timings = Path(os.devnull)
        self.metrics, self.timings = open(metrics, mode), open(timings, mode)  # noqa: SIM115

    def _cut(self, metrics: Path, timings: Path, checkpoint: Checkpoint) -> None:
        position = checkpoint.record["log"]
        kept = metrics.read_bytes()[: position["bytes"]] if metrics.is_file() else b""
        self._count(kept)
        if self.position_of_bytes() != {name: position.get(name) for name in ("bytes", "sha256")}:
            raise InputError(
                f"{metrics} was changed, or cut short, since {checkpoint.folder} was written"
            )
        times = timings.read_bytes()[: position["timings"]] if timings.is_file() else b""
        self.started -= checkpoint.record["seconds"]
        processes.on_first_process(
            lambda: write_whole(metrics, lambda temporary: temporary.write_bytes(kept))
        )
        processes.on_first_process(
            lambda: write_whole(timings, lambda temporary: temporary.write_bytes(times))
        )

    def _count(self, text: bytes) -> None:
        self.digest.update(text)
        self.bytes += len(text)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self.metrics.close()
        self.timings.close()

    def epoch(self, line: dict) -> None:
        text = (json.dumps(line) + "\n").encode()
        self._count(text)
        self.metrics.write(text)
        self.metrics.flush()

    def step(self, step: Step) -> None:
        line = step._asdict()
        tokens = line.pop("tokens")
        text = (json.dumps(line) + "\n").encode()
        self._count(text)
        self.metrics.write(text)
        seconds = round(time.monotonic() - self.started, 3)
        timing = {"step": step.step, "seconds": seconds, "tokens": tokens}
        self.timings.write((json.dumps(timing) + "\n").encode())

    def position(self) -> dict:
        """Put what was written onto the disk, and say how much that is, for a checkpoint."""
        for file in (self.metrics, self.timings):
            file.flush()
            if not processes.process_index:
                os.fsync(file.fileno())
        return self.position_of_bytes() | {"timings": self.timings.tell()}

    def position_of_bytes(self) -> dict:
        return {"bytes": self.bytes, "sha256": self.digest.hexdigest()}
