"""From settings, or from a run's folder, to a model that is ready, with the encoder that it reads
with.

A run of LoRA or a prompt is an adapter of peft's beside a run.json; an adapter of peft's own has
none. What a folder says of itself must fit: another base, other labels, a changed file, or an
option that is not known here is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.encoding import MAX_NEW_TOKENS, Encoder, tokenize, tokenize_labels
from neo_peft.errors import InputError
from neo_peft.formats.adapter import copy_into, read_adapter
from neo_peft.formats.base import Base, load_base
from neo_peft.formats.peft_config import CONFIG, read_peft
from neo_peft.gptneo import Config
from neo_peft.methods import base_dtype, build_model, untuned_model
from neo_peft.model import TunedModel
from neo_peft.runs.folder import RUN, read_record, recorded_settings, refuse_unfinished, unchanged
from neo_peft.settings import Settings, make_settings, task_of
from neo_peft.system.hardware import (
    DTYPES,
    find_device,
    find_precision,
    slow_precision,
    thread_count,
)
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass
class Tuned:
    """A model, the encoder that it reads with, and what both were made from. `notes` are lines a
    user should see; `start` holds the tensors of the adapter that training begins from, where there
    is one."""

    model: TunedModel
    encoder: Encoder
    settings: Settings
    base: Base
    precision: str
    threads: int
    notes: list[str]
    start: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def settings_in(
    folder: Path,
    model: str | None = None,
    task: str | None = None,
    labels: tuple[str, ...] | None = None,
    label_words: tuple[str, ...] | None = None,
) -> Settings:
    """Read the settings of a run folder. An adapter of peft's own carries no task and no base: both
    must be named, and the labels and their words where they are not the task's own."""
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}")
    refuse_unfinished(folder)
    if (folder / RUN).exists():
        settings = recorded_settings(folder / RUN, read_record(folder)["flags"])
        own = task_of(settings).labels
        if task and task != settings.task:
            raise InputError(f"{folder} was trained for {settings.task}, not for {task}")
        if labels and labels != own:
            raise InputError(f"{folder} was trained for the labels {', '.join(own)}")
        if label_words and label_words != settings.label_words:
            raise InputError(
                f"{folder} was trained with the label words "
                f"{settings.label_words or 'of its labels'}"
            )
        return dataclasses.replace(settings, model=model or settings.model)
    found = read_peft(folder)
    if found is None:
        raise InputError(
            f"{folder} holds neither {RUN} nor {CONFIG}: it is no finished run and no adapter"
        )
    if not (model and task):
        raise InputError(f"{folder} is an adapter without a {RUN}: name its --task and its --model")
    return make_settings(task=task, model=model, labels=labels, label_words=label_words, **found)


def load(folder: Path | str, settings: Settings | None = None, base: Base | None = None) -> Tuned:
    """Load a run folder, or an adapter of peft's own with the settings that `settings_in` makes for
    it.

    It is computed where, and in which precision, the settings say. It goes onto `base` where one is
    given.

    Raises InputError where the base is another one than the adapter was trained on, or a file does
    not fit.
    """
    folder = Path(folder)
    tuned = load_untuned(settings or settings_in(folder), with_method=True, base=base)
    check_origin(folder, tuned)
    check_labels(folder, tuned)
    copy_into(tuned.model, read_adapter(folder, tuned.model, tuned.settings.parts))
    return tuned


def load_to_train(settings: Settings) -> Tuned:
    """Load a base with the settings' method at its start. The tensors of `--adapter` are read and
    checked, but wait for `start_from_adapter`, so that the untuned base can be scored before."""
    tuned = load_untuned(settings, with_method=True)
    if settings.adapter:
        folder, head = Path(settings.adapter), tuned.model.head_kind
        check_origin(folder, tuned)
        tuned.start = read_adapter(folder, tuned.model, settings.parts, need_head=False)
        if f"{head}.weight" in tuned.start:
            check_labels(folder, tuned)
        elif tuned.model.head:
            tuned.notes.append(
                f"{folder} holds no head: the {head} starts anew, from the seed {settings.seed}"
            )
    return tuned


def start_from_adapter(tuned: Tuned) -> None:
    """Load the adapter that training begins from, if there is one."""
    copy_into(tuned.model, tuned.start)
    tuned.start = {}


