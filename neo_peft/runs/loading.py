"""Load a model with its encoder: from the folder of a run or of a peft adapter, or from settings.

A run's folder contains a peft adapter (or a whole model) and a run.json; a folder that peft wrote
has no run.json. Loading raises InputError where the base or the labels are not the recorded ones,
where a file was changed, or where peft's config has an option that is not supported here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neo_peft.encoding import Encoder, tokenize, tokenize_labels
from neo_peft.errors import InputError
from neo_peft.formats.adapter import copy_into, read_adapter
from neo_peft.formats.base import Base, load_base
from neo_peft.formats.peft_config import CONFIG, read_peft
from neo_peft.gptneo import Config
from neo_peft.methods import base_dtype, build_model, untuned_model
from neo_peft.model import TunedModel
from neo_peft.runs.folder import (
    RUN,
    one_folder_down,
    read_record,
    recorded_settings,
    refuse_unfinished,
)
from neo_peft.runs.generation import MAX_NEW_TOKENS
from neo_peft.runs.label_tokens import check_label_tokens
from neo_peft.runs.origin import check_head, check_labels, check_origin, empty_weights
from neo_peft.runs.too_large import refuse_too_large
from neo_peft.settings import Settings, make_settings, task_of
from neo_peft.system.hardware import (
    DTYPES,
    find_device,
    find_precision,
    slow_precision,
    thread_count,
)
from neo_peft.tasks import Task, get_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass
class LoadedModel:
    """A loaded model, tuned or not, with its encoder and all that both were made from."""

    model: TunedModel  # trunk, method and head
    encoder: Encoder  # the encoder for its task and head
    settings: Settings  # those of the run
    base: Base  # the base model
    precision: str  # of the frozen matrices: fp32, bf16 or fp16
    threads: int  # CPU threads
    notes: list[str]  # lines to print for the user
    total: int  # number of parameters, those of the base as in its file
    # The weights of `--adapter`, until `start_from_adapter` loads them into the model.
    start: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def settings_in(
    folder: Path,
    model: str | None = None,
    task: str | None = None,
    labels: tuple[str, ...] | None = None,
    label_words: tuple[str, ...] | None = None,
) -> Settings:
    """Return the settings of a run or of a peft adapter, from its folder.

    A peft adapter has no task: `model` and `task` are then required, and `labels` and `label_words`
    where they are not the task's own. For a run, `model` replaces the recorded one, and the others
    must agree with the run.
    """
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}")
    refuse_unfinished(folder)
    if (folder / RUN).exists():
        settings = recorded_settings(folder / RUN, read_record(folder)["flags"])
        run_labels = task_of(settings).labels
        if task and task != settings.task:
            raise InputError(f"{folder} was trained for {settings.task}, not for {task}")
        if labels and get_task(settings.task).own_labels(labels) != run_labels:
            raise InputError(f"{folder} was trained for the labels {', '.join(run_labels)}")
        if label_words and label_words != settings.label_words:
            used = ", ".join(settings.label_words or ())
            used = f"with the label words {used}" if used else "without --label-words"
            raise InputError(f"{folder} was trained {used}")
        return dataclasses.replace(settings, model=model or settings.model)
    adapter_settings = read_peft(folder)
    if adapter_settings is None:
        raise InputError(
            f"{folder} holds neither {RUN} nor {CONFIG}: it is no finished run and no adapter"
            f"{one_folder_down(folder)}"
        )
    if not (model and task):
        raise InputError(f"{folder} is an adapter without a {RUN}: name its --task and its --model")
    if get_task(task).is_tagging:
        adapter_settings.pop("readout")  # a tagging task has no such setting; `check_head` follows
    return make_settings(
        task=task, model=model, labels=labels, label_words=label_words, **adapter_settings
    )


def load(
    folder: Path | str, settings: Settings | None = None, base: Base | None = None
) -> LoadedModel:
    """Load the tuned model of a run, or of a peft adapter.

    settings: with the device and the precision; by default those of the folder. For a peft adapter
        make them with `settings_in`.
    base: a loaded base model to use; by default it is loaded. LoRA layers are put into it.

    Raises InputError where the adapter was trained on another base, or a file does not fit.
    """
    folder = Path(folder)
    tuned = load_untuned(settings or settings_in(folder), with_method=True, base=base)
    check_head(folder, tuned)
    check_origin(folder, tuned)
    check_labels(folder, tuned)
    copy_into(tuned.model, read_weights(folder, tuned))
    tuned.notes += empty_weights(folder, tuned)
    return tuned


def load_to_train(settings: Settings, base: Base | None = None) -> LoadedModel:
    """Load a base model and add the method of the settings, with its initial weights.

    base: a loaded base model to use; by default it is loaded. The method changes its trunk.

    The weights of `--adapter` are read and checked, but not loaded into the model, so that the
    untuned base can be scored first. `start_from_adapter` loads them.
    """
    tuned = load_untuned(settings, with_method=True, base=base)
    if settings.adapter:
        folder, head = Path(settings.adapter), tuned.model.head_kind
        check_head(folder, tuned, further=True)
        check_origin(folder, tuned)
        tuned.start = read_weights(folder, tuned, need_head=False)
        if f"{head}.weight" in tuned.start:
            check_labels(folder, tuned)
        elif tuned.model.head:
            tuned.notes.append(
                f"{folder} has no head: the {head} starts untrained, from the seed {settings.seed}"
            )
    return tuned


def start_from_adapter(tuned: LoadedModel) -> list[str]:
    """Load the weights of `--adapter` into the model, if there are any. Return notes on them."""
    if not tuned.start:
        return []
    copy_into(tuned.model, tuned.start)
    tuned.start = {}
    return empty_weights(tuned.settings.adapter, tuned)


def read_weights(folder: Path, tuned: LoadedModel, need_head: bool = True) -> dict[str, Tensor]:
    """Return the weights of an adapter, by the names of the model's parameters."""
    return read_adapter(
        folder, tuned.model, tuned.settings.parts, need_head, tuned.base.tokenizer, tuned.notes
    )


