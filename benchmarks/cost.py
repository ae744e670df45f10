"""Compare what `train.py --dry-run` predicts with what the run takes: python -m benchmarks.cost

For each of ten short runs it starts `train.py --dry-run --json`, and then the run itself, as
processes of their own on one thread. Compared are the resident memory at the peak, and the
processor's seconds of the whole process: those until the dry run has loaded everything, and the
predicted ones from there on. The base "125m" has random weights, in the shape of GPT-Neo 125M.
Prints a table and writes a record. It takes five to ten minutes and 3 GB of memory.
"""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.random_base import write_base
from benchmarks.sides import SHAPES
from neo_peft.commands.flags import OneLineParser
from neo_peft.runs.tables import table
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import write_json

ROOT = Path(__file__).parents[1]
GOALS = {"memory": 0.2, "seconds": 0.25}  # largest share by which a prediction may be wrong
LARGE = "--epochs 1 --train-limit 48 --eval-limit 16"  # of the runs on 125m
# (base, flags of train.py). Large and small ones in turn.
RUNS = (
    ("neo-mini", "--task ner --method lora --epochs 3"),
    ("125m", f"--task ner --method lora --rank 16 --dropout 0.1 {LARGE}"),
    ("neo-mini", "--task sentiment --method prompt --epochs 3"),
    ("125m", f"--task sentiment --method prefix {LARGE}"),
    ("neo-mini", "--task ner --method full --epochs 2"),
    ("125m", f"--task similarity --method lora --checkpoint-activations {LARGE}"),
    ("neo-mini", "--task similarity --method lora --target-modules all-linear --epochs 2"),
    ("125m", f"--task ner --method full {LARGE}"),
    ("125m", f"--task ner --method lora --quantize nf4 {LARGE}"),
    ("125m", f"--task sentiment --method lora+prompt --quantize int8 {LARGE}"),
)


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m benchmarks.cost", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="measure only runs whose flags contain this")
    only, lines = parser.parse_args(argv).only, []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_base(base, *SHAPES["125m"])
        for index, (name, flags) in enumerate(run for run in RUNS if only in run[1]):
            command = ["train.py", *flags.split(), "--threads", "1"]
            command += ["--model", str(base) if name == "125m" else name]
            line = {"base": name, "flags": flags, **predict(command)}
            lines.append(line | measure(command, Path(folder) / str(index)))
            print("  ".join(cells(lines[-1])), file=sys.stderr, flush=True)
    record = {"torch": torch.__version__, "goals": GOALS, "lines": lines}
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    peers.RECORDS.mkdir(exist_ok=True)
    part = f"-{only.split()[-1]}" if only else ""
    write_json(peers.RECORDS / f"cost{part}-fp32-cpu.json", record)
    print(table(HEADER, map(cells, lines)))


def predict(command: list[str]) -> dict:
    """Return the predicted bytes and CPU seconds of a run."""
    dry_run = [sys.executable, *command, "--dry-run", "--json"]
    printed = subprocess.run(dry_run, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    plan = json.loads(printed.stdout)
    time = plan["time"]
    seconds = time["loading_cpu_seconds"] + time["cpu_seconds"]
    return {"predicted_memory": plan["memory"]["peak"], "predicted_seconds": seconds}


def measure(command: list[str], folder: Path) -> dict:
    """Return the bytes and CPU seconds that a run takes, with its folder in `folder`."""
    folder.mkdir()
    taken = folder / "taken.json"
    process = [sys.executable, "-m", "benchmarks.process", str(taken), sys.executable, *command]
    subprocess.run([*process, "--out", str(folder / "run")], check=True, cwd=ROOT)
    found = json.loads(taken.read_text())
    return {"memory": found["memory"], "seconds": found["cpu"]}


HEADER = ("base", "flags", "MB", "predicted", "ratio", "CPU s", "predicted", "ratio", "met")


def cells(line: dict) -> list[str]:
    """Return a line of the table."""
    shown, met = [line["base"], line["flags"]], True
    for name, unit, places in (("memory", 1e6, 0), ("seconds", 1, 1)):
        taken, predicted = line[name], line[f"predicted_{name}"]
        ratio = predicted / taken
        met = met and abs(ratio - 1) <= GOALS[name]
        numbers = [f"{number / unit:,.{places}f}" for number in (taken, predicted)]
        shown += [*numbers, f"{ratio:.2f}"]
    return [*shown, "yes" if met else "no"]


if __name__ == "__main__":
    sys.exit(exit_status(main))