def check_origin(folder: Path, tuned: Tuned) -> None:
    """Check what a folder says of itself against the settings and the base that it is loaded
    for."""
    settings = tuned.settings
    for name, value in (read_peft(folder) or {}).items():
        # Targets may be said in several ways; whether they are the same, the tensors' names show. A
        # start is over.
        if name not in ("target_modules", "lora_init") and getattr(settings, name) != value:
            raise InputError(
                f"{folder}, {CONFIG}: {name} is {value}, but the settings say "
                f"{getattr(settings, name)}"
            )
    if (folder / RUN).exists():
        record = read_record(folder)
        trained, found = str(record["base"].get("fingerprint")), tuned.base.fingerprint
        if trained != found:
            raise InputError(
                f"{folder} was trained on another base than {settings.model}: its fingerprint is "
                f"{trained[:12]}…, "
                f"that of {settings.model} is {found[:12]}…"
            )
        for name in record["files"]:
            if name.endswith(".safetensors"):
                unchanged(folder, record, name)
    else:
        tuned.notes.append(
            f"{folder} names no fingerprint: whether {settings.model} is its base was not checked"
        )


def check_labels(folder: Path, tuned: Tuned) -> None:
    """Check that a run's labels are the task's, in their order: a head's rows mean them."""
    if (folder / RUN).exists() and read_record(folder)["labels"] != list(tuned.encoder.task.labels):
        raise InputError(
            f"{folder / RUN} lists other labels than the task {tuned.settings.task} has"
        )


def base_of(settings: Settings) -> Base:
    """Load the base of a run: where, and in the dtype that, its settings say."""
    device = find_device(settings.device)
    dtype = DTYPES[find_precision(settings.precision, device)]
    return load_base(settings.model, base_dtype(settings, dtype), device)


def load_untuned(settings: Settings, with_method: bool = False, base: Base | None = None) -> Tuned:
    """Load a base, unless it is given, and make it ready for a task: bare, or with the method at
    its start."""
    task, device = task_of(settings), find_device(settings.device)
    precision = find_precision(settings.precision, device)
    base = base or base_of(settings)
    threads = thread_count(settings.threads, base.parameters)
    torch.set_num_threads(threads)
    model = build_model(base.trunk, base.tokenizer, task, settings, DTYPES[precision])
    model = (model if with_method else untuned_model(model)).eval()
    notes = [*base.notes, *filter(None, [slow_precision(precision, device)])]
    encoder = make_encoder(
        task, base.tokenizer, base.trunk.config, settings, with_head=model.head is not None
    )
    return Tuned(model, encoder, settings, base, precision, threads, notes)


def make_encoder(
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    config: Config,
    settings: Settings,
    with_head: bool,
) -> Encoder:
    """Make the encoder of a run.

    `--max-length` defaults to what fits behind the prompt or the instruction, the longer of the
    two, so that the scores before and after tuning see the same text.
    """
    in_front, end = settings.prefix_length, config.eos_token_id
    room = config.max_position_embeddings - in_front
    needed = 2 if settings.echo else 1
    if not task.tags_words:
        texts = [task.instruction, *task.template_for(settings.source_text)]
        instruction, *template = map(len, tokenize(tokenizer, texts))
        answers = tokenize_labels(tokenizer, task, settings.source_text, end).values()
        longest = max(MAX_NEW_TOKENS, *map(len, answers))
        room = config.max_position_embeddings - max(in_front, instruction) - longest
        needed = sum(template) + 1
    if room < needed:
        raise InputError(
            f"what stands in front (a prompt of {in_front} rows, an instruction), the template and "
            "the longest answer do not fit into the model's "
            f"{config.max_position_embeddings} positions; take a shorter prompt, or shorter label "
            "words"
        )
    max_length = settings.max_length or room
    if not needed <= max_length <= room:
        raise InputError(
            f"--max-length {max_length} does not fit: this model and prompt allow {needed} to "
            f"{room}"
        )
    return Encoder(
        task,
        tokenizer,
        end,
        with_head,
        max_length,
        config.vocab_size,
        tag_last_subtoken=settings.tag_subtoken == "last",
        source_text=settings.source_text,
        viterbi=settings.tag_decoding == "viterbi",
        echo=settings.echo,
    )
