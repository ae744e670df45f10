"""A run for other programs: an adapter for peft, or a whole model for transformers.

Each folder has a card, README.md: how the model is read, and the Python that loads it.
"""

import dataclasses
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.formats.adapter import save_adapter, save_model
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.lora import merge_lora
from neo_peft.model import HeadKind
from neo_peft.runs.folder import short_name
from neo_peft.runs.loading import Tuned
from neo_peft.settings import Settings
from neo_peft.system.files import write_text
from neo_peft.tasks import get_task


def refuse_what_cannot_be(run: Path, settings: Settings, merge: bool) -> None:
    """Refuse a whole model where it has no place for the method, and an adapter of peft's where
    nothing is one."""
    parts, by_head = settings.parts, get_task(settings.task).tags_words or settings.with_head
    in_front = [part.name for part in parts if not part.merges]
    if merge and in_front:
        raise InputError(
            f"--merge: {run} has a {in_front[0]} in front of every text, which a model of "
            "transformers has no place for; export it without --merge, for peft"
        )
    if not merge and not all(part.peft_type for part in parts):
        raise InputError(
            f"{run} is no adapter of peft's, which does not know the method {settings.method}; "
            "export it with --merge, for transformers"
        )
    if not merge and len(parts) > 1 and by_head:
        raise InputError(
            f"{run} has {settings.method} and a head; peft loads the second of two adapters only "
            "with a head of its own, so that this run cannot be exported"
        )


def write_adapter(folder: Path, tuned: Tuned) -> None:
    """Write the run's adapter as peft does, and a card."""
    settings = tuned.settings
    if settings.model in BUNDLED:  # peft knows no bundled names; it loads the folder
        settings = dataclasses.replace(settings, model=str(tuned.base.folder.resolve()))
    save_adapter(folder, tuned.model, settings)
    write_card(folder, tuned, "An adapter for peft", adapter_lines(tuned))


def write_model(folder: Path, tuned: Tuned) -> None:
    """Write the whole model, LoRA merged, with its tokenizer, and a card."""
    merge_lora(tuned.model)
    set_tokenizer(tuned)
    save_model(folder, tuned.model, tuned.encoder.task.labels, tuned.base.tokenizer)
    write_card(folder, tuned, "A whole model for transformers", model_lines(tuned))


def set_tokenizer(tuned: Tuned) -> None:
    """Set the tokenizer so that transformers' pipelines word texts as our encoder does."""
    tokenizer = tuned.base.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tuned.encoder.end_token)
    tokenizer.padding_side = "right"  # on the left it would move GPT-Neo's positions
    if tuned.encoder.task.tags_words:  # every word carries its leading space, the first one too
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        before_words.add_prefix_space = True
        tokenizer.backend_tokenizer.pre_tokenizer = before_words
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


# ---- The card

# transformers' class with such a head, its pipeline, and what the pipeline is called with
OF_HEADS = {
    HeadKind.CLASSIFIER: ("TokenClassification", "token-classification", ""),
    HeadKind.SCORE: ("SequenceClassification", "text-classification", ""),
    HeadKind.LM_HEAD: (
        "CausalLM",
        "text-generation",
        ", max_new_tokens=10, do_sample=False, return_full_text=False",
    ),
}


def write_card(folder: Path, tuned: Tuned, what: str, lines: str) -> None:
    """Write what a folder holds, how its model is read, and the lines of Python that load it, to be
    run inside it."""
    settings, task = tuned.settings, tuned.encoder.task
    reading = reading_of_tags(tuned) if task.tags_words else reading_of_answers(tuned)
    text = f"""\
# {task.name}, {settings.method} on {short_name(settings.model)}

{what}, made by neo_peft. Labels in order: {", ".join(task.labels)}.
{reading}

```python
{lines}
```
"""
    write_text(folder / "README.md", text)


def example(tuned: Tuned) -> str:
    """Return a text of the task, with the names of a row's fields in place of its data."""
    encoder = tuned.encoder
    if encoder.task.tags_words:
        return " ".join(["The IL-2 gene is active in T cells ."] * (2 if encoder.echo else 1))
    row = {field: f"<{field}>" for field in encoder.task.fields}
    return "".join(encoder.task.texts(row, encoder.source_text))


def reading_of_answers(tuned: Tuned) -> str:
    """Return where the model reads an answer, for whoever has to repeat it."""
    task, text = tuned.encoder.task, f"The text is `{example(tuned)}`"
    if tuned.model.head is None:
        answers = (task.label_text(label, tuned.encoder.source_text) for label in task.labels)
        return (
            f"{text}, without special tokens; the model goes on with one of "
            f"{', '.join(f'`{answer}`' for answer in answers)} and the end token."
        )
    # Behind a prompt transformers sees no padding, and reads the last column.
    how = "A batch is of texts of one length." if tuned.model.prompt else "Pad on the right."
    return f"{text}; a linear head reads its last token. {how}"


def reading_of_tags(tuned: Tuned) -> str:
    """Return where the model reads a word's tag, for whoever has to repeat it."""
    lines = [
        "Words are split by spaces, and each carries its leading space, the first one too "
        "(`add_prefix_space`)."
    ]
    if tuned.encoder.echo:
        lines.append("A sentence is given twice, and the tags of its second copy count.")
    if tuned.encoder.viterbi:
        lines.append(
            "The best tags that BIO allows together are chosen (Viterbi), which transformers does "
            "not do."
        )
    if tuned.encoder.tag_last_subtoken:
        where = "last sub-token, which no aggregation of transformers' takes."
    else:
        where = 'first sub-token, as `aggregation_strategy="first"` takes it.'
    return "\n".join([*lines, f"A word's tag stands at its {where}"])


def adapter_lines(tuned: Tuned) -> str:
    """Return the Python that loads an adapter by peft."""
    model, parts = tuned.model, tuned.settings.parts
    *others, last = [part.name for part in parts] if len(parts) > 1 else ["."]
    auto = f"AutoModelFor{OF_HEADS[model.head_kind][0]}"
    labels = f", num_labels={len(tuned.encoder.task.labels)}" if model.head else ""
    text = f"""\
from peft import PeftConfig, PeftModel
from transformers import {auto}

base = PeftConfig.from_pretrained("{[*others, last][0]}").base_model_name_or_path\
  # any copy of {short_name(tuned.settings.model)}
model = {auto}.from_pretrained(base, dtype="float32"{labels})
"""
    for name in others:  # one after the other: peft has no model of both
        text += f'model = PeftModel.from_pretrained(model, "{name}").merge_and_unload()\n'
    text += f'model = PeftModel.from_pretrained(model, "{last}").eval()'
    if model.prompt is not None and model.head_kind != HeadKind.SCORE:
        text += f"  # its first {len(model.prompt)} logits are the prompt's own"
    return text


def model_lines(tuned: Tuned) -> str:
    """Return the Python that lets transformers answer by a whole model."""
    _, pipeline, more = OF_HEADS[tuned.model.head_kind]
    options = ""
    if tuned.encoder.task.tags_words:
        which = "none" if tuned.encoder.tag_last_subtoken else "first"
        options = f', aggregation_strategy="{which}"'
    return f"""\
from transformers import pipeline

answer = pipeline("{pipeline}", model="."{options})
print(answer({example(tuned)!r}{more}))"""
