"""The settings of a training run, one for each flag: a frozen dataclass. No torch here.

A setting's value is, in this order: the flag; the preset's (three tables: see `Recipe` in
defaults.py); the default of the method on the bundled model; the default of the method;
the setting's own default. What would have no effect is refused where a flag says it, and left out
where a preset or a method does.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from neo_peft.defaults import BUNDLED_MODEL, PRESETS, Recipe
from neo_peft.errors import InputError
from neo_peft.methods import METHODS, Method, choices_of, owners
from neo_peft.tasks import TASKS, Task, get_task, is_tag

# ---- How the text of a flag is read


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


def choice(words: Collection[str]) -> Callable[[Any], str]:
    """Make a reader of one of several words."""

    def read(value: Any) -> str:
        if value not in list(words):  # a list, since what is given may have no hash
            raise InputError(f"{value!r} is none of {', '.join(words)}")
        return value

    return read


# ---- The settings


def flag(
    group: str, default: Any, help: str, read: Callable = str, choices: Collection[str] = ()
) -> Any:
    """Declare a setting and its flag: how a value is read, or the words that it may be."""
    meta = {
        "group": group,
        "help": help,
        "read": choice(choices) if choices else read,
        "choices": choices,
    }
    return field(default=default, metadata=meta)


data_flag, model_flag, adapter_flag, training_flag, run_flag = (
    partial(flag, group) for group in ("task and data", "model", "adapter", "training", "run")
)
LISTED = 200  # characters of labels that an instruction names
FLAG_NAMES = {"tag_subtoken": "read"}  # of settings that have another name than their flag
OF_TAGS = {"tag_subtoken", "echo", "tag_decoding"}
OF_TAGS_ALONE = "belongs to tasks that tag words, as ner does"


@dataclass(frozen=True)
class Settings:
    """What a run is made from. Make one with `make_settings`, which fills in defaults and checks
    ranges."""

    task: str = data_flag(None, f"what to learn: {', '.join(TASKS)}", choices=TASKS)
    data: str = data_flag(
        "sample", "sample (bundled), hub, or a folder: your own train.jsonl, or original files"
    )
    protocol: str = data_flag(
        "clean",
        "PhraseBank's split: clean, or the source's, whose test overlaps its training",
        choices=("clean", "paper"),
    )
    labels: tuple[str, ...] | None = data_flag(
        None,
        "your own rows' labels in their order, split by commas (default: as they come in train)",
        names,
    )
    label_words: tuple[str, ...] | None = data_flag(
        None, "what the model says for each label, in their order (default: the labels)", names
    )
    wording: str = data_flag(
        "own",
        "the text around a row: own, or the source's, whose labels have no leading space",
        choices=("own", "source"),
    )
    train_limit: int | None = data_flag(
        None, "train on this many rows, evenly spaced (default: all)", whole(1)
    )
    eval_limit: int | None = data_flag(
        None, "score this many rows of a split, evenly spaced (default: all)", whole(1)
    )
    max_length: int | None = data_flag(
        None,
        "tokens of a text and its template; longer text is cut (default: what fits the model)",
        whole(1),
    )
    tag_subtoken: str = data_flag(
        "first", "the sub-token of a word at which its tag is read", choices=("first", "last")
    )
    echo: bool = data_flag(
        False, "give a sentence twice and tag its second copy, which has seen all of it", bool
    )
    tag_decoding: str = data_flag(
        "viterbi",
        "how tags are chosen: viterbi, the best sequence that BIO allows; greedy, each word's best",
        choices=("viterbi", "greedy"),
    )

    model: str = model_flag(
        BUNDLED_MODEL,
        "neo-mini (bundled), a folder in Hugging Face's layout, or a hub id: owner/name, or "
        "owner/name@revision",
    )
    precision: str = model_flag(
        "auto",
        "what frozen matrices are held and multiplied in; auto is fp16 on CUDA, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = model_flag("auto", "where to compute", choices=("auto", "cuda", "mps", "cpu"))
    threads: int | str = model_flag(
        "auto", "CPU threads; auto takes what the process may use, few if small", threads
    )

    adapter: str | None = adapter_flag(
        None,
        "train this further: a run's folder, or an adapter of peft's; it settles the flags below",
    )
    method: str = adapter_flag(None, f"what trains: {', '.join(METHODS)}", choices=METHODS)
    readout: str = adapter_flag(
        "words",
        "how an answer is read: words, the language model says the label's; head, a linear layer "
        "that trains beside the method",
        choices=("words", "head"),
    )
    rank: int = adapter_flag(8, "rank r of LoRA's A and B", whole(1, 16_384))
    alpha: float = adapter_flag(
        16.0, "LoRA's correction is scaled by alpha / r", real(0, allow_least=False)
    )
    dropout: float = adapter_flag(0.0, "dropout on the input of LoRA's A", real(0, 1))
    target_modules: tuple[str, ...] = adapter_flag(
        ("q_proj", "v_proj"),
        "layers that get LoRA: ends of names or regular expressions split by commas, or all-linear",
        names,
    )
    bias: str = adapter_flag("none", "biases that train beside LoRA", choices=choices_of("bias"))
    rslora: bool = adapter_flag(False, "scale LoRA by alpha / sqrt(r)", bool)
    lora_init: str = adapter_flag("kaiming", "how A starts", choices=choices_of("lora_init"))
    prompt_length: int = adapter_flag(8, "rows P of the soft prompt", whole(1, 16_384))
    prompt_init: str = adapter_flag(
        "text", "what the prompt starts from", choices=choices_of("prompt_init")
    )
    prompt_text: str | None = adapter_flag(
        None, "the text it starts from (default: the task's instruction)"
    )
    head_dropout: float = adapter_flag(
        0.1, "dropout before the linear head, where there is one", real(0, 1)
    )

    epochs: int = training_flag(10, "passes over the training rows", whole(1))
    max_steps: int | None = training_flag(
        None, "stop after this many updates (default: no limit)", whole(1)
    )
    batch_size: int = training_flag(16, "examples in a batch of each process", whole(1))
    gradient_accumulation: int = training_flag(1, "batches in one update", whole(1))
    checkpoint_activations: bool = training_flag(
        False,
        "compute each layer again in the backward pass: less memory, more time, the same bits",
        bool,
    )
    # Bounded, since AdamW multiplies them, and torch refuses a factor that does not fit into fp32.
    learning_rate: float = training_flag(None, "the rate's peak", real(0, 1e34, allow_least=False))
    weight_decay: float = training_flag(0.01, "AdamW's decay, of matrices only", real(0, 1e4))
    warmup_ratio: float = training_flag(
        0.0, "share of the updates in which the rate rises", real(0, 1)
    )
    clip_norm: float = training_flag(1.0, "the gradient's greatest norm; 0 does not clip", real(0))
    keep: str = training_flag(
        "best", "which epoch's weights stay: best on validation, or last", choices=("best", "last")
    )
    seed: int = training_flag(
        0, "seed of the adapter's start and of the order of the rows", whole(0)
    )
    checkpoint_every: int = training_flag(
        500, "updates from one checkpoint to the next; each epoch ends with one too", whole(1)
    )

    generate: bool = run_flag(
        False, "score answers by free generation too, beside the rank of the labels", bool
    )
    preset: str | None = run_flag(
        None,
        "paper: the recipe of the study that this project follows; best: what beat it on neo-mini",
        choices=tuple(PRESETS),
    )
    out: str | None = run_flag(None, "the run's folder (default: runs/TASK-METHOD, then -2, -3)")
    resume: str | None = run_flag(
        None, "go on with the run in this folder, which settles all other flags"
    )
    json: bool = run_flag(
        False, "print one JSON object on standard output, and nothing else there", bool
    )

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that `method` names: one, or several in combination."""
        return METHODS[self.method]

    @property
    def source_text(self) -> bool:
        """Whether rows are worded as in the source."""
        return self.wording == "source"

    @property
    def with_head(self) -> bool:
        """Whether an answer is read by a linear head, and not said by the language model."""
        return self.readout == "head" or any(part.needs_head for part in self.parts)

    @property
    def trains_base(self) -> bool:
        return any(part.trains_base for part in self.parts)

    @property
    def positions_in_front(self) -> int:
        """How many positions the method takes in front of every text."""
        return sum(getattr(self, part.length_flag) for part in self.parts if part.length_flag)


