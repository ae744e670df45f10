"""How the cost of our training step grows: python -m benchmarks.growth --shape 125m

There are four curves of four points each: over the tokens of a batch, the prompt length, LoRA's
rank, and the number of layers. Each point has two measured numbers and two predicted ones. The
predicted seconds are the step's counted operations divided by the machine's rate of matrix
products, which is measured between the steps. The predicted memory is the counted bytes of the
tensors that autograd saves, of the optimizer and of the gradients. Prints a table, and writes a
record and its plot in benchmarks/records/.

The measured values are above the predicted ones. Seconds: only matrix products are counted, not the
element-wise work of norms, gelu, dropout and residuals. Memory: the code and buffers of libraries,
which a process loads once (25 MB), are loaded before the measurement. On a CPU the C library does
not return freed blocks that lie between used ones. With MALLOC_MMAP_THRESHOLD_=131072 in the
environment it returns them, and the peak is 1.07 to 1.27 times the counted bytes. But then each new
tensor needs new pages of memory, and a step takes 1.1 to 1.3 times as long.
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
from benchmarks.measure import load_libraries, matmul_rate, peak_memory, seconds_of
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

# For each curve: the task (which decides the method), what grows, and its values. Those of "layers"
# are multiples of the shape's number of layers.
CURVES = {
    "tokens a batch": ("ner", "batch_size", (4, 8, 16, 32)),
    "prompt length": ("sentiment", "prompt_length", (8, 20, 50, 100)),
    "LoRA rank": ("ner", "rank", (4, 16, 64, 256)),
    "layers": ("ner", "layers", (0.25, 0.5, 1, 2)),
}


@dataclass(frozen=True)
class Point(Job):
    """One point of a curve: a training step on copies of the text with the task's median length."""

    sizes: tuple[int, int, int] = (0, 0, 0)  # hidden size, layers, heads
    changed: dict = field(default_factory=dict)  # settings that differ from the task's in `sides`

    def __post_init__(self):
        size, layers, heads = self.sizes
        # Layers come in pairs (global, local). `make_step` removes the one that is too many.
        SHAPES[self.shape] = (size, layers + layers % 2, heads)

    @cached_property
    def settings(self) -> Settings:
        return replace(super().settings, **self.changed)

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
    def prompt_length(self) -> int:  # 0 without a prompt
        return self.settings.prompt_length if self.settings.method == "prompt" else 0

    @property
    def tokens(self) -> int:  # of the batch, with the prompt
        return len(self.batch.ids) + self.prompt_length


def points_of(curve: str, flags: dict) -> list[tuple[float, Point]]:
    """Return the points of a curve, each with its x."""
    task, varied, values = CURVES[curve]
    size, layers, heads = SHAPES[flags["shape"]]
    points = []
    for value in values:
        depth = max(1, round(value * layers)) if varied == "layers" else layers
        changed = {} if varied == "layers" else {varied: value}
        name, sizes = f"{flags['shape']}, {depth} layers", (size, depth, heads)
        point = Point(task, name, flags["precision"], flags["device"], sizes=sizes, changed=changed)
        x = {"layers": depth, "batch_size": len(point.batch.ids)}.get(varied, value)
        points.append((x, point))
    return points


# ---- Predictions. The last layer's out_proj and MLP are computed at the target positions only.


def operations(point: Point) -> int:
    """Return the floating point operations of a step's matrix products: two per multiply-add."""
    config, settings, tokens = point.config, point.settings, point.tokens
    size, layers, prompt = config.hidden_size, config.num_layers, point.prompt_length
    target_count = len(point.batch.target_indices)
    qkv = 3 * size**2
    out_and_mlp = size**2 + 2 * size * config.intermediate_size
    forward = 2 * layers * qkv * tokens
    forward += 2 * out_and_mlp * ((layers - 1) * tokens + target_count)
    backward = forward  # the gradients of the inputs; frozen matrices get no gradient
    if not prompt:
        backward -= 2 * qkv * tokens  # nothing before the first layer's q, k, v trains
    lora = 0
    if not prompt:
        # Forward, the gradients of A and B, and those of their inputs, except the first layer's A.
        lora = len(settings.target_modules) * 2 * tokens * size * settings.rank * (6 * layers - 1)
    # `wte` is frozen, and a linear head is not.
    head = 4 * size * config.vocab_size if prompt else 6 * size * LABELS
    return forward + backward + attention(point) + lora + target_count * head


