"""How the cost of our training step grows: python -m benchmarks.growth --shape 125m

Four curves of four points: over the tokens of a batch, the length of a prompt, LoRA's rank, and the
number of layers. Beside the seconds of each point stands what arithmetic predicts: the step's
counted operations, at the rate of plain products of as many rows that is measured between the
steps. Beside its peak memory stands what the code is counted to keep. A table is printed; a record
and its plot are written under benchmarks/records/.

Where a curve leaves its line: the count knows products alone. A step also passes over its rows for
norms, gelu, dropout and residuals, which is not counted, and lies above the line throughout. Memory
lies above its line on a CPU because freed pieces between kept ones stay with the C library: with
MALLOC_MMAP_THRESHOLD_=131072 in the environment they go back, and the peak is the counted bytes and
some 25 MB.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import peers
from benchmarks.lengths import LABELS
from benchmarks.measure import matmul_rate, peak_memory, seconds_of
from benchmarks.sides import SHAPES, Job, Ours, shape
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.encoding import collate
from neo_peft.gptneo import Config
from neo_peft.loop import make_optimizer
from neo_peft.model import Batch
from neo_peft.runs.tables import table
from neo_peft.settings import Settings, whole
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import write_json, write_whole
from neo_peft.system.hardware import find_device

# Each curve: its task, which decides the method, what grows, and how; layers are multiples of the
# shape's own.
CURVES = {
    "tokens a batch": ("ner", "batch_size", (4, 8, 16, 32)),
    "prompt length": ("sentiment", "prompt_length", (8, 20, 50, 100)),
    "LoRA rank": ("ner", "rank", (4, 16, 64, 256)),
    "layers": ("ner", "layers", (0.25, 0.5, 1, 2)),
}


@dataclass(frozen=True)
class Point(Job):
    """A step on a batch of equal texts, of the task's median length. `sizes` are hidden size,
    layers and heads; `given` are the settings in which it differs from the task's own."""

    sizes: tuple[int, int, int] = (0, 0, 0)
    given: dict = field(default_factory=dict)

    def __post_init__(self):
        size, layers, heads = self.sizes
        # which come in pairs; `make_step` takes one off again
        SHAPES[self.shape] = (size, layers + layers % 2, heads)

    @cached_property
    def settings(self) -> Settings:
        return replace(super().settings, **self.given)

    @property
    def config(self) -> Config:
        config = shape(self.shape)
        return replace(config, attention_layers=config.attention_layers[: self.sizes[1]])

    @cached_property
    def chosen(self) -> np.ndarray:
        order = np.diff(self.examples.starts).argsort(kind="stable")
        return np.full(self.settings.batch_size, order[len(order) // 2])

    @cached_property
    def batch(self) -> Batch:
        return collate(self.examples, self.chosen)

    @property
    def prompt_rows(self) -> int:
        return self.settings.prompt_length if self.settings.method == "prompt" else 0

    @property
    def rows(self) -> int:
        return len(self.batch.ids) + self.prompt_rows


def points_of(curve: str, flags: dict) -> list[tuple[float, Point]]:
    """Make a curve's points, each with its place on the axis."""
    task, grows, values = CURVES[curve]
    size, layers, heads = SHAPES[flags["shape"]]
    found = []
    for value in values:
        deep = max(1, round(value * layers)) if grows == "layers" else layers
        given = {} if grows == "layers" else {grows: value}
        name = f"{flags['shape']}, {deep} layers"
        point = Point(
            task, name, flags["precision"], flags["device"], sizes=(size, deep, heads), given=given
        )
        x = {"layers": deep, "batch_size": len(point.batch.ids)}.get(grows, value)
        found.append((x, point))
    return found


# ---- What arithmetic predicts


def operations(point: Point) -> int:
    """Count a step's floating point operations in products: two for each of a product's
    multiply-adds.

    B texts of T tokens, a prompt's P rows once in front of them all, M rows that are read.
    """
    config, settings, batch = point.config, point.settings, point.batch
    size, layers, prompt, rows = (
        config.hidden_size,
        config.num_layers,
        point.prompt_rows,
        point.rows,
    )
    indices = len(batch.target_indices)
    # q, k, v; out_proj and the MLP
    seeing, behind = (3 * size**2, size**2 + 2 * size * config.intermediate_size)
    # the last layer: what is read
    forward = 2 * layers * seeing * rows + 2 * behind * ((layers - 1) * rows + indices)
    backward = forward  # the gradient of the inputs; a frozen matrix has none of its own
    if not prompt:
        backward -= 2 * seeing * rows  # nothing before the first layer's q, k, v trains
    # Forward, the gradients of A and B, and of their inputs, but for the first layer's A.
    lora = (
        0
        if prompt
        else len(settings.target_modules) * 2 * rows * size * settings.rank * (6 * layers - 1)
    )
    # `wte` is frozen
    head = 4 * indices * size * config.vocab_size if prompt else 6 * indices * size * LABELS
    return forward + backward + attention(point) + lora + head


def attention(point: Point) -> int:
    """Count the operations of scores and their sum of values; backward computes the scores again,
    and four gradients.

    A causal mask saves nothing at these lengths: the kernels compute whole tiles.
    """
    config, texts, length = point.config, len(point.batch.lengths), int(point.batch.lengths[0])
    # pairs of query and key
    seen = point.prompt_rows**2 + texts * length * (point.prompt_rows + length)
    return 7 * 2 * config.hidden_size * config.num_layers * seen


def kept(point: Point) -> dict[str, int]:
    """Count the bytes that a step's forward pass keeps for backward, beside the parameters
    themselves.

    Frozen matrices keep no input. A row keeps in each layer, in fp32 whatever the precision: both
    norms' inputs with mean and deviation, and attention's logsumexp a head; in the precision: q, k,
    v and attention's output, gelu's derivative (elementwise.py), and for each LoRA layer its input,
    with a byte a place that says what dropout left, and what is between A and B, scaled. Behind a
    prompt each text's keys and values are kept again, joined to the prompt's, and its mask as
    numbers. The parts: `last`, a last layer up to its MLP, that MLP, the `head`, and all.
    """
    config, width, batch, settings = point.config, point.dtype.itemsize, point.batch, point.settings
    size, layers, prompt, rows = (
        config.hidden_size,
        config.num_layers,
        point.prompt_rows,
        point.rows,
    )
    texts, length, indices = (len(batch.lengths), int(batch.lengths[0]), len(batch.target_indices))
    targets, norm, mlp = (
        len(settings.target_modules),
        4 * size + 8,
        width * config.intermediate_size,
    )
    last = rows * (norm + 4 * width * size + 4 * config.num_heads)
    # ln_f, log-probabilities, two indices
    head = indices * (norm + 4 * (config.vocab_size if prompt else LABELS) + 16)
    first = 0
    if prompt:
        # The prompt's own q, k and v are views, which hold all rows' alive.
        last += width * (2 * texts * (prompt + length) * size + length * (prompt + length))
    else:
        last += rows * targets * (width * (size + settings.rank) + size)
        # A and B are fp32: their casts
        last += 0 if width == 4 else targets * 2 * size * settings.rank * width
        head += indices * (4 + width) * size  # the head's input, and its dropout
        # which the first layer spares: nothing before LoRA's A trains
        first = rows * (norm + targets * size)
    whole = layers * last + ((layers - 1) * rows + indices) * (norm + mlp) + head - first
    return {"last": last, "last_mlp": indices * (norm + mlp), "head": head, "all": whole}


def predicted_memory(point: Point) -> int:
    """Predict the peak beyond the loaded model: AdamW's two averages, and the most of what else is
    there at once.

    That is: all that is kept, and the logits' two gradients; or what is kept and, on a CPU, gelu's
    own numbers in the last MLP, or in the one before, which may have more rows; or the gradients,
    which are whole when nothing is kept.
    """
    config, found, indices = point.config, kept(point), len(point.batch.target_indices)
    size, width, classes = (
        config.hidden_size,
        point.dtype.itemsize,
        config.vocab_size if point.prompt_rows else LABELS,
    )
    gelu = (12 if width == 4 else 16 + width) if point.device == "cpu" else 2 * width
    # bytes a row: its input, the gate, the output; in fp32, whatever it is given
    gelu *= config.intermediate_size
    trunk = found["all"] - found["head"]
    parameters = point.prompt_rows * size
    if not point.prompt_rows:
        lora = (
            config.num_layers * len(point.settings.target_modules) * 2 * size * point.settings.rank
        )
        parameters = lora + LABELS * (size + 1)
    before = (
        trunk - found["last"] - found["last_mlp"] + point.rows * gelu
        if config.num_layers > 1
        else 0
    )
    return 8 * parameters + max(
        found["all"] + 8 * indices * classes, trunk + indices * gelu, before, 4 * parameters
    )


# ---- Measuring


def make_step(point: Point, frozen: dict) -> Callable[[], float]:
    """Make a point's step. Equal frozen parameters of a curve's points are held once, in
    `frozen`."""
    ours = Ours(point)
    del point.__dict__["weights"]
    trunk = ours.model.transformer
    del trunk.h[point.config.num_layers :]
    for name, parameter in trunk.named_parameters():
        if not parameter.requires_grad:
            parameter.data = frozen.setdefault(name, parameter.data)
    ours.optimizer = make_optimizer(ours.model, point.settings)
    return partial(ours, point.chosen)


def in_turn(points: list[Point], repeats: int, warm_up: int = 2) -> tuple[list[float], list[float]]:
    """Measure the points A B C D A B C D, each with the rate of products beside it: a drift of the
    machine hits all."""
    frozen = {}
    steps = [make_step(point, frozen) for point in points]
    taken = [([], []) for _ in points]
    for turn in range(-warm_up, repeats):
        for point, step, (seconds, rates) in zip(points, steps, taken):
            elapsed = seconds_of(step, point.device)
            rate = matmul_rate(point.config, point.rows, point.dtype, point.device, repeats=1)
            if turn >= 0:
                seconds.append(elapsed)
                rates.append(rate)
    of_rows = {}  # points of as many rows share their rate
    for point, (_, rates) in zip(points, taken):
        of_rows.setdefault(point.rows, []).extend(rates)
    return [median(seconds) for seconds, _ in taken], [
        median(of_rows[point.rows]) for point in points
    ]


def peak(point: Point) -> int:
    """Measure a point's peak memory in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(asdict(point))]
    root = Path(__file__).parents[1]
    return int(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout
    )


def peak_here(point: Point) -> int:
    step = make_step(point, {})
    # in the second the optimizer's averages are
    return peak_memory(lambda: [step() for _ in range(2)], point.device)


def measure(curve: str, flags: dict) -> list[dict]:
    found = points_of(curve, flags)
    points = [point for _, point in found]
    memory = [peak(point) for point in points]  # before this process holds anything large
    lines = []
    for (x, point), seconds, rate, most in zip(found, *in_turn(points, flags["repeats"]), memory):
        line = {
            "x": x,
            "rows": point.rows,
            "seconds": seconds,
            "operations": operations(point),
            "matmul_rate": rate,
        }
        line["predicted_seconds"] = line["operations"] / rate
        line |= {
            "ratio": seconds / line["predicted_seconds"],
            "bytes": most,
            "predicted_bytes": predicted_memory(point),
        }
        lines.append(line)
        print("  ".join(cells(curve, line)), file=sys.stderr, flush=True)
    return lines


# ---- Showing

HEADER = ("curve", "x", "seconds", "predicted s", "ratio", "peak MB", "predicted MB")


def cells(curve: str, line: dict) -> list[str]:
    seconds = (f"{line[name]:.4g}" for name in ("seconds", "predicted_seconds", "ratio"))
    return [
        curve,
        str(line["x"]),
        *seconds,
        *(f"{line[name] / 1e6:,.1f}" for name in ("bytes", "predicted_bytes")),
    ]


def draw(curves: dict[str, list[dict]], plot: Path) -> None:
    """Draw the points and the predicted lines: seconds above, memory below."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(14, 6), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False)
    for column, (curve, lines) in enumerate(curves.items()):
        x = [line["x"] for line in lines]
        rows = (("seconds", "seconds a step", 1), ("bytes", "peak memory, MB", 1e6))
        for axes, (name, label, unit) in zip(panels[:, column], rows):
            axes.plot(x, [line[name] / unit for line in lines], "o", label="measured")
            axes.plot(
                x, [line[f"predicted_{name}"] / unit for line in lines], lw=1, label="predicted"
            )
            axes.set(xlabel=curve, ylabel=label, xlim=(0, None), ylim=(0, None))
            axes.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    write_whole(plot, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--shape", choices=("125m", "1.3b"), default="125m", help="a published GPT-Neo's"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the frozen matrices",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=argument(whole(1)),
        default=6,
        help="steps of each point; the median counts",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    parser.add_argument(
        "--point", help="print one point's peak bytes: what this program calls itself with"
    )
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    if flags.point:
        return print(peak_here(Point(**json.loads(flags.point))))
    find_device(flags.device)
    said = {name: value for name, value in vars(flags).items() if name != "point"}
    record = {"flags": said, "hardware": peers.hardware(flags.device), "versions": peers.versions()}
    record |= {
        "commit": peers.commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record["curves"] = {curve: measure(curve, said) for curve in CURVES}
    peers.RECORDS.mkdir(parents=True, exist_ok=True)
    path = peers.RECORDS / f"growth-{flags.shape}-{flags.precision}-{flags.device}.json"
    write_json(path, record)
    draw(record["curves"], path.with_suffix(".png"))
    if flags.json:
        print(json.dumps(record["curves"]))
    else:
        print(
            table(
                HEADER,
                [cells(curve, line) for curve, lines in record["curves"].items() for line in lines],
            )
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
