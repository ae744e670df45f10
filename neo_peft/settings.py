"""The settings of a training run, one a flag: a frozen dataclass, its defaults and its presets. No
torch here.

A field is filled by, in this order: the flag given, the preset, the default of its method and
model, the default.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neo_peft.defaults import BUNDLED_DEFAULTS, BUNDLED_MODEL, METHOD_DEFAULTS, PRESETS
from neo_peft.errors import InputError
from neo_peft.tasks import METHODS, TASKS, Task, get_task


def whole(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Make a reader of whole numbers from `least` to `most`."""

    def read(value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = None
        if number is None or number < least:
            raise InputError(f"{value} is not a whole number of at least {least}")
        if number > most:
            raise InputError(f"{value} is too large: {most} is the most")
        return number

    return read


def real(least: float, below: float = math.inf, allow_least: bool = True) -> Callable[[Any], float]:
    """Make a reader of finite numbers in a range."""

    def read(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (least <= number < below) or (number == least and not allow_least):
            kind = "finite number" if math.isinf(number) else "number"
            upper = f" and below {below:g}" if below < math.inf else ""
            raise InputError(
                f"{value} is not a {kind} {'of at least' if allow_least else 'above'} "
                f"{least:g}{upper}"
            )
        return number

    return read


def threads(value: Any) -> "int | str":
    try:
        return value if value == "auto" else whole(1, 1024)(value)
    except InputError as error:
        raise InputError(f"{error}; auto chooses one") from None


def filled(value: Any) -> str:
    """Read text that is not blank: a name, a path."""
    if not str(value).strip():
        raise InputError("is empty")
    return str(value)


def names(value: Any) -> tuple[str, ...]:
    """Read names split by commas: of labels, or of module targets."""
    parts = value.split(",") if isinstance(value, str) else value
    found = tuple(str(part).strip() for part in parts if str(part).strip())
    if not found:
        raise InputError("is empty")
    return found


def one_of(*choices: str) -> Callable[[Any], str]:
    """Make a reader of one of several words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise InputError(f"{value!r} is none of {', '.join(choices)}")
        return value

    return read


def flag(
    default: Any,
    group: str,
    help: str,
    read: Callable = str,
    choices: Sequence | None = None,
    only: str = "",
):
    """Declare one flag; `only` names the part of a method that it belongs to."""
    meta = {"group": group, "help": help, "read": read, "choices": choices, "only": only}
    return field(default=default, metadata=meta)


OF_TAGS = {"read", "echo", "tag_decoding"}  # settings of tasks that tag words alone
DATA, MODEL, ADAPTER, TRAINING, RUN = "task and data", "model", "adapter", "training", "run"


@dataclass(frozen=True)
class Settings:
    """What a run is made from. Make one with `make_settings`, which fills in defaults and checks
    ranges."""

    task: str = flag(None, DATA, f"what to learn: {', '.join(TASKS)}", choices=tuple(TASKS))
    data: str = flag(
        "sample",
        DATA,
        "sample (bundled), hub, or a folder: your own train.jsonl, or original files",
    )
    protocol: str = flag(
        "clean",
        DATA,
        "PhraseBank's split: clean, or the source's, whose test overlaps its training",
        str,
        ("clean", "paper"),
    )
    labels: tuple[str, ...] | None = flag(
        None,
        DATA,
        "your own rows' labels in their order, split by commas (default: as they come in train)",
        names,
    )
    label_words: tuple[str, ...] | None = flag(
        None,
        DATA,
        "what the model says for each label, in their order (default: the labels)",
        names,
    )
    train_limit: int | None = flag(
        None, DATA, "train on this many rows, evenly spaced (default: all)", whole(1)
    )
    eval_limit: int | None = flag(
        None, DATA, "score this many rows of a split, evenly spaced (default: all)", whole(1)
    )
    max_length: int | None = flag(
        None,
        DATA,
        "tokens of a text and its template; longer text is cut (default: what fits the model)",
        whole(1),
    )
    read: str = flag(
        "first", DATA, "the sub-token of a word at which its tag is read", str, ("first", "last")
    )

    echo: bool = flag(
        False, DATA, "give a sentence twice and tag its second copy, which has seen all of it", bool
    )
    tag_decoding: str = flag(
        "greedy",
        DATA,
        "how tags are chosen: greedy, each word's best; viterbi, the best sequence that BIO allows",
        str,
        ("greedy", "viterbi"),
    )

    model: str = flag(
        BUNDLED_MODEL,
        MODEL,
        "neo-mini (bundled), a folder in Hugging Face's layout, or a hub id: owner/name, or "
        "owner/name@revision",
    )
    precision: str = flag(
        "auto",
        MODEL,
        "what frozen matrices are held and multiplied in; auto is fp16 on CUDA, else fp32",
        str,
        ("auto", "fp32", "bf16", "fp16"),
    )
    device: str = flag("auto", MODEL, "where to compute", str, ("auto", "cuda", "mps", "cpu"))
    threads: int | str = flag(
        "auto", MODEL, "CPU threads; auto takes what the process may use, few if small", threads
    )

    adapter: str | None = flag(
        None,
        ADAPTER,
        "train this further: a run's folder, or an adapter of peft's; it settles the flags below",
    )
    method: str = flag(None, ADAPTER, f"what trains: {', '.join(METHODS)}", choices=METHODS)
    readout: str = flag(
        "words",
        ADAPTER,
        "how an answer is read: words, the language model says the label's; head, a linear layer "
        "that trains beside the method",
        str,
        ("words", "head"),
    )
    rank: int = flag(8, ADAPTER, "rank r of LoRA's A and B", whole(1, 16_384), only="lora")
    alpha: float = flag(
        16.0,
        ADAPTER,
        "LoRA's correction is scaled by alpha / r",
        real(0, allow_least=False),
        only="lora",
    )
    dropout: float = flag(0.0, ADAPTER, "dropout on the input of LoRA's A", real(0, 1), only="lora")
    target_modules: tuple[str, ...] = flag(
        ("q_proj", "v_proj"),
        ADAPTER,
        "layers that get LoRA: ends of names or regular expressions split by commas, or all-linear",
        names,
        only="lora",
    )
    bias: str = flag(
        "none",
        ADAPTER,
        "biases that train beside LoRA",
        str,
        ("none", "all", "lora_only"),
        only="lora",
    )
    rslora: bool = flag(False, ADAPTER, "scale LoRA by alpha / sqrt(r)", bool, only="lora")
    lora_init: str = flag(
        "kaiming", ADAPTER, "how A starts", str, ("kaiming", "gaussian"), only="lora"
    )
    prompt_length: int = flag(
        8, ADAPTER, "rows P of the soft prompt", whole(1, 16_384), only="prompt"
    )
    prompt_init: str = flag(
        "text",
        ADAPTER,
        "what the prompt starts from",
        str,
        ("text", "vocab", "labels", "random"),
        only="prompt",
    )
    prompt_text: str | None = flag(
        None, ADAPTER, "the text it starts from (default: the task's instruction)", only="prompt"
    )
    head_dropout: float = flag(
        0.1, ADAPTER, "dropout before the linear head, where there is one", real(0, 1)
    )

    epochs: int = flag(10, TRAINING, "passes over the training rows", whole(1))
    max_steps: int | None = flag(
        None, TRAINING, "stop after this many updates (default: no limit)", whole(1)
    )
    batch_size: int = flag(16, TRAINING, "examples in a batch of each process", whole(1))
    gradient_accumulation: int = flag(1, TRAINING, "batches in one update", whole(1))
    checkpoint_activations: bool = flag(
        False,
        TRAINING,
        "compute each layer again in the backward pass: less memory, more time, the same bits",
        bool,
    )
    # Bounded, since AdamW multiplies them, and torch refuses a factor that does not fit into fp32.
    learning_rate: float = flag(None, TRAINING, "the rate's peak", real(0, 1e34, allow_least=False))
    weight_decay: float = flag(0.01, TRAINING, "AdamW's decay, of matrices only", real(0, 1e4))
    warmup_ratio: float = flag(
        0.0, TRAINING, "share of the updates in which the rate rises", real(0, 1)
    )
    clip_norm: float = flag(1.0, TRAINING, "the gradient's greatest norm; 0 does not clip", real(0))
    keep: str = flag(
        "best",
        TRAINING,
        "which epoch's weights stay: best on validation, or last",
        str,
        ("best", "last"),
    )
    seed: int = flag(
        0, TRAINING, "seed of the adapter's start and of the order of the rows", whole(0)
    )
    checkpoint_every: int = flag(
        500,
        TRAINING,
        "updates from one checkpoint to the next; each epoch ends with one too",
        whole(1),
    )

    generate: bool = flag(
        False, RUN, "score answers by free generation too, beside the rank of the labels", bool
    )
    preset: str | None = flag(
        None,
        RUN,
        "paper: the recipe of the study that this project follows; best: what beat it on neo-mini",
        str,
        tuple(PRESETS),
    )
    out: str | None = flag(None, RUN, "the run's folder (default: runs/TASK-METHOD, then -2, -3)")
    resume: str | None = flag(
        None, RUN, "go on with the run in this folder, which settles all other flags"
    )
    json: bool = flag(
        False, RUN, "print one JSON object on standard output, and nothing else there", bool
    )

    @property
    def source_text(self) -> bool:
        """The paper's recipe says rows in the source's own words, labels without their leading
        space."""
        return self.preset == "paper"

    @property
    def with_head(self) -> bool:
        """An answer is read by a head of its own, and not said."""
        return "head" in (self.method, self.readout)

    @property
    def methods(self) -> list[str]:
        return self.method.split("+")


def make_settings(**given: Any) -> Settings:
    """Make the settings of a run from those that are given, and fill in the rest. Raise InputError
    for bad ones."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"there is no setting {name!r}; the settings are {', '.join(fields)}")
        given[name] = _checked(fields[name], value)
    # a setting that is not given
    given = {name: value for name, value in given.items() if value is not None}
    task = given.get("task")
    if task is None:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    values = {name: field.default for name, field in fields.items()}
    preset = _preset(given.get("preset"), task)
    if given.get("method", preset.get("method")) != preset.get("method"):
        preset.pop("learning_rate", None)  # it was the rate of another method
    method, model = ({**values, **preset, **given}[name] for name in ("method", "model"))
    if given.get("preset") == "best" and model != BUNDLED_MODEL:
        preset.pop("learning_rate", None)  # it was chosen on the bundled model
    if method is None:
        raise InputError(
            f"--method is missing; the methods are {', '.join(METHODS)} (a --preset brings its own)"
        )
    if "head" in (method, {**preset, **given}.get("readout")):
        preset.pop("generate", None)  # there is nothing to decode
    parts = method.split("+")
    values.update(
        METHOD_DEFAULTS[method]
        | (BUNDLED_DEFAULTS.get(method, {}) if model == BUNDLED_MODEL else {})
    )
    values.update(
        {
            name: value
            for name, value in preset.items()
            if fields[name].metadata["only"] in ("", *parts)
        }
    )
    values.update(given)
    for name, known in {"model": (BUNDLED_MODEL,), "data": ("sample", "hub")}.items():
        if values[name] not in known and Path(values[name]).is_dir():
            # a run is scored again from any folder
            values[name] = str(Path(values[name]).resolve())
    _refuse_without_effect(fields, given, values)
    return Settings(**values)


def task_of(settings: Settings) -> Task:
    """Make the task of a run, with the labels and the labels' words that its settings have."""
    task = get_task(settings.task).with_labels(settings.labels, settings.label_words)
    if not task.labels:
        raise InputError(
            f"the labels of {task.name} are your own rows': name --data with them, or --labels"
        )
    return task


def _preset(name: str | None, task: str) -> dict:
    if name is None:
        return {}
    if task not in PRESETS[name]:
        raise InputError(
            f"--preset {name} has no recipe for {task}; it has those of {', '.join(PRESETS[name])}"
        )
    return dict(PRESETS[name][task])


def _checked(field: dataclasses.Field, value: Any) -> Any:
    if value is None and field.default is None:
        return None
    flag, meta = "--" + field.name.replace("_", "-"), field.metadata
    try:
        filled(value)  # whatever it reads: an empty number is best called empty
        return one_of(*meta["choices"])(value) if meta["choices"] else meta["read"](value)
    except InputError as error:
        raise InputError(f"{flag} {error}") from None


def require_tags(name: str, task: str) -> None:
    """Refuse a setting of tagging tasks for another one."""
    if not TASKS[task].tags_words:
        flag = "--" + name.replace("_", "-")
        raise InputError(
            f"{flag} belongs to tasks that tag words, as ner does; the task here is {task}"
        )


def _refuse_without_effect(fields: dict, given: dict, values: dict) -> None:
    """A flag that would change nothing is a mistake of the user's, and is said, not swallowed."""
    parts, tags = values["method"].split("+"), TASKS[values["task"]].tags_words
    for name, value in given.items():
        flag, only = "--" + name.replace("_", "-"), fields[name].metadata["only"]
        if only and only not in parts and value != fields[name].default:
            raise InputError(
                f"{flag} belongs to the method {only}; the method here is {values['method']}"
            )
        if name in OF_TAGS and value != fields[name].default:
            require_tags(name, values["task"])
        if name == "readout" and tags and value != fields[name].default:
            raise InputError(
                f"{flag} belongs to tasks whose answer is said; {values['task']} tags words by a "
                "head"
            )
        if (
            name == "generate"
            and value
            and (tags or "head" in (values["method"], values["readout"]))
        ):
            raise InputError(
                "--generate belongs to answers that a language model says; a head reads them here"
            )
    if "prompt_text" in given and given["prompt_text"] and values["prompt_init"] != "text":
        raise InputError(f"--prompt-text needs --prompt-init text; it is {values['prompt_init']}")
