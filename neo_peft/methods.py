"""The methods: what each one trains, and how it is added to a frozen model. Import needs no torch.

A method is an entry of `METHODS`. Usually a module makes its tensors; it is imported at first use.
docs/extending.md shows step by step how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    """A method, or one part of a combination such as lora+prompt."""

    name: str  # for `--method` and messages
    title: str  # its name in a sentence
    # The module that makes its tensors; "" if it adds none.
    #   apply(model, settings, task, tokenize): adds the tensors to a frozen model.
    #   adapted_layers(model), optional: returns the names of the changed layers by kind.
    #   warnings(model), optional: returns warnings when trained or loaded ("LoRA's B is zero …").
    module: str = ""
    # A regular expression that matches the names of its tensors. A combination saves each part in
    # its own folder. Tensors that match no part belong to the first part.
    tensors: str = ""
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # allowed values; () is any
    defaults: dict[str, object] = field(default_factory=dict)  # used if no flag or preset sets it
    on_bundled: dict[str, object] = field(default_factory=dict)  # neo-mini's: docs/experiments.md
    length_flag: str = ""  # the setting with the prompt's length; "" without a prompt
    needs_head: bool = False  # classification always uses a linear head
    trains_base: bool = False  # the base's weights are trained, in fp32; runs cannot share a base
    merges: bool = True  # `export --merge` can write the result as a plain model
    mixes: bool = False  # one batch can have examples of several runs on one base (`AdapterSet`)
    peft_type: str = ""  # its name in peft; "" if peft does not have it

    def call(self, name: str, *arguments):
        """Call a function of the method's module by name; return None if it does not exist."""
        function = getattr(import_module(self.module), name, None) if self.module else None
        return function and function(*arguments)


LORA = Method(
    name="lora",
    title="LoRA",
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
    title="prompt tuning",
    module="neo_peft.prompt",
    tensors=r"^prompt\.",
    flags=dict.fromkeys(("prompt_length", "prompt_text"), ())
    | {"prompt_init": ("text", "vocab", "labels", "random")},
    defaults={"learning_rate": 3e-2},
    on_bundled={"learning_rate": 2e-2, "prompt_length": 20, "epochs": 20, "warmup_ratio": 0.1},
    length_flag="prompt_length",
    merges=False,
    mixes=True,
    peft_type="PROMPT_TUNING",
)
PREFIX = replace(
    PROMPT,
    name="prefix",
    title="prefix tuning",
    module="neo_peft.prefix",
    flags=PROMPT.flags | {"prompt_init": (*PROMPT.flags["prompt_init"], "zeros")},
    defaults={"learning_rate": 1e-2},
    on_bundled={"learning_rate": 3e-2},
    peft_type="PREFIX_TUNING",
)
FULL = Method(
    name="full",
    title="full tuning",
    defaults={"learning_rate": 5e-5},
    on_bundled={"learning_rate": 1e-3},
    trains_base=True,
)
HEAD = Method("head", "a head", defaults={"learning_rate": 1e-2}, needs_head=True, mixes=True)

# The values of `--method`. A combination has the defaults of its first part.
METHODS: dict[str, tuple[Method, ...]] = {
    "lora": (LORA,),
    "prompt": (PROMPT,),
    "prefix": (PREFIX,),
    "full": (FULL,),
    "head": (HEAD,),
    "lora+prompt": (LORA, PROMPT),
    "lora+prefix": (LORA, PREFIX),
}


# ---- From settings to a model


def head_kind(task: Task, settings: Settings) -> HeadKind:
    """Return the kind of head for a task."""
    from neo_peft.model import HeadKind

    if task.is_tagging:
        return HeadKind.CLASSIFIER
    return HeadKind.SCORE if settings.with_head else HeadKind.LM_HEAD


def base_dtype(settings: Settings, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the base's matrices: fp32 if they train, else the compute dtype."""
    import torch

    return torch.float32 if settings.trains_base else compute_dtype


def build_model(
    trunk: GPTNeo,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    settings: Settings,
    compute_dtype: torch.dtype | None = None,
) -> TunedModel:
    """Return a model: the trunk (frozen, except with `full`), the task's head, and the method. The
    seed is set twice: before the head is drawn, and before the method draws its tensors."""
    import torch

    from neo_peft import encoding
    from neo_peft.model import HeadKind, TunedModel, draw_head, head_from_label_words

    def tokenize(text: str) -> list[int]:
        (ids,) = encoding.tokenize(tokenizer, [text])
        if max(ids) >= (size := trunk.config.vocab_size):
            raise InputError(f"token id {max(ids)}, but the model has {size} tokens")
        return ids

    kind, head = head_kind(task, settings), None
    trunk.requires_grad_(False)
    trunk.checkpoint_activations = settings.checkpoint_activations
    torch.manual_seed(settings.seed)
    if kind == HeadKind.CLASSIFIER:
        head = draw_head(trunk, len(task.labels))
    elif kind == HeadKind.SCORE:
        texts = [task.label_text(label, settings.source_text) for label in task.labels]
        head = head_from_label_words(trunk, [tokenize(text) for text in texts])
    dtype = compute_dtype or torch.float32
    model = TunedModel(trunk, kind, head, None, settings.head_dropout, dtype)
    torch.manual_seed(settings.seed)
    for part in settings.parts:
        part.call("apply", model, settings, task, tokenize)
    if settings.trains_base:
        trunk.requires_grad_(True)
    return model


def untuned_model(model: TunedModel) -> TunedModel:
    """Return the untuned base of a model that is not trained yet, without its prompt. LoRA can
    stay: its correction is still zero. The head of a tagging task stays, untrained; other tasks
    use the language model head."""
    from neo_peft.model import HeadKind, TunedModel

    is_tagger = model.head_kind == HeadKind.CLASSIFIER
    head = (model.head_kind, model.head) if is_tagger else (HeadKind.LM_HEAD, None)
    return TunedModel(model.transformer, *head, compute_dtype=model.compute_dtype)