def make_settings(**given: Any) -> Settings:
    """Make the settings of a run from those that are given, and fill in the rest. Raise InputError
    for bad ones."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"there is no setting {name!r}; the settings are {', '.join(fields)}")
        given[name] = _checked(fields[name], value)
    given = {name: value for name, value in given.items() if value is not None}
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    own = {name: field.default for name, field in fields.items()}
    recipe = _recipe(given.get("preset"), given["task"])
    method = given.get("method", recipe.method)
    if method is None:
        raise InputError(
            f"--method is missing; the methods are {', '.join(METHODS)} (a --preset brings its own)"
        )
    usual = own | {"method": method}
    model = {**own, **recipe.always, **given}["model"]
    main = METHODS[method][0]
    for values, belongs in (
        (main.defaults, True),
        (main.on_bundled, model == BUNDLED_MODEL),
        (recipe.always, True),
        (recipe.of_method, method == recipe.method),
        (recipe.on_bundled, method == recipe.method and model == BUNDLED_MODEL),
    ):
        usual |= values if belongs else {}
    values = usual | given
    for name in values.keys() - given.keys():
        if values[name] != own[name] and _no_effect(name, values):
            values[name] = own[name]
    for name, value in given.items():
        if value != own[name] and (reason := _no_effect(name, values)):
            raise InputError(f"{flag_name(name)} {reason}")
    for name, known in {"model": (BUNDLED_MODEL,), "data": ("sample", "hub")}.items():
        if values[name] not in known and Path(values[name]).is_dir():
            # A run is scored again from any folder.
            values[name] = str(Path(values[name]).resolve())
    return Settings(**values)


def task_of(settings: Settings) -> Task:
    """Return the task of a run, with the labels and the labels' words that its settings have."""
    task = with_labels(get_task(settings.task), settings.labels, settings.label_words)
    if not task.labels:
        raise InputError(
            f"the labels of {task.name} are your own rows': name --data with them, or --labels"
        )
    return task


