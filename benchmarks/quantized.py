"""Compare training steps on a base in fp32, int8 and nf4: python -m benchmarks.quantized --shape
1.3b

The step is that of train.py: LoRA (rank 16, on q and v) for tagging, on batches with the lengths of
JNLPBA. The base has random weights, in the shape of a published GPT-Neo, in a file in fp32 as
published. Each kind of base is a process of its own, which loads it and takes the same steps; they
run in turn (A B C A B C), on one thread. Prints a table:

weights   MB of the base in memory
peak      MB of resident memory of the whole process at its peak, with the used parts of mapped
          files
seconds   CPU seconds of a step, without the first one; and the ratio to fp32, which is the median
          over the rounds

The file takes 5.3 GB of disk for 1.3b, and a process up to 7 GB of memory.

With `--generate` it measures free generation for 16 texts of sentiment instead, in one process and
in turn: the CPU seconds on an unquantised base, on a quantised one whose weights are computed once
(`kept`), and on one that computes them for each token.
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from torch.amp import GradScaler

from benchmarks import peers
from benchmarks.lengths import load_examples
from benchmarks.measure import memory_of_process
from benchmarks.random_base import write_base
from benchmarks.sides import SHAPES
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.corpora.sources import load_splits
from neo_peft.encoding import batches, collate
from neo_peft.loop import make_optimizer, take_step
from neo_peft.runs import generation
from neo_peft.runs.loading import load_untuned
from neo_peft.runs.tables import table
from neo_peft.settings import make_settings, whole
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import write_json
from neo_peft.tasks import get_task

KINDS = {"fp32": "none", "int8": "int8", "nf4": "nf4"}  # shown name: value of --quantize
ROOT = Path(__file__).parents[1]


def parse_flags(argv: list[str] | None):
    parser = OneLineParser(
        prog="python -m benchmarks.quantized", description=__doc__.split("\n")[0]
    )
    number = argument(whole(1))
    parser.add_argument("--shape", default="125m", choices=SHAPES, help="default: 125m")
    parser.add_argument("--layers", type=number, help="number of layers (default: the shape's)")
    parser.add_argument("--batch-size", type=number, default=8, help="default: 8")
    parser.add_argument("--rounds", type=number, default=2, help="processes of a kind (default: 2)")
    parser.add_argument("--steps", type=number, default=3, help="steps of a process (default: 3)")
    parser.add_argument("--generate", action="store_true", help="measure free generation instead")
    parser.add_argument("--base", help="a folder for the base: kept, and used if it exists")
    parser.add_argument("--kind", help="measure one kind of base, in this process, and print JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    if flags.kind:
        print(json.dumps(measure_here(flags.base, flags.kind, flags.batch_size, flags.steps)))
        return
    size, layers, heads = SHAPES[flags.shape]
    layers = flags.layers or layers
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(flags.base or Path(temporary) / "base")
        if not folder.exists():
            write_base(folder, size, layers, heads)
        if flags.generate:
            print(table(["seconds for 16 texts", "", "/ fp32"], generating(folder, flags.rounds)))
            return
        rounds = [
            {kind: measure(folder, kind, flags.batch_size, flags.steps) for kind in KINDS}
            for _ in range(flags.rounds)
        ]
    lines = {kind: summary(rounds, kind) for kind in KINDS}
    record = {"shape": flags.shape, "layers": layers, "batch_size": flags.batch_size}
    record |= {"torch": torch.__version__, "lines": lines, "rounds": rounds}
    peers.RECORDS.mkdir(exist_ok=True)
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(peers.RECORDS / f"quantized-{flags.shape}-fp32-cpu.json", record)
    print(as_table(f"{flags.shape}, {layers} layers, batch {flags.batch_size}", lines))


def measure(folder: Path, kind: str, batch_size: int, steps: int) -> dict:
    """Return what `measure_here` returns, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.quantized", "--kind", kind, "--base", str(folder)]
    command += ["--batch-size", str(batch_size), "--steps", str(steps)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(result.stdout)


def measure_here(folder: str, kind: str, batch_size: int, steps: int) -> dict:
    """Load the base, take the steps, and return the bytes and the CPU seconds."""
    flags = {"task": "ner", "method": "lora", "rank": 16, "dropout": 0.1, "threads": 1}
    settings = make_settings(
        **flags, model=folder, quantize=KINDS[kind], batch_size=batch_size, precision="fp32"
    )
    started = time.process_time()
    tuned = load_untuned(settings, with_method=True)
    loading = time.process_time() - started
    examples = load_examples("ner")
    model, optimizer = tuned.model.train(), make_optimizer(tuned.model, settings)
    scaler, seconds, tokens = GradScaler("cpu", enabled=False), [], []
    for chosen in list(batches(range(len(examples)), batch_size))[: steps + 1]:
        batch = collate(examples, chosen)
        started = time.process_time()
        take_step(model, optimizer, scaler, [batch], batch.labelled, settings.clip_norm)
        seconds.append(time.process_time() - started)
        tokens.append(len(batch.ids))
    return {
        "weights": tuned.base.weight_bytes,
        "peak": memory_of_process("VmHWM"),
        "loading": loading,
        "seconds": sum(seconds[1:]) / steps,  # the first step also loads libraries
        "tokens": sum(tokens[1:]) / steps,
    }


def generating(folder: Path, rounds: int) -> list[list[str]]:
    """Return the lines of the table of `--generate`."""
    torch.set_num_threads(1)
    flags = {"task": "sentiment", "method": "lora", "precision": "fp32", "threads": 1}
    kept = generation.LARGEST_KEPT
    sides = [("fp32", kept)] + [(kind, size) for kind in ("int8", "nf4") for size in (kept, 0)]
    settings = [
        make_settings(**flags, model=str(folder), quantize=KINDS[kind]) for kind, _ in sides
    ]
    models = {one.quantize: load_untuned(one) for one in settings}
    rows = load_splits(get_task("sentiment"), "sample").test[:16]
    seconds = [[] for _ in sides]
    for number in range(rounds + 1):  # the first round is a warm-up
        for (kind, largest), taken in zip(sides, seconds, strict=True):
            tuned, generation.LARGEST_KEPT = models[KINDS[kind]], largest
            examples, started = tuned.encoder(rows), time.process_time()
            generation.evaluate_generated(tuned.model, tuned.encoder, examples, batch_size=16)
            taken += [time.process_time() - started] if number else []
    generation.LARGEST_KEPT = kept
    lines = []
    for (kind, largest), taken in zip(sides, seconds, strict=True):
        ratio = median(one / fp32 for one, fp32 in zip(taken, seconds[0], strict=True))
        name = kind if kind == "fp32" else f"{kind}, {'kept' if largest else 'for each token'}"
        lines.append([name, f"{median(taken):.2f}", f"{ratio:.2f}"])
    return lines


def summary(rounds: list[dict], kind: str) -> dict:
    """Return the medians over the rounds, and those of the ratios to fp32."""
    names = ("weights", "peak", "loading", "seconds", "tokens")
    line = {name: median(one[kind][name] for one in rounds) for name in names}
    for name in ("peak", "seconds"):
        ratios = [one[kind][name] / one["fp32"][name] for one in rounds]
        line |= {f"{name}_ratio": median(ratios), f"{name}_range": [min(ratios), max(ratios)]}
    return line


def as_table(title: str, lines: dict[str, dict]) -> str:
    rows = [
        [
            kind,
            f"{line['weights'] / 1e6:,.0f}",
            f"{line['peak'] / 1e6:,.0f}",
            f"{line['peak_ratio']:.2f}",
            f"{line['seconds']:.2f}",
            f"{line['seconds_ratio']:.2f} ({'–'.join(f'{r:.2f}' for r in line['seconds_range'])})",
            f"{line['loading']:.1f}",
        ]
        for kind, line in lines.items()
    ]
    header = [title, "weights MB", "peak MB", "/ fp32", "seconds", "/ fp32", "loading s"]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(exit_status(main))
