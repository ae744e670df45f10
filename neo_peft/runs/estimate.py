"""What a run costs, before it starts: at the start of `train.py`, and with `--dry-run` and `sizes`.

If the memory does not suffice, a note names the flags that help. A model that this machine can
never have in memory is refused before it is loaded.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.formats.base import Base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.published import PUBLISHED, trunk_without_data
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.gptneo import Config
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import cost, pace
from neo_peft.runs.cost import Memory
from neo_peft.runs.folder import RUNS
from neo_peft.runs.job import Job, Output, PrintLine, prepare
from neo_peft.runs.shared import Shared
from neo_peft.runs.summary import describe
from neo_peft.runs.too_large import TooLargeError, config_of, folder_of, shown
from neo_peft.settings import Settings
from neo_peft.system import processes
from neo_peft.system.memory import available_memory

FEWER_BITS = {"none": ("int8", "nf4"), "int8": ("nf4",), "nf4": ()}  # of values of --quantize
NOWHERE = Path()  # nothing is written there


@dataclass(frozen=True)
class Plan:
    """What a run costs."""

    memory: Memory  # what it needs
    available: int | None  # bytes of memory that this process can have; None if unknown
    disk: cost.Disk  # of its folder
    time: pace.Time | None  # None if it was not measured
    unmeasured: str  # why it was not

    @property
    def fits(self) -> bool:
        return self.available is None or self.memory.peak <= self.available

    def record(self) -> dict:
        """Return the plan as JSON has it."""
        time = self.time and {
            "steps": self.time.steps,
            "seconds": float(self.time.total[0]),
            "cpu_seconds": float(self.time.total[1]),
            "loading_cpu_seconds": self.time.loading,
        }
        disk = asdict(self.disk)
        return {
            "memory": asdict(self.memory) | {"peak": self.memory.peak, "available": self.available},
            "disk": disk,
            "time": time,
        }


def plan_of(job: Job, thorough: bool = True, has_weights: bool = True) -> Plan:
    """Return what a run costs. `thorough` as in `pace.time_of`."""
    model, settings = job.tuned.model, job.settings
    memory = cost.memory_of(model, job.examples, settings)
    plan = Plan(memory, available_memory(model.device), cost.disk(model), None, "")
    if not has_weights:
        return replace(plan, unmeasured="not measured without the weights of the base")
    if not plan.fits:
        return replace(plan, unmeasured="not measured, because the memory does not suffice")
    try:
        return replace(plan, time=pace.time_of(job, thorough))
    except InputError as error:  # the run will raise it too, where it has scored or trained
        return replace(plan, unmeasured=f"not measured: {error}")


def describe_cost(job: Job) -> None:
    """Print what a new run costs. A short run gets only a rough measure of its time."""
    if not job.settings.resume:
        for line in lines(job, plan_of(job, thorough=False)):
            job.output.print_line(line)
        job.output.print_line("")


def dry_run(settings: Settings, print_line: PrintLine, progress: Progress) -> dict:
    """Load all that a run needs, and print its first lines and what it costs. Return the record of
    the plan."""
    if processes.process_index:
        print_line, progress = (lambda line: None), no_progress
    job = prepare(settings, Output(NOWHERE, print_line, progress, 0.0))
    describe(job)
    costs = plan_of(job)
    for line in lines(job, costs):
        print_line(line)
    return costs.record()


def plan(settings: Settings, print_line: PrintLine, progress: Progress) -> dict:
    """Do a dry run if the base is on this machine and fits into it; else plan without weights."""
    folder = folder_of(settings)
    if folder is not None and any(folder.glob("*.safetensors")):
        try:
            return dry_run(settings, print_line, progress)
        except TooLargeError as error:
            print_line(f"note    {error}")
    return plan_without_weights(settings, print_line, progress)


# ---- A base without its weights


class WithoutWeights(Shared):
    """Gives a run a base whose tensors have shapes and no data."""

    def __init__(self, config: Config, tokenizer: Path):
        super().__init__(NOWHERE)
        self.config, self.tokenizer = config, tokenizer

    def base_for(self, settings: Settings) -> Base:
        trunk, tokenizer = trunk_without_data(self.config), load_tokenizer(self.tokenizer)
        count = sum(parameter.numel() for parameter in trunk.parameters())
        return Base(trunk, tokenizer, self.tokenizer, "", [], count, "float32", [], "")


def plan_without_weights(settings: Settings, print_line: PrintLine, progress: Progress) -> dict:
    """Print what a run costs, from the shapes of its base alone. Return the record of the plan."""
    config, folder = config_of(settings), folder_of(settings)
    if config is None:
        raise InputError(
            f"the sizes of {settings.model} are not known here: give a folder with its config.json"
            f", or one of {', '.join(PUBLISHED)}"
        )
    has_tokenizer = folder is not None and (folder / "tokenizer.json").exists()
    tokenizer = folder if has_tokenizer else BUNDLED["neo-mini"]
    output = Output(NOWHERE, print_line, progress, 0.0)
    job = prepare(settings, output, shared=WithoutWeights(config, tokenizer))
    costs = plan_of(job, has_weights=False)
    print_line(f"model   {settings.model}: {job.total:,} parameters")
    share = 100 * job.trainable / job.total
    print_line(f"method  {settings.method}: trains {job.trainable:,} parameters, {share:.4g} %")
    for line in lines(job, costs):
        print_line(line)
    if not has_tokenizer:
        print_line("note    texts have other lengths here: their tokens are those of neo-mini")
    return costs.record()


# ---- Too little memory


def smaller(job: Job, available: int) -> Iterator[tuple[str, Memory]]:
    """Yield flags with which a run needs less memory, and that memory: each flag alone, and if none
    suffices, the fewest together."""
    settings = job.settings

    def memory(changes: dict) -> Memory:
        return cost.memory_of(job.tuned.model, job.examples, replace(settings, **changes))

    found = []
    if not settings.trains_base:
        found += [{"quantize": kind} for kind in FEWER_BITS[settings.quantize]]
    if not settings.checkpoint_activations:
        found.append({"checkpoint_activations": True})
    if settings.batch_size > 1:
        found.append(smaller_batch(job, available))
    needed = [(changes, memory(changes)) for changes in found]
    together = {}
    for changes in found:  # the later value of --quantize has fewer bits
        together = together | changes
        if all(its.peak > available for _, its in needed) and len(together) > len(changes):
            needed.append((together, memory(together)))
    now = memory({}).peak
    yield from ((flags_of(changes), its) for changes, its in needed if its.peak < now)


def smaller_batch(job: Job, available: int) -> dict[str, int]:
    """Return the largest batch that fits, or a batch of one, and as many batches in a step as give
    the same steps."""
    settings = job.settings
    size = settings.batch_size
    while size > 1:
        size = size // 2 if size % 2 == 0 else 1
        accumulation = settings.gradient_accumulation * settings.batch_size // size
        changes = {"batch_size": size, "gradient_accumulation": accumulation}
        memory = cost.memory_of(job.tuned.model, job.examples, replace(settings, **changes))
        if memory.peak <= available:
            break
    return changes


def flags_of(changes: dict[str, object]) -> str:
    """Return the flags of some settings, as one types them."""
    parts = (("--" + name.replace("_", "-"), value) for name, value in changes.items())
    return " ".join(flag if value is True else f"{flag} {value}" for flag, value in parts)


# ---- The lines


def lines(job: Job, plan: Plan) -> Iterator[str]:
    """Yield the lines on a run's memory, disk and time."""
    memory, available = plan.memory, plan.available
    room = f"; {shown(available)} are available" if available else ""
    yield (
        f"memory  {shown(memory.step)} in training: base {shown(memory.base)}, optimizer "
        f"{shown(memory.optimizer)}, activations {shown(memory.activations)} with logits "
        f"{shown(memory.logits)}; {shown(memory.scoring)} in scoring{room}"
    )
    free = free_disk(job.settings)
    yield (
        f"disk    {shown(plan.disk.kept)} for two checkpoints, each with the best weights, and the "
        f"result; {shown(plan.disk.most)} while a checkpoint is written; {shown(free)} are free"
    )
    at_most = "at most " if job.settings.patience else ""
    yield f"time    {at_most}{time_line(plan.time) if plan.time else plan.unmeasured}"
    if not plan.fits:
        yield f"note    the memory does not suffice; {advice(job, available)}"
    if plan.disk.most > free:
        yield "note    the disk does not suffice: make room, or name another one with --out"


def advice(job: Job, available: int) -> str:
    """Return the flags with which the memory suffices, each with the memory that the run needs; if
    there are none, those with the least."""
    found = list(smaller(job, available))
    enough = [(flags, its.peak) for flags, its in found if its.peak <= available]
    if enough:
        less = ", ".join(f"{shown(peak)} with {flags}" for flags, peak in enough)
        return f"the run needs {less}"
    if not found:
        return "train fewer weights"
    flags, least = min(found, key=lambda pair: pair[1].peak)
    return f"the run needs at least {shown(least.peak)}, with {flags}"


def free_disk(settings: Settings) -> int:
    """Return the free bytes on the disk of a run's folder, which need not exist yet."""
    folder = Path(settings.out or RUNS).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def time_line(time: pace.Time) -> str:
    return (
        f"about {duration(time.total[0])}: {time.steps:,} steps of {time.step[0]:.2g} seconds, and "
        f"{duration(time.scoring[0])} of scoring; measured on {time.texts} texts"
    )


def duration(seconds: float) -> str:
    """Return a time for people, such as "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