def attention(point: Point) -> int:
    """Return the operations of attention: Q K^T, and the weighted sum of V. Backward computes Q K^T
    again, and four gradients.

    The causal mask saves nothing at these lengths, since the kernels compute whole tiles.
    """
    config, texts, length = point.config, len(point.batch.lengths), int(point.batch.lengths[0])
    # number of pairs of a query and a key
    pairs = point.prompt_length**2 + texts * length * (point.prompt_length + length)
    return 7 * 2 * config.hidden_size * config.num_layers * pairs


def saved_bytes(point: Point) -> dict[str, int]:
    """Return the bytes that autograd saves for backward in a step, without the parameters.

    Saved for each token, in each layer:
      in fp32        the inputs of both norms, with mean and deviation; logsumexp of each head
      in the dtype   q, k, v and attention's output; the derivative of gelu (kernels/)
      for each LoRA layer, its input, the dropout mask (a byte for each element), and the scaled
      output of A

    With a prompt, also the keys and values of each text joined to the prompt's, and the mask as
    numbers. The inputs of frozen matrices are not saved.

    Returns the bytes of these parts: "last", the last layer without its MLP; "last_mlp", its MLP;
    "head"; and "all".
    """
    config, width, batch, settings = point.config, point.dtype.itemsize, point.batch, point.settings
    size, layers, tokens = config.hidden_size, config.num_layers, point.tokens
    prompt, texts, length = point.prompt_length, len(batch.lengths), int(batch.lengths[0])
    target_count, lora_layers = len(batch.target_indices), len(settings.target_modules)
    norm, mlp = 4 * size + 8, width * config.intermediate_size
    last = tokens * (norm + 4 * width * size + 4 * config.num_heads)
    # ln_f, log-probabilities, two indices
    head = target_count * (norm + 4 * (config.vocab_size if prompt else LABELS) + 16)
    not_in_first = 0
    if prompt:
        # The prompt's q, k and v are views, which keep those of all tokens alive.
        last += width * (2 * texts * (prompt + length) * size + length * (prompt + length))
    else:
        last += tokens * lora_layers * (width * (size + settings.rank) + size)
        # A and B are fp32: in another dtype their casts are saved
        last += 0 if width == 4 else lora_layers * 2 * size * settings.rank * width
        head += target_count * (4 + width) * size  # the head's input, and its dropout
        # The first layer saves less, since nothing before its LoRA trains.
        not_in_first = tokens * (norm + lora_layers * size)
    last_mlp = target_count * (norm + mlp)
    total = layers * last + (layers - 1) * tokens * (norm + mlp) + last_mlp + head - not_in_first
    return {"last": last, "last_mlp": last_mlp, "head": head, "all": total}


def predicted_memory(point: Point) -> int:
    """Return the predicted peak of a step, in addition to the loaded model.

    It is AdamW's two averages, and the largest of these:
      - all saved tensors, and the two gradients of the logits
      - the saved tensors of the trunk, and the temporary tensors of gelu in the last MLP
      - the same one layer earlier, where the MLP is computed for all tokens
      - the gradients of the parameters, when nothing is saved any more
    """
    config, saved, target_count = point.config, saved_bytes(point), len(point.batch.target_indices)
    size, width = config.hidden_size, point.dtype.itemsize
    classes = config.vocab_size if point.prompt_length else LABELS
    # bytes of gelu for each token: its output, which on a CPU is written over its input
    gelu = (width if point.device == "cpu" else 2 * width) * config.intermediate_size
    trunk = saved["all"] - saved["head"]
    parameters = point.prompt_length * size
    if not point.prompt_length:
        layers = config.num_layers * len(point.settings.target_modules)
        parameters = layers * 2 * size * point.settings.rank + LABELS * (size + 1)
    one_earlier = 0
    if config.num_layers > 1:
        one_earlier = trunk - saved["last"] - saved["last_mlp"] + point.tokens * gelu
    return 8 * parameters + max(
        saved["all"] + 8 * target_count * classes,
        trunk + target_count * gelu,
        one_earlier,
        4 * parameters,
    )