def with_labels(
    task: Task, labels: Collection[str] | None, words: Collection[str] | None = None
) -> Task:
    """Return a task for a user's own labels, in their order. `words` are what the model says for
    them, one each."""
    if labels is not None and tuple(labels) != task.labels:
        if len(set(labels)) != len(labels):
            raise InputError(f"the labels {', '.join(labels)} hold one twice; name each once")
        if wrong := [label for label in labels if task.tags_words and not is_tag(label)]:
            raise InputError(
                f"the label {wrong[0]!r} is no tag; those of {task.name} are O, B-type and I-type"
            )
        types = dict.fromkeys(label[2:] for label in labels if label != "O")
        listed = ", ".join(types if task.tags_words else words or labels)
        # A long list would take the place of the texts after it.
        short = len(listed) > LISTED
        template = task.short_instruction_for_labels if short else task.instruction_for_labels
        task = replace(task, labels=tuple(labels), instruction=template.format(listed))
    if words is not None and task.tags_words:
        raise InputError(
            f"--label-words belongs to tasks whose answer is said; {task.name} tags words by a head"
        )
    if words is not None and len(words) != len(task.labels):
        raise InputError(
            f"--label-words {','.join(words)}: one word for each of the {len(task.labels)} labels "
            f"is needed, in the order of {', '.join(task.labels)}"
        )
    if words is not None:
        task = replace(task, label_words=tuple(words))
    said: dict[str, str] = {}  # free generation is matched regardless of case
    for label in () if task.tags_words else task.labels:
        word = task.label_text(label).strip().lower()
        if said.setdefault(word, label) != label:
            raise InputError(
                f"the labels {said[word]} and {label} are both said {word!r}; --label-words gives "
                "each its own"
            )
    return task


def flag_name(setting: str) -> str:
    """Return the flag of a setting: `--batch-size` of `batch_size`."""
    return "--" + FLAG_NAMES.get(setting, setting).replace("_", "-")


def _recipe(preset: str | None, task: str) -> Recipe:
    if preset is None:
        return Recipe()
    if task not in PRESETS[preset]:
        raise InputError(
            f"--preset {preset} has no recipe for {task}; it has those of "
            f"{', '.join(PRESETS[preset])}"
        )
    return PRESETS[preset][task]


def _checked(item: dataclasses.Field, value: Any) -> Any:
    if value is None and item.default is None:
        return None
    meta = item.metadata
    try:
        filled(value)  # whatever it reads: an empty number is best called empty
        return meta["read"](value)
    except InputError as error:
        raise InputError(f"{flag_name(item.name)} {error}") from None


def require_tags(name: str, task: str) -> None:
    """Refuse a setting of tagging tasks for another one."""
    if name in OF_TAGS and not TASKS[task].tags_words:
        raise InputError(f"{flag_name(name)} {OF_TAGS_ALONE}; the task here is {task}")


def _no_effect(name: str, values: dict[str, Any]) -> str | None:
    """Return why a setting would change nothing beside these values; None where it has an
    effect."""
    task, parts = TASKS[values["task"]], METHODS[values["method"]]
    by_head = values["readout"] == "head" or any(part.needs_head for part in parts)
    belongs_to = owners(name)
    if belongs_to and not {part.name for part in parts} & {*belongs_to}:
        return (
            f"belongs to the method {' or '.join(belongs_to)}; the method here is "
            f"{values['method']}"
        )
    if name in OF_TAGS and not task.tags_words:
        return f"{OF_TAGS_ALONE}; the task here is {task.name}"
    if name == "wording" and task.tags_words:
        return f"belongs to tasks with a text around a row; {task.name} has its words alone"
    if name == "readout" and task.tags_words:
        return f"belongs to tasks whose answer is said; {task.name} tags words by a head"
    if name == "generate" and (task.tags_words or by_head):
        return "belongs to answers that a language model says; a head reads them here"
    if name == "prompt_text" and values["prompt_init"] != "text":
        return f"needs --prompt-init text; it is {values['prompt_init']}"
    return None
