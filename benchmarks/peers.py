"""Compare neo_peft with what users would take instead: python -m benchmarks.peers --job ner

In one process and one thread the two sides run in turn (A B A B) on the same batches of real
lengths, at a published GPT-Neo's shape with random weights. Printed are the median of the peer's
seconds over ours with its range, real tokens a second, the share of the machine's own
matrix-product rate, and whether both sides' losses agree; a record is written under
benchmarks/records/.
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
from benchmarks.sides import SHAPES
from neo_peft.commands.flags import argument
from neo_peft.runs.record import commit
from neo_peft.runs.tables import table
from neo_peft.settings import whole

RECORDS = Path(__file__).with_name("records")
BOTH = ("fp32", "bf16")

# Each job's lines: what is compared, and how; goals are the peer's seconds over ours, unless a line
# says otherwise.
JOBS: dict[str, list[tuple[str, Callable]]] = {
    "ner": [("the source", partial(jobs.step, "ner", False, {"fp32": 2.1, "bf16": 2.2}))],
    "ner_careful": [("careful", partial(jobs.step, "ner", True, dict.fromkeys(BOTH, 1.15)))],
    "sentiment": [("the source", partial(jobs.step, "sentiment", False, dict.fromkeys(BOTH, 3.3)))],
    "sentiment_careful": [
        ("careful", partial(jobs.step, "sentiment", True, dict.fromkeys(BOTH, 1.5)))
    ],
    "similarity": [
        ("the source", partial(jobs.step, "similarity", False, dict.fromkeys(BOTH, 3.0)))
    ],
    "similarity_careful": [
        ("careful", partial(jobs.step, "similarity", True, dict.fromkeys(BOTH, 1.3)))
    ],
    "evaluate": [
        ("rank, the source", partial(jobs.evaluation, "rank", False, 8)),
        ("generate, the source", partial(jobs.evaluation, "generate", False, 5)),
        ("rank, careful", partial(jobs.evaluation, "rank", True, 2)),
        ("generate, careful", partial(jobs.evaluation, "generate", True, 1.2)),
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
    "inference": [("over the bare model", jobs.inference)],
    "load": [("over from_pretrained", jobs.load)],
    "encode": [("the source's rows", jobs.encode)],
    "metrics": [("seqeval", jobs.metrics)],
    "layer": [("one projection", jobs.layer)],
}

ON_CPU_IN_FP32 = ("load", "encode", "metrics", "layer")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--job", choices=(*JOBS, "all"), default="all")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape", choices=tuple(SHAPES), default="125m", help="a published GPT-Neo's"
    )
    parser.add_argument(
        "--pairs", type=argument(whole(1)), default=12, help="how often both sides run in turn"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    flags = parser.parse_args(argv)
    at_home = (flags.precision, flags.device) == ("fp32", "cpu")
    if flags.job in ON_CPU_IN_FP32 and not at_home:
        parser.error(f"--job {flags.job} is measured on a CPU in fp32 alone")
    torch.set_num_threads(1)
    found = {}
    every = [name for name in JOBS if at_home or name not in ON_CPU_IN_FP32]
    for name in every if flags.job == "all" else [flags.job]:
        found[name] = [
            {"beside": what, **line}
            for what, measure in JOBS[name]
            for line in listed(measure(vars(flags)))
        ]
        for line in found[name]:
            print(as_text(name, line), file=sys.stderr, flush=True)
    record = {
        "flags": vars(flags),
        "hardware": hardware(flags.device),
        "versions": versions(),
        "commit": commit(),
    }
    record |= {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "jobs": found}
    RECORDS.mkdir(parents=True, exist_ok=True)
    stem = f"{flags.job}-{flags.shape}-{flags.precision}-{flags.device}"
    (RECORDS / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    if flags.json:
        print(json.dumps({name: first(lines) for name, lines in found.items()}))
    else:
        print(table(HEADER, [cells(name, line) for name, lines in found.items() for line in lines]))


def listed(lines: dict | list[dict]) -> list[dict]:
    return lines if isinstance(lines, list) else [lines]


def first(lines: list[dict]) -> dict:
    """Take a job's first line, with the names that `--json` promises, and the others beside it."""
    names = ("ratio", "ratio_min", "ratio_max", "share")
    return {name: lines[0].get(name) for name in names} | {"lines": lines}


HEADER = ("job", "beside", "goal", "ratio", "range", "met", "share", "tokens/s", "losses agree")


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
    what = ", ".join(filter(None, (line["beside"], line.get("measure"))))
    return [name, what, goal, f"{line['ratio']:.3f}", spread, met(line), share, speed, agrees]


def as_text(name: str, line: dict) -> str:
    return "  ".join(filter(None, cells(name, line)))


def met(line: dict) -> str:
    """Say whether a goal is met; a ratio does not count where the losses differ."""
    if line.get("goal") is None:
        return ""
    if "within" in line:
        reached = abs(line["ratio"] - line["goal"]) <= line["within"]
    else:
        reached = (
            line["ratio"] <= line["goal"] if line.get("at_most") else line["ratio"] >= line["goal"]
        )
    return "yes" if reached and line.get("agrees", True) else "no"


def hardware(device: str) -> dict:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    found = {"cpu": names[0] if names else platform.processor(), "cores": len(names)}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def versions() -> dict:
    names = ("torch", "transformers", "peft", "seqeval", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


if __name__ == "__main__":
    main()