# ---- Measuring


def make_step(point: Point, frozen: dict) -> Callable[[], float]:
    """Return a function that computes a point's step. The points of a curve share their frozen
    parameters, which are stored in `frozen`."""
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
    """Return the median seconds of each point's step, and the median rate of matrix products.

    The points are measured in turn (A B C D A B C D), each followed by a measurement of the rate.
    So a change in the machine's speed affects all points alike.
    """
    frozen = {}
    steps = [make_step(point, frozen) for point in points]
    measured = [([], []) for _ in points]
    for turn in range(-warm_up, repeats):
        for point, step, (seconds, rates) in zip(points, steps, measured):
            elapsed = seconds_of(step, point.device)
            rate = matmul_rate(point.config, point.tokens, point.dtype, point.device, repeats=1)
            if turn >= 0:
                seconds.append(elapsed)
                rates.append(rate)
    rates_by_tokens = {}  # points with equally many tokens share their rates
    for point, (_, rates) in zip(points, measured):
        rates_by_tokens.setdefault(point.tokens, []).extend(rates)
    return [median(seconds) for seconds, _ in measured], [
        median(rates_by_tokens[point.tokens]) for point in points
    ]


def peak(point: Point) -> int:
    """Return a point's peak memory in bytes, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(asdict(point))]
    root = Path(__file__).parents[1]
    return int(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout
    )


def peak_here(point: Point) -> int:
    """Return a point's peak memory in bytes, measured in this process."""
    step = make_step(point, {})
    load_libraries(step.func.model, point.examples)
    # two steps: in the second, AdamW's averages are allocated
    return peak_memory(lambda: [step() for _ in range(2)], point.device)


def measure(curve: str, flags: dict) -> list[dict]:
    """Return a line of the record for each point of a curve."""
    xs, points = zip(*points_of(curve, flags))
    peaks = [peak(point) for point in points]  # first, while this process needs little memory
    lines = []
    timed = in_turn(points, flags["repeats"])
    for x, point, seconds, rate, peak_bytes in zip(xs, points, *timed, peaks):
        line = {
            "x": x,
            "rows": point.tokens,
            "seconds": seconds,
            "operations": operations(point),
            "matmul_rate": rate,
        }
        line["predicted_seconds"] = line["operations"] / rate
        line |= {
            "ratio": seconds / line["predicted_seconds"],
            "bytes": peak_bytes,
            "predicted_bytes": predicted_memory(point),
        }
        lines.append(line)
        print("  ".join(cells(curve, line)), file=sys.stderr, flush=True)
    return lines


# ---- Output

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
    """Draw the measured points and the predicted lines: seconds in the upper row, memory below."""
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    figure = Figure(figsize=(14, 6), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False)
    for column, (curve, lines) in enumerate(curves.items()):
        x = [line["x"] for line in lines]
        panel_rows = (("seconds", "seconds per step", 1), ("bytes", "peak memory (MB)", 1e6))
        for axes, (name, label, unit) in zip(panels[:, column], panel_rows):
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
        "--shape", choices=("125m", "1.3b"), default="125m", help="that of a published GPT-Neo"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="dtype of the frozen matrices",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=argument(whole(1)),
        default=6,
        help="number of steps of each point; the median is reported",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    parser.add_argument(
        "--point", help="internal: print the peak memory of one point, given as JSON"
    )
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    if flags.point:
        return print(peak_here(Point(**json.loads(flags.point))))
    find_device(flags.device)  # raises InputError where there is none
    settings = {name: value for name, value in vars(flags).items() if name != "point"}
    record = {
        "flags": settings,
        "hardware": peers.hardware(flags.device),
        "versions": peers.versions(),
    }
    record |= {
        "commit": peers.commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record["curves"] = {curve: measure(curve, settings) for curve in CURVES}
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
