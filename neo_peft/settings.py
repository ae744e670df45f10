"""The settings of a training run, one for each flag: a frozen dataclass. No torch here.

The value of a setting is the first of these that exists: the flag; the preset's value (see `Recipe`
in defaults.py); the method's default on the bundled model; its other default (methods.py); the
setting's own default. A flag that sets another value than the default, without effect, is an error.
Such a value of a preset or a method is ignored.
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
from neo_peft.long_texts.truncation import PLACES
from neo_peft.methods import METHODS, Method
from neo_peft.tasks import TASKS, Task, get_task, is_tag


def owners(flag: str) -> list[str]:
    """Return the names of the methods that a flag belongs to; [] if it belongs to all."""
    registered = {part.name: part for parts in METHODS.values() for part in parts}
    return [name for name, part in registered.items() if flag in part.flags]


def choices_of(flag: str) -> tuple[str, ...]:
    """Return the allowed values of a flag, from all methods that it belongs to."""
    registered = [part for parts in METHODS.values() for part in parts]
    return tuple(dict.fromkeys(value for part in registered for value in part.flags.get(flag, ())))


# ---- Parsers of values


def whole(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Return a parser of whole numbers from `least` to `most`."""

    def parse(value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = None
        if number is None or number < least:
            raise InputError(f"{value} is not a whole number of at least {least}")
        if number > most:
            raise InputError(f"{value} is too large: the maximum is {most}")
        return number

    return parse


def real(least: float, below: float = math.inf, allow_least: bool = True) -> Callable[[Any], float]:
    """Return a parser of finite numbers below `below`, from `least` (included if `allow_least`)."""

    def parse(value: Any) -> float:
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

    return parse


def whole_or(word: str, most: int = 2**31 - 1) -> Callable[[Any], int | str]:
    """Return a parser of whole numbers from 1 to `most`, and of a word, such as "auto"."""

    def parse(value: Any) -> int | str:
        try:
            return value if value == word else whole(1, most)(value)
        except InputError as error:
            raise InputError(f"{error}; or use {word}") from None

    return parse


def filled(value: Any) -> str:
    """Return a name or a path as text. Raise InputError if it is blank."""
    if not str(value).strip():
        raise InputError("is empty")
    return str(value)


def names(value: Any) -> tuple[str, ...]:
    """Parse names separated by commas: labels, or the modules that get LoRA."""
    parts = value.split(",") if isinstance(value, str) else value
    parsed = tuple(str(part).strip() for part in parts if str(part).strip())
    if not parsed:
        raise InputError("is empty")
    return parsed


def columns(value: Any) -> tuple[str, ...]:
    """Parse the columns of fields, such as `text=body,label=stars`."""
    parts = names(value)
    for part in parts:
        if not all(side.strip() for side in part.partition("=")[::2]):
            raise InputError(f"{part!r} is not FIELD=COLUMN, as in text=body,label=stars")
    return parts


def class_weights(value: Any) -> tuple[str, ...] | None:
    """Parse class weights: `none`, `balanced`, or labels with numbers, such as `A=2,B=0.5`."""
    parts = names(value)
    if parts in (("none",), (BALANCED,)):
        return None if parts == ("none",) else parts
    for part in parts:
        name, _, number = part.rpartition("=")
        if not name.strip():
            raise InputError(f"{part!r} is not none, balanced or LABEL=WEIGHT, as in A=2,B=0.5")
        real(0, 1e6, allow_least=False)(number)
    return parts


def choice(words: Collection[str]) -> Callable[[Any], str]:
    """Return a parser that accepts one of several words."""

    def parse(value: Any) -> str:
        if value not in list(words):  # a list, because the value may be unhashable
            raise InputError(f"{value!r} is none of {', '.join(words)}")
        return value

    return parse


# ---- The settings


def flag(
    group: str, default: Any, help: str, parse: Callable = str, choices: Collection[str] = ()
) -> Any:
    """Declare a setting and its flag. `parse` checks and converts a value; `choices` are the words
    that are allowed."""
    parse = choice(choices) if choices else parse
    meta = {"group": group, "help": help, "parse": parse, "choices": choices}
    return field(default=default, metadata=meta)


data_flag, model_flag, adapter_flag, training_flag, run_flag = (
    partial(flag, group) for group in ("task and data", "model", "adapter", "training", "run")
)
MAX_LISTED = 200  # an instruction lists the labels if they have at most this many characters
FLAG_NAMES = {"tag_subtoken": "read"}  # settings whose flag has another name
TAGGING_SETTINGS = {"tag_subtoken", "echo", "tag_decoding"}
BALANCED = "balanced"
SELECTION_METRICS = ("accuracy", "macro_f1", "f1", "span_f1", "matthews", "loss")
FOR_TAGGING = "belongs to tagging tasks, such as ner"
FOR_CLASSIFICATION = "belongs to classification tasks"
FOR_FROZEN = "needs a frozen base"


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Make them with `make_settings`, which fills in and checks values."""

    task: str = data_flag(None, f"the task: {', '.join(TASKS)}", choices=TASKS)
    data: str = data_flag(
        "sample", "sample (bundled), hub (downloads), your own file or folder, or a corpus's folder"
    )
    columns: tuple[str, ...] | None = data_flag(
        None, "your file's columns, as text=body,label=stars (default: the usual names)", columns
    )
    protocol: str = data_flag(
        "clean",
        "PhraseBank's splits. clean: no overlap; paper: the original study's, test overlaps train",
        choices=("clean", "paper"),
    )
    labels: tuple[str, ...] | None = data_flag(
        None,
        "your own data's labels, or types of tags, in their order (default: train's, sorted)",
        names,
    )
    label_words: tuple[str, ...] | None = data_flag(
        None,
        "the text to predict for each label, separated by commas (default: the labels themselves)",
        names,
    )
    wording: str = data_flag(
        "own",
        "the template. own: that of neo_peft; source: that of the original study (sentiment, "
        "similarity), and no space before a label",
        choices=("own", "source"),
    )
    train_limit: int | None = data_flag(
        None, "train on this many rows, evenly spaced in the data (default: all)", whole(1)
    )
    eval_limit: int | str | None = data_flag(
        None, "rows of each split to score, evenly spaced, or all (default: all)", whole_or("all")
    )
    max_length: int | None = data_flag(
        None, "most tokens of a text and its template (default: what fits)", whole(1)
    )
    stride: int | None = data_flag(
        None, "tokens that windows of a long text share (default: an eighth of a window)", whole(0)
    )
    truncate: str | None = data_flag(
        None, "where a long text is cut (default: middle; a tagged one: nowhere)", choices=PLACES
    )
    tag_subtoken: str = data_flag(
        "first", "which sub-token of a word predicts the word's tag", choices=("first", "last")
    )
    echo: bool = data_flag(
        False,
        "repeat each sentence; predict its tags in the copy, after the whole sentence was seen",
        bool,
    )
    tag_decoding: str = data_flag(
        "viterbi",
        "how tags are chosen. viterbi: the best valid BIO sequence; greedy: each word's best tag",
        choices=("viterbi", "greedy"),
    )

    model: str = model_flag(
        BUNDLED_MODEL,
        "neo-mini (bundled), a Hugging Face folder, or a hub id: owner/name, owner/name@revision",
    )
    precision: str = model_flag(
        "auto",
        "dtype of the frozen matrices and of their products; auto is fp16 on CUDA, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    quantize: str = model_flag(
        "none",
        "store the frozen linear layers in 8 or 4 bits: less memory, more time; not for full",
        choices=("none", "int8", "nf4"),
    )
    device: str = model_flag(
        "auto",
        "where to compute; auto is cuda if there is a GPU, else cpu",
        choices=("auto", "cuda", "mps", "cpu"),
    )
    threads: int | str = model_flag(
        "auto",
        "number of CPU threads; auto is 1 for a model under 50 million parameters, and else all "
        "available cores",
        whole_or("auto", 1024),
    )

    adapter: str | None = adapter_flag(
        None,
        "train a run or a peft adapter further; it sets model, task, labels, method and its flags",
    )
    method: str = adapter_flag(None, f"what is trained: {', '.join(METHODS)}", choices=METHODS)
    readout: str = adapter_flag(
        "words",
        "what predicts labels. words: the language model, by label words; head: a linear layer",
        choices=("words", "head"),
    )
    rank: int = adapter_flag(8, "rank r of LoRA's A and B", whole(1, 16_384))
    alpha: float = adapter_flag(
        16.0, "LoRA's B A x is multiplied by alpha / r", real(0, allow_least=False)
    )
    dropout: float = adapter_flag(0.0, "dropout on the input of LoRA's A", real(0, 1))
    target_modules: tuple[str, ...] = adapter_flag(
        ("q_proj", "v_proj"),
        "layers with LoRA: ends of names, regular expressions (commas between), or all-linear",
        names,
    )
    bias: str = adapter_flag(
        "none",
        "which biases are trained too. all: of the whole model; lora_only: of layers with LoRA",
        choices=choices_of("bias"),
    )
    rslora: bool = adapter_flag(False, "multiply B A x by alpha / sqrt(r), not alpha / r", bool)
    lora_init: str = adapter_flag("kaiming", "initial values of A", choices=choices_of("lora_init"))
    prompt_length: int = adapter_flag(
        8, "number P of positions of the prompt or the prefix", whole(1, 16_384)
    )
    prompt_init: str = adapter_flag(
        "text",
        "how the prompt or the prefix starts. text: as the tokens of a text; vocab: random tokens; "
        "labels: the tokens of the label words; random: normal; zeros: of a prefix only",
        choices=choices_of("prompt_init"),
    )
    prompt_text: str | None = adapter_flag(
        None, "the initial text, for --prompt-init text (default: the task's instruction)"
    )
    head_dropout: float = adapter_flag(0.1, "dropout before a linear head", real(0, 1))

    epochs: int = training_flag(10, "passes over the training data", whole(1))
    max_steps: int | None = training_flag(None, "stop after N steps (default: never)", whole(1))
    batch_size: int = training_flag(16, "examples in a batch, for each process", whole(1))
    gradient_accumulation: int = training_flag(1, "number of batches in one step", whole(1))
    checkpoint_activations: bool = training_flag(
        False,
        "compute each layer again in the backward pass: less memory, more time, identical results",
        bool,
    )
    # Bounded because AdamW multiplies them, and torch refuses a factor that is too large for fp32.
    learning_rate: float = training_flag(None, "the highest rate", real(0, 1e34, allow_least=False))
    weight_decay: float = training_flag(0.01, "AdamW's weight decay, of matrices", real(0, 1e4))
    warmup_ratio: float = training_flag(0.0, "share of the steps that are warm-up", real(0, 1))
    clip_norm: float = training_flag(1.0, "clip the gradient to this norm; 0: never", real(0))
    class_weights: tuple[str, ...] | None = training_flag(
        None,
        "the labels' weights in the training loss: balanced (1 / frequency), or A=2,B=0.5",
        class_weights,
    )
    keep: str = training_flag(
        "best",
        "which weights are saved. best: those with the best validation score; last: the last ones",
        choices=("best", "last"),
    )
    metric: str | None = training_flag(
        None,
        "the score on validation that chooses the best weights (default: the task's, such as f1)",
        choices=SELECTION_METRICS,
    )
    eval_every: int | None = training_flag(
        None, "score validation every N steps and at the end (default: after each epoch)", whole(1)
    )
    patience: int | None = training_flag(
        None, "end the training after N scorings without a better score (default: never)", whole(1)
    )
    seed: int = training_flag(0, "seed of initial values, dropout and row order", whole(0))
    checkpoint_every: int = training_flag(
        500, "write a checkpoint every N steps, and after each scoring of validation", whole(1)
    )

    no_before: bool = run_flag(False, "do not score the untuned model before training", bool)
    head_baseline: bool = run_flag(False, "score a linear head alone, even if it is costly", bool)
    generate: bool = run_flag(False, "score generated text too (without a linear head)", bool)
    preset: str | None = run_flag(
        None,
        "paper: the recipe of the original study; best: a recipe that scores higher on neo-mini",
        choices=tuple(PRESETS),
    )
    out: str | None = run_flag(
        None, "the run's folder (default: runs/TASK-METHOD, or if it exists TASK-METHOD-2, …)"
    )
    resume: str | None = run_flag(None, "resume the run in this folder; allows only --json")
    json: bool = run_flag(False, "print one JSON object, and only that, on standard output", bool)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that are trained: one, or several in a combination."""
        return METHODS[self.method]

    @property
    def source_text(self) -> bool:
        """Whether the template is that of the original study."""
        return self.wording == "source"

    @property
    def with_head(self) -> bool:
        """Whether a linear head predicts the label, in place of the language model."""
        return self.readout == "head" or any(part.needs_head for part in self.parts)

    @property
    def trains_base(self) -> bool:
        return any(part.trains_base for part in self.parts)

    @property
    def prefix_length(self) -> int:
        """How many positions the method adds in front of every text."""
        return sum(getattr(self, part.length_flag) for part in self.parts if part.length_flag)


def make_settings(**given: Any) -> Settings:
    """Return the settings of a run: the given ones, and defaults for all others. Raise InputError
    for bad ones."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"there is no setting {name!r}; the settings are {', '.join(fields)}")
        given[name] = _checked(fields[name], value)
    given = {name: value for name, value in given.items() if value is not None}
    if "task" not in given:
        raise InputError(f"--task is missing; the tasks are {', '.join(TASKS)}")
    defaults = {name: field.default for name, field in fields.items()}
    recipe = _recipe(given.get("preset"), given["task"])
    method = given.get("method", recipe.method)
    if method is None:
        raise InputError(
            f"--method is missing; the methods are {', '.join(METHODS)} (a --preset sets one)"
        )
    values = defaults | {"method": method}
    bundled = {**defaults, **recipe.always, **given}["model"] == BUNDLED_MODEL
    main = METHODS[method][0]
    for table, applies in (  # a later table overrides an earlier one
        (main.defaults, True),
        (main.on_bundled, bundled),
        (recipe.always, True),
        (recipe.for_method, method == recipe.method),
        (recipe.on_bundled, method == recipe.method and bundled),
    ):
        values |= table if applies else {}
    values |= given
    for name in values.keys() - given.keys():  # set by a preset or a method
        if values[name] != defaults[name] and no_effect(name, values):
            values[name] = defaults[name]
    for name, value in given.items():
        if value != defaults[name] and (reason := no_effect(name, values)):
            raise InputError(f"{flag_name(name)} {reason}")
    for name, reserved in {"model": (BUNDLED_MODEL,), "data": ("sample", "hub")}.items():
        path = Path(values[name])
        if values[name] not in reserved and (path.is_dir() or name == "data" and path.is_file()):
            # absolute, because the run can be scored again from any folder
            values[name] = str(path.resolve())
    return Settings(**values)


def task_of(settings: Settings) -> Task:
    """Return the task of a run, with the labels and the label words of its settings."""
    task = with_labels(get_task(settings.task), settings.labels, settings.label_words)
    if not task.labels:
        raise InputError(
            f"{task.name} has no labels of its own: give your own rows with --data, or labels "
            "with --labels"
        )
    return task


def with_labels(
    task: Task, labels: Collection[str] | None, words: Collection[str] | None = None
) -> Task:
    """Return the task with these labels in this order, and with these label words, one for each
    label. None keeps the task's own."""
    if labels is not None and (labels := task.own_labels(labels)) != task.labels:
        if len(set(labels)) != len(labels):
            raise InputError(
                f"the labels {', '.join(labels)} contain a label twice; name each once"
            )
        if wrong := [label for label in labels if task.is_tagging and not is_tag(label)]:
            raise InputError(
                f"the label {wrong[0]!r} is no BIO tag; give O, B-type and I-type, or types alone"
            )
        types = dict.fromkeys(label[2:] for label in labels if label != "O")
        listed = ", ".join(types if task.is_tagging else words or labels)
        # A long list would leave too few positions for the text after it.
        short = len(listed) > MAX_LISTED
        template = task.short_instruction_for_labels if short else task.instruction_for_labels
        task = replace(task, labels=labels, instruction=template.format(listed))
    if words is not None and task.is_tagging:
        raise InputError(f"--label-words {FOR_CLASSIFICATION}; {task.name} is a tagging task")
    if words is not None and len(words) != len(task.labels):
        raise InputError(
            f"--label-words {','.join(words)}: one word for each of the {len(task.labels)} labels "
            f"is needed, in the order of {', '.join(task.labels)}"
        )
    if words is not None:
        task = replace(task, label_words=tuple(words))
    label_of: dict[str, str] = {}  # by label text; generated text is matched regardless of case
    for label in () if task.is_tagging else task.labels:
        word = task.label_text(label).strip().lower()
        if label_of.setdefault(word, label) != label:
            raise InputError(
                f"the labels {label_of[word]} and {label} have the same label words {word!r}; "
                "give each its own with --label-words"
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
            f"--preset {preset} has no recipe for {task}; it has recipes for "
            f"{', '.join(PRESETS[preset])}"
        )
    return PRESETS[preset][task]


def _checked(item: dataclasses.Field, value: Any) -> Any:
    if value is None and item.default is None:
        return None
    meta = item.metadata
    try:
        filled(value)  # so that a blank number is called empty too
        return meta["parse"](value)
    except InputError as error:
        raise InputError(f"{flag_name(item.name)} {error}") from None


def no_effect(name: str, values: dict[str, Any]) -> str | None:
    """Return why a setting has no effect together with these values. None if it has an effect."""
    task, parts = TASKS[values["task"]], METHODS[values["method"]]
    with_head = values["readout"] == "head" or any(part.needs_head for part in parts)
    methods = owners(name)
    if methods and not {part.name for part in parts} & {*methods}:
        return (
            f"belongs to the method {' or '.join(methods)}; the method here is {values['method']}"
        )
    for part in parts:
        if (allowed := part.flags.get(name)) and values[name] not in allowed:
            return f"is {values[name]}; the method {part.name} has {', '.join(allowed)}"
    if name in (*TAGGING_SETTINGS, "stride") and not task.is_tagging:
        return f"{FOR_TAGGING}; the task here is {task.name}"
    if name in ("wording", "readout") and task.is_tagging:
        return f"{FOR_CLASSIFICATION}; {task.name} is a tagging task"
    if name == "truncate" and task.is_tagging and values[name] in ("middle", "start"):
        return f"{values[name]} {FOR_CLASSIFICATION}; a text to tag can only be cut at its end"
    if name == "stride" and values["truncate"]:
        return "is for windows; with --truncate end a text is cut"
    is_needed = (task.is_tagging or with_head) and not values["adapter"]
    if name == "head_baseline" and (values["method"] == "head" or not is_needed):
        return "needs a method that trains a new linear head and other weights"
    if name == "generate" and (task.is_tagging or with_head):
        return "needs the language model to predict the label; here a linear head does"
    if name in ("metric", "patience") and values["keep"] == "last":
        return "needs the best score on validation, but --keep is last"
    if name == "quantize" and values[name] != "none" and any(part.trains_base for part in parts):
        return f"{FOR_FROZEN}; the method {values['method']} trains all weights"
    if name == "prompt_text" and values["prompt_init"] != "text":
        return f"needs --prompt-init text; it is {values['prompt_init']}"
    return None
