"""The methods: what trains, and how it is put on a frozen model. No torch at import.

A method is an entry of `METHODS`, and a module with its tensors, imported at first use.
docs/extending.md adds one, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from neo_peft.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from neo_peft.gptneo import GPTNeo
    from neo_peft.model import HeadKind, TunedModel
    from neo_peft.settings import Settings
    from neo_peft.tasks import Task


@dataclass(frozen=True)
class Method:
    """What trains, under its name in `--method`."""

    name: str
    # Where its tensors are made; "" without any. `apply(model, settings, task, tokenize)` puts
    # what trains onto a frozen model. The module may also have `adapted_layers(model)`, which names
    # the layers that it changes, grouped by kind, and `warnings(model)`: sentences on what shows,
    # after training, that nothing was learnt.
    module: str = ""
    # Finds the names of its tensors (a regular expression), which a combination saves apart. What
    # no part finds belongs to the first one.
    tensors: str = ""
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # its own, and their choices
    defaults: dict[str, object] = field(default_factory=dict)  # behind flags and presets
    # What differs on the bundled model, which is small: chosen on validation, docs/results.md.
    on_bundled: dict[str, object] = field(default_factory=dict)
    length_flag: str = ""  # counts the positions it takes in front of every text; "" for none
    needs_head: bool = False  # an answer is always read by a linear head
    trains_base: bool = False  # then matrices are fp32, and runs cannot share the base
    merges: bool = True  # a plain model can hold what it trained (`export --merge`)
    mixes: bool = False  # a batch may mix examples of several runs on one base (`AdapterSet`)
    peft_type: str = ""  # peft's name of it; "" where peft has no such adapter

    def call(self, function: str, *arguments):
        """Call a function of the method's module; return None where it has none."""
        found = getattr(import_module(self.module), function, None) if self.module else None
        return found and found(*arguments)


LORA = Method(
    name="lora",
    module="neo_peft.lora",
    flags=dict.fromkeys(("rank", "alpha", "dropout", "target_modules", "rslora"), ())
    | {"bias": ("none", "all", "lora_only"), "lora_init": ("kaiming", "gaussian")},
    defaults={"learning_rate": 1e-3},
    on_bundled={"learning_rate": 5e-3},
    mixes=True,
    peft_type="LORA",
)
PROMPT = Method(
    name="prompt",
    module="neo_peft.prompt",
    tensors=r"^prompt\.",
    flags=dict.fromkeys(("prompt_length", "prompt_text"), ())
    | {"prompt_init": ("text", "vocab", "labels", "random")},
    defaults={"learning_rate": 3e-2},
    on_bundled={"learning_rate": 1e-1, "prompt_length": 20, "epochs": 20, "warmup_ratio": 0.1},
    length_flag="prompt_length",
    merges=False,
    mixes=True,
    peft_type="PROMPT_TUNING",
)
FULL = Method(
    name="full",
    defaults={"learning_rate": 5e-5},
    on_bundled={"learning_rate": 1e-3},
    trains_base=True,
)
HEAD = Method(name="head", defaults={"learning_rate": 1e-2}, needs_head=True, mixes=True)

# What `--method` takes. A combination has the defaults of its first part.
METHODS: dict[str, tuple[Method, ...]] = {
    "lora": (LORA,),
    "prompt": (PROMPT,),
    "full": (FULL,),
    "head": (HEAD,),
    "lora+prompt": (LORA, PROMPT),
}


def owners(flag: str) -> list[str]:
    """Return the names of the methods that a flag belongs to; [] where it belongs to all."""
    registered = {part.name: part for parts in METHODS.values() for part in parts}
    return [name for name, part in registered.items() if flag in part.flags]


def choices_of(flag: str) -> tuple[str, ...]:
    """Return the words that a method's flag takes, of all methods that it belongs to."""
    registered = [part for parts in METHODS.values() for part in parts]
    return tuple(dict.fromkeys(word for part in registered for word in part.flags.get(flag, ())))


# ---- From settings to a model


def head_kind(task: Task, settings: Settings) -> HeadKind:
    """Return what reads the answers of a task."""
    from neo_peft.model import HeadKind

    if task.tags_words:
        return HeadKind.CLASSIFIER
    return HeadKind.SCORE if settings.with_head else HeadKind.LM_HEAD


def base_dtype(settings: Settings, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the base's matrices: fp32 where they train, else the compute dtype."""
    import torch

    return torch.float32 if settings.trains_base else compute_dtype


def build_model(
    trunk: GPTNeo,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    settings: Settings,
    compute_dtype: torch.dtype | None = None,
) -> TunedModel:
    """Put the settings' method onto a trunk, with the head that the task is read by.

    The seed is set before the head is drawn, and again before the method's own tensors.
    """
    import torch

    from neo_peft.model import HeadKind, TunedModel, draw_head, head_of_words

    def tokenize(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if max(ids) >= trunk.config.vocab_size:
            known = trunk.config.vocab_size
            raise InputError(f"the tokenizer says token {max(ids)}, but the model knows {known}")
        return ids

    kind, head = head_kind(task, settings), None
    trunk.requires_grad_(False)
    trunk.checkpoint_activations = settings.checkpoint_activations
    torch.manual_seed(settings.seed)
    if kind == HeadKind.CLASSIFIER:
        head = draw_head(trunk, len(task.labels))
    elif kind == HeadKind.SCORE:
        answers = [task.answer(label, settings.source_text) for label in task.labels]
        head = head_of_words(trunk, [tokenize(answer) for answer in answers])
    dtype = compute_dtype or torch.float32
    model = TunedModel(trunk, kind, head, None, settings.head_dropout, dtype)
    torch.manual_seed(settings.seed)
    for part in settings.parts:
        part.call("apply", model, settings, task, tokenize)
    if settings.trains_base:
        trunk.requires_grad_(True)
    return model


def untuned_model(model: TunedModel) -> TunedModel:
    """Return the model that was there before, without a prompt (LoRA adds zero yet). The language
    model's head reads it, or the untrained head of a tagging task."""
    from neo_peft.model import HeadKind, TunedModel

    tags = model.head_kind == HeadKind.CLASSIFIER
    head = (model.head_kind, model.head) if tags else (HeadKind.LM_HEAD, None)
    return TunedModel(model.transformer, *head, compute_dtype=model.compute_dtype)