def load_base_for(settings: Settings) -> Base:
    """Load the base model of the settings, on their device and in their dtype."""
    refuse_too_large(settings)
    device = find_device(settings.device)
    dtype = DTYPES[find_precision(settings.precision, device)]
    return load_base(settings.model, base_dtype(settings, dtype), device, settings.quantize)


def load_untuned(
    settings: Settings, with_method: bool = False, base: Base | None = None
) -> LoadedModel:
    """Return the untuned base, ready for the task of the settings.

    with_method: add the method of the settings, with its initial weights.
    base: a loaded base model to use; by default it is loaded.
    """
    task, device = task_of(settings), find_device(settings.device)
    precision = find_precision(settings.precision, device)
    base = base or load_base_for(settings)
    label_note = check_label_tokens(base, settings, with_method and settings.with_head)
    threads = thread_count(settings.threads, base.parameters)
    torch.set_num_threads(threads)
    packed = _size(base.trunk)  # differs from the number of parameters in a quantised base
    model = build_model(base.trunk, base.tokenizer, task, settings, DTYPES[precision])
    model = (model if with_method else untuned_model(model)).eval()
    total = base.parameters + _size(model) - packed
    notes = [*base.notes, *filter(None, [slow_precision(precision, device), label_note])]
    encoder = make_encoder(
        task, base.tokenizer, base.trunk.config, settings, with_head=model.head is not None
    )
    return LoadedModel(model, encoder, settings, base, precision, threads, notes, total)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_encoder(
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    config: Config,
    settings: Settings,
    with_head: bool,
) -> Encoder:
    """Return the encoder of a run.

    `--max-length` defaults to the longest text that fits with both prefixes, the prompt and the
    instruction. So texts are cut alike before and after tuning.
    """
    prompt_length, end = settings.prefix_length, config.eos_token_id
    room = config.max_position_embeddings - prompt_length
    needed = 2 if settings.echo else 1
    if not task.is_tagging:
        texts = [task.instruction, *task.template_for(settings.source_text)]
        instruction, *template = map(len, tokenize(tokenizer, texts))
        label_tokens = tokenize_labels(tokenizer, task, settings.source_text, end).values()
        longest = max(MAX_NEW_TOKENS, *map(len, label_tokens))
        room = config.max_position_embeddings - max(prompt_length, instruction) - longest
        needed = sum(template) + 1
    if room < needed:
        raise InputError(
            f"the prefix (a prompt of {prompt_length} embeddings, or an instruction), the template "
            f"and the longest label text do not fit into the {config.max_position_embeddings} "
            "positions of the model; use a shorter prompt or shorter label words"
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
        stride=window_stride(settings, max_length // needed) if task.is_tagging else None,
        truncate=settings.truncate or "middle",
    )


def window_stride(settings: Settings, text_length: int) -> int | None:
    """Return how many tokens the windows of a long text share; None if it is cut at its end.

    text_length: the number of tokens of a window.
    """
    if settings.truncate:
        return None
    stride = text_length // 8 if settings.stride is None else settings.stride
    if stride > text_length // 2:
        raise InputError(
            f"--stride {stride} does not fit: a window has {text_length} tokens, and at most half "
            f"of them, {text_length // 2}, can be shared"
        )
    return stride
