"""Compare neo_peft with what users would use instead: python -m benchmarks.peers --job ner

The two sides run in turn (A B A B), in one process and one thread, on the same batches of real
lengths. The model has the shape of neo-mini or of a published GPT-Neo, and random weights. The
table has

  ratio          the peer's seconds over ours: the median over the pairs, and the range
  share          the step's rate of floating point operations over the machine's rate in matrix
                 products
  tokens/s       tokens of our step per second, padding not counted
  agree          whether both sides have the same loss or, of the job `command`, the same scores
                 within chance after the same work

A record is written in benchmarks/records/.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import jobs
from benchmarks.command import command
from benchmarks.sides import SHAPES
from neo_peft.commands.flags import argument
from neo_peft.defaults import BUNDLED_MODEL
from neo_peft.runs.record import commit
from neo_peft.runs.tables import table
from neo_peft.settings import whole

RECORDS = Path(__file__).with_name("records")
BOTH = ("fp32", "bf16")
MINI = {BUNDLED_MODEL: 1.3}

# For each job: what we compare with, and the function that measures it. A goal is for the peer's
# seconds over ours, except where a line has "at_most" or "within".
JOBS: dict[str, list[tuple[str, Callable]]] = {
    "ner": [("the source", partial(jobs.step, "ner", False, {"fp32": 2.1, "bf16": 2.2}))],
    "ner_careful": [("careful", partial(jobs.step, "ner", True, dict.fromkeys(BOTH, 1.15) | MINI))],
    "sentiment": [("the source", partial(jobs.step, "sentiment", False, dict.fromkeys(BOTH, 3.3)))],
    "sentiment_careful": [
        ("careful", partial(jobs.step, "sentiment", True, dict.fromkeys(BOTH, 1.5) | MINI))
    ],
    "similarity": [
        ("the source", partial(jobs.step, "similarity", False, dict.fromkeys(BOTH, 3.0)))
    ],
    "similarity_careful": [
        ("careful", partial(jobs.step, "similarity", True, dict.fromkeys(BOTH, 1.4) | MINI))
    ],
    "evaluate": [
        ("labels scored, the source", partial(jobs.evaluation, "labels", False, 8)),
        ("generated, the source", partial(jobs.evaluation, "generate", False, 5)),
        ("labels scored, careful", partial(jobs.evaluation, "labels", True, 2)),
        ("generated, careful", partial(jobs.evaluation, "generate", True, 2)),
    ],
    "memory": [
        (
            f"{task}, {'careful' if careful else 'the source'}",
            partial(jobs.memory, task, careful, goal),
        )
        for task in ("ner", "sentiment", "similarity")
        for careful, goal in ((False, 0.45), (True, 0.7))
    ],
    "methods": [
        ("lora over full", partial(jobs.methods, "lora", (0.75, 0.6, 0.01))),
        ("prompt over full", partial(jobs.methods, "prompt", (0.75, 0.6, 0.01))),
    ],
    "checkpoint": [
        (f"{task} with over without", partial(jobs.checkpointing, task))
        for task in ("ner", "sentiment")
    ],
    "inference": [("over the untuned base", jobs.inference)],
    "command": [(f"whole runs, {task}", partial(command, task)) for task in ("ner", "sentiment")],
    "load": [("over from_pretrained", jobs.load)],
    "encode": [("the source's rows", jobs.encode)],
    "metrics": [("seqeval", jobs.metrics)],
    "layer": [("one projection", jobs.layer)],
}

ON_CPU_IN_FP32 = ("command", "load", "encode", "metrics", "layer")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--job", choices=(*JOBS, "all"), default="all")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape",
        choices=(BUNDLED_MODEL, *SHAPES),
        default="125m",
        help="that of the bundled model, or of a published GPT-Neo",
    )
    parser.add_argument(
        "--pairs",
        type=argument(whole(1)),
        help="number of times that each side runs (default: 12; 2 of --job command)",
    )
    parser.add_argument(
        "--epochs",
        type=argument(whole(1)),
        help="epochs of --job command (default: those of train.py)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    flags = parser.parse_args(argv)
    on_cpu_in_fp32 = (flags.precision, flags.device) == ("fp32", "cpu")
    if flags.job in ON_CPU_IN_FP32 and not on_cpu_in_fp32:
        parser.error(f"--job {flags.job} is only measured with --device cpu --precision fp32")
    torch.set_num_threads(1)
    results = {}
    all_jobs = [name for name in JOBS if on_cpu_in_fp32 or name not in ON_CPU_IN_FP32]
    for name in all_jobs if flags.job == "all" else [flags.job]:
        results[name] = [
            {"beside": line.get("peer", peer), **line}
            for peer, measure in JOBS[name]
            for line in as_list(measure(vars(flags) | {"pairs": pairs_of(name, flags.pairs)}))
        ]
        for line in results[name]:
            print(as_text(name, line), file=sys.stderr, flush=True)
    record = {
        "flags": vars(flags),
        "hardware": hardware(flags.device),
        "versions": versions(),
        "commit": commit(),
    }
    record |= {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "jobs": results}
    RECORDS.mkdir(parents=True, exist_ok=True)
    shape = BUNDLED_MODEL if flags.job == "command" else flags.shape
    stem = f"{flags.job}-{shape}-{flags.precision}-{flags.device}"
    (RECORDS / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    if flags.json:
        print(json.dumps({name: with_headline(lines) for name, lines in results.items()}))
    else:
        print(
            table(HEADER, [cells(name, line) for name, lines in results.items() for line in lines])
        )


def pairs_of(job: str, pairs: int | None) -> int:
    """Return how often each side of a job runs. A whole run takes minutes."""
    return pairs or (2 if job == "command" else 12)


def as_list(lines: dict | list[dict]) -> list[dict]:
    return lines if isinstance(lines, list) else [lines]


def with_headline(lines: list[dict]) -> dict:
    """Return what `--json` prints for a job: the main fields of its first line, and all lines."""
    names = ("ratio", "ratio_min", "ratio_max", "share")
    return {name: lines[0].get(name) for name in names} | {"lines": lines}


HEADER = ("job", "compared with", "goal", "ratio", "range", "met", "share", "tokens/s", "agree")


def cells(name: str, line: dict) -> list[str]:
    sign = (
        f"± {line['within']:g}"
        if "within" in line
        else "at most"
        if line.get("at_most")
        else "at least"
    )
    goal = "" if line.get("goal") is None else f"{line['goal']:g} {sign}"
    spread = f"{line['ratio_min']:.2f}–{line['ratio_max']:.2f}" if "ratio_min" in line else ""
    share = f"{line['share']:.2f}" if "share" in line else ""
    speed = f"{line['tokens_per_second']:,.0f}" if "tokens_per_second" in line else ""
    agrees = {True: "yes", False: "NO"}.get(line.get("agrees"), "")
    peer = ", ".join(filter(None, (line["beside"], line.get("measure"))))
    return [name, peer, goal, f"{line['ratio']:.3f}", spread, met(line), share, speed, agrees]


def as_text(name: str, line: dict) -> str:
    return "  ".join(filter(None, [*cells(name, line), line.get("note")]))


def met(line: dict) -> str:
    """Return "yes" or "no": whether a line's goal is met. The worse end of the range decides. It is
    not met where the sides do not agree. Return "" without a goal."""
    if line.get("goal") is None:
        return ""
    if "within" in line:
        reached = abs(line["ratio"] - line["goal"]) <= line["within"]
    elif line.get("at_most"):
        reached = line.get("ratio_max", line["ratio"]) <= line["goal"]
    else:
        reached = line.get("ratio_min", line["ratio"]) >= line["goal"]
    return "yes" if reached and line.get("agrees", True) else "no"


def hardware(device: str) -> dict:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    cpu = {"cpu": names[0] if names else platform.processor(), "cores": len(names)}
    return cpu | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def versions() -> dict:
    names = ("torch", "transformers", "peft", "seqeval", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


if __name__ == "__main__":
    main()
