"""Export a run for other programs: an adapter for peft, or a whole model for transformers.

Each folder gets the tokenizer, set up to encode a text as our encoder does, and a model card,
README.md (card.py), which shows how to load and use the model.
"""

import dataclasses
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.formats.adapter import save_adapter, save_model
from neo_peft.formats.tokenizer import add_no_tokens
from neo_peft.lora import merge_lora
from neo_peft.runs.card import example_rows, public_model, text_of, write_card
from neo_peft.runs.loading import LoadedModel
from neo_peft.settings import Settings
from neo_peft.tasks import get_task


def check_exportable(run: Path, settings: Settings, merge: bool) -> None:
    """Raise InputError for a run that transformers (with `merge`) or peft cannot load."""
    parts, has_head = settings.parts, get_task(settings.task).is_tagging or settings.with_head
    unmergeable = [part.name for part in parts if not part.merges]
    if merge and unmergeable:
        raise InputError(
            f"--merge: {run} has a {unmergeable[0]} in front of every text, which a transformers "
            "model cannot hold; export it without --merge, for peft"
        )
    if not merge and not all(part.peft_type for part in parts):
        raise InputError(
            f"{run}: peft has no adapter for the method {settings.method}; export the run with "
            "--merge, for transformers"
        )
    if not merge and len(parts) > 1 and has_head:
        raise InputError(
            f"{run} has {settings.method} and a head. peft needs a head in each of two adapters, "
            "so this run cannot be exported"
        )


def quantized_note(tuned: LoadedModel, merge: bool) -> str | None:
    """Return a line on what the export of a run on a quantised base has; None for another run."""
    kind, model = tuned.base.quantize, tuned.settings.model
    if kind == "none":
        return None
    if merge:
        return (
            f"the base's {kind} weights are dequantised, the changes of the adapter are added in "
            "fp32, and the sums are stored in fp32: the merged model is not bit for bit the one "
            "that was evaluated"
        )
    return (
        f"the adapter was trained on {model} in {kind}: on the unquantised base its predictions "
        "can differ"
    )


def write_adapter(folder: Path, tuned: LoadedModel, run: Path) -> None:
    """Write the run's adapter in peft's format, its tokenizer, and a model card."""
    # A path is read from any folder only if it is absolute.
    model = public_model(tuned) or str(tuned.base.folder.absolute())
    save_adapter(folder, tuned.model, dataclasses.replace(tuned.settings, model=model))
    set_tokenizer(tuned)
    tuned.base.tokenizer.save_pretrained(folder)
    check_tokenizer(folder, tuned)
    write_card(folder, tuned, run, is_adapter=True)


def write_model(folder: Path, tuned: LoadedModel, run: Path) -> None:
    """Write the whole model with LoRA merged, its tokenizer, and a model card."""
    merge_lora(tuned.model)
    set_tokenizer(tuned)
    save_model(folder, tuned.model, tuned.encoder.task.labels, tuned.base.tokenizer)
    check_tokenizer(folder, tuned)
    write_card(folder, tuned, run, is_adapter=False)


def set_tokenizer(tuned: LoadedModel) -> None:
    """Set up the tokenizer so that transformers encodes texts as our encoder does."""
    tokenizer = tuned.base.tokenizer
    add_no_tokens(tokenizer)
    # Pipelines cut longer texts. The base's own value can be smaller than its number of positions.
    tokenizer.model_max_length = tuned.base.trunk.config.max_position_embeddings
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tuned.encoder.end_token)
    # Left padding would shift GPT-Neo's positions. Only generation corrects them, and needs it.
    side = "right" if tuned.model.head else "left"
    # save_pretrained writes only what `init_kwargs` has
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
    if tuned.encoder.task.is_tagging:  # every word has a leading space, the first one too
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        if hasattr(before_words, "add_prefix_space"):
            before_words.add_prefix_space = True
            tokenizer.backend_tokenizer.pre_tokenizer = before_words
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def check_tokenizer(folder: Path, tuned: LoadedModel) -> None:
    """Raise InputError where the tokenizer in a folder encodes plain texts differently than our
    encoder. An example: one that does not mark the spaces between words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for row in example_rows(tuned):
        text, ours = text_of(tuned, row), tuned.encoder([row]).ids.tolist()
        if tokenizer(text)["input_ids"] != ours:
            raise InputError(
                f"the tokenizer of {tuned.settings.model} encodes {text!r} as a whole differently "
                "than its parts, as in training: in other programs the run would give other "
                "predictions; use python -m neo_peft predict"
            )
