"""CPU seconds before a command has something to show: python -m benchmarks.start

For the default commands of train.py on the bundled model and data:

  first bar    from the start of the process to its first progress bar
  first step   from the start to the first training step, scoring before tuning included

Each is divided by the CPU seconds of `python -c "import torch"`. The processes run in turn, each on
one thread. Prints the median and the range of the ratios.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from neo_peft.commands import train
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.progress import no_progress
from neo_peft.runs.tables import table
from neo_peft.settings import whole
from neo_peft.system import bars
from neo_peft.system.exit_status import exit_status

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "--task ner --method lora",
    "--task sentiment --method prompt",
    "--task similarity --method lora",
)
# The largest ratio of each moment that is good enough.
GOALS = {"first bar": 1.5, "first step": 3.0}


class Marks:
    """The CPU seconds of this process at its first bar and at its first step.

    It takes the place of the progress bar. At the first step it prints the marks and ends the
    process.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def __call__(self, items: Iterable, what: str, total: int, *form: object) -> Iterable:
        self.seconds.setdefault("first bar", cpu_seconds())
        if what.startswith("epoch"):
            self.seconds["first step"] = cpu_seconds()
            print(json.dumps(self.seconds), flush=True)
            os._exit(0)
        return no_progress(items, what, total, *form)


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Return the CPU seconds, user and system, of this process, or of the ended child processes."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def import_torch() -> float:
    """Return the CPU seconds of a process that imports torch."""
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before


def start(command: str) -> dict[str, float]:
    """Return the marks of a process that does a command of train.py, up to its first step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*command.split(), "--threads", "1", "--out", f"{folder}/run"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.start", "--marks", *flags],
            cwd=ROOT,
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = OneLineParser(prog="python -m benchmarks.start", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--pairs", default=5, type=argument(whole(1)), help="processes of each kind"
    )
    parser.add_argument("--marks", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.marks:
        bars.show_progress = Marks()
        train.main(flags.marks)
    lines = []
    for command in COMMANDS:
        ratios = {moment: [] for moment in GOALS}
        for _ in range(flags.pairs):
            torch_seconds, marks = import_torch(), start(command)
            for moment, seconds in marks.items():
                ratios[moment].append(seconds / torch_seconds)
        for moment, values in ratios.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            lines.append([command, moment, f"{GOALS[moment]}", f"{median(values):.2f}", spread])
    print(table(["train.py", "over import torch", "goal", "ratio", "range"], lines))


if __name__ == "__main__":
    sys.exit(exit_status(main))
