"""Test and measure everything that needs a GPU, in at most eight minutes: python -m benchmarks.gpu

Each part is a process of its own. A part that fails, or for which no time is left, is named in the
record, and the others still run:

tests       tests/test_gpu.py: losses, predictions, resuming, quantised bases, compared with a CPU
steps       for each shape and task: the training step of train.py compared with both peers (see
            sides.py): seconds, tokens per second, share of the GPU's rate in matrix products, and
            peak memory with the weights
evaluation  predicting labels, compared with the careful peer
compile     the training step with torch.compile of each block, compared with the plain one

Prints a line for each part, and writes a record in benchmarks/records/.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import jobs, peers
from benchmarks.measure import alternate, peak_memory
from benchmarks.sides import SHAPES, Job, Ours, Peer, as_batches
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.errors import InputError
from neo_peft.runs.record import commit
from neo_peft.settings import whole
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import write_json

ROOT = Path(__file__).parents[1]
TASKS = ("ner", "sentiment")  # LoRA and a soft prompt


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["125m", "1.3b"])
    parser.add_argument("--pairs", type=argument(whole(1)), default=10, help="default: 10")
    parser.add_argument("--seconds", type=argument(whole(1)), default=480, help="default: 480")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--part", help="measure one part, in this process, and print its JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU here that torch can use")
    parts = parts_of(flags)
    if flags.part:
        print(json.dumps(parts[flags.part]()))
        return
    given, started, results = argv if argv is not None else sys.argv[1:], time.monotonic(), {}
    for name in parts:
        results[name] = run_part(name, given, flags.seconds - (time.monotonic() - started))
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    record = {
        "flags": vars(flags),
        "hardware": peers.hardware(flags.device),
        "versions": peers.versions(),
        "commit": commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started),
        "parts": results,
    }
    name = record["hardware"].get("gpu", "cpu")
    path = peers.RECORDS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def parts_of(flags: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Return the function of each part, by its name, in the order in which they run."""
    parts: dict[str, Callable[[], dict]] = {"tests": gpu_tests}
    for shape in flags.shapes:
        at = {**vars(flags), "shape": shape}
        for task in TASKS:
            parts[f"steps {shape} {task}"] = lambda at=at, task=task: steps(task, at)
        parts[f"evaluation {shape}"] = lambda at=at: jobs.evaluation("labels", True, None, at)
        parts[f"compile {shape}"] = lambda at=at: compiling(at)
    return parts


def run_part(name: str, argv: list[str], seconds: float) -> dict:
    """Return what a part prints as JSON, from a process of its own, or why there is nothing."""
    if seconds <= 0:
        return {"failed": "no time was left"}
    command = [sys.executable, "-m", "benchmarks.gpu", *argv, "--part", name]
    try:
        ended = subprocess.run(command, cwd=ROOT, timeout=seconds, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after the {seconds:.0f} seconds that were left"}
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["without a message"]
        return {"failed": f"exit status {ended.returncode}: {lines[-1]}"}
    return json.loads(ended.stdout.splitlines()[-1])


# ---- The parts


def gpu_tests() -> dict:
    """Return how many tests passed and were skipped, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest.main(["-q", str(ROOT / "tests/test_gpu.py"), f"--junit-xml={report}"])
        return counts(report)


def counts(report: Path) -> dict:
    """Return the numbers in pytest's JUnit report, and the names of the tests that failed."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    failed = [
        case.get("name")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"passed": total - skipped - len(failed), "skipped": skipped, "failures": failed}


def steps(task: str, at: dict) -> dict:
    """Compare our training step with that of each peer."""
    lines = {}
    for name, careful in (("the source", False), ("careful", True)):
        job = Job(task, at["shape"], at["precision"], at["device"], grouped=careful)
        lines[name] = jobs.against(job, Peer(job, careful), at)
        lines[name] |= {"bytes": peak(job, Ours), "peers_bytes": peak(job, Peer, careful)}
    return lines


def peak(job: Job, make_side: Callable[..., Callable], *given: object) -> int:
    """Return the peak bytes of a side: its weights, and two steps on the largest batch."""
    lengths = np.diff(job.examples.starts)
    largest = max(job.order(16), key=lambda chosen: lengths[chosen].sum())

    def two_steps() -> None:
        side = make_side(job, *given)
        for _ in range(2):
            side(largest)

    return peak_memory(two_steps, job.device)


def compiling(at: dict) -> dict:
    """Compare the training step with compiled blocks with the plain one. `ratio` is the plain one's
    seconds over the compiled one's."""
    job = Job("ner", at["shape"], at["precision"], at["device"])
    plain, compiled = Ours(job), Ours(job)
    for block in compiled.model.transformer.h:
        block.compile(backend=at["backend"], dynamic=True)
    batch = job.order(1)[0]
    started = time.monotonic()
    losses = [compiled.plain_loss(batch), plain.plain_loss(batch)]
    seconds = time.monotonic() - started
    sides = [as_batches(job, side, at["pairs"]) for side in (compiled, plain)]
    times = alternate(*sides, at["pairs"], 2, job.device)
    tolerance = jobs.TOLERANCE[job.precision] * max(1, abs(losses[1]))
    return {
        **jobs.compared(times, None),
        "seconds_to_compile": seconds,
        "agrees": abs(losses[0] - losses[1]) <= tolerance,
    }


if __name__ == "__main__":
    sys.exit(exit_status(main))
