"""Export a run for other programs: an adapter for peft, or a whole model for transformers.

Each folder gets a model card, README.md, which shows how to load and use the model.
"""

import dataclasses
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.formats.adapter import save_adapter, save_model
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.lora import merge_lora
from neo_peft.model import HeadKind
from neo_peft.runs.folder import short_name
from neo_peft.runs.loading import LoadedModel
from neo_peft.settings import Settings
from neo_peft.system.files import write_text
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


def write_adapter(folder: Path, tuned: LoadedModel) -> None:
    """Write the run's adapter in peft's format, and a model card."""
    settings = tuned.settings
    if settings.model in BUNDLED:  # for peft, a bundled model is a folder
        settings = dataclasses.replace(settings, model=str(tuned.base.folder.resolve()))
    save_adapter(folder, tuned.model, settings)
    write_card(folder, tuned, "An adapter for peft", adapter_code(tuned))


def write_model(folder: Path, tuned: LoadedModel) -> None:
    """Write the whole model with LoRA merged, its tokenizer, and a model card."""
    merge_lora(tuned.model)
    set_tokenizer(tuned)
    save_model(folder, tuned.model, tuned.encoder.task.labels, tuned.base.tokenizer)
    write_card(folder, tuned, "A whole model for transformers", model_code(tuned))


def set_tokenizer(tuned: LoadedModel) -> None:
    """Set up the tokenizer so that transformers' pipelines encode texts as our encoder does."""
    tokenizer = tuned.base.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tuned.encoder.end_token)
    tokenizer.padding_side = "right"  # left padding would shift GPT-Neo's positions
    if tuned.encoder.task.is_tagging:  # every word has a leading space, the first one too
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        before_words.add_prefix_space = True
        tokenizer.backend_tokenizer.pre_tokenizer = before_words
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


# ---- The model card

# for each head: transformers' AutoModelFor… class, its pipeline, and the pipeline call's arguments
TRANSFORMERS_NAMES = {
    HeadKind.CLASSIFIER: ("TokenClassification", "token-classification", ""),
    HeadKind.SCORE: ("SequenceClassification", "text-classification", ""),
    HeadKind.LM_HEAD: (
        "CausalLM",
        "text-generation",
        ", max_new_tokens=10, do_sample=False, return_full_text=False",
    ),
}


def write_card(folder: Path, tuned: LoadedModel, what: str, code: str) -> None:
    """Write the model card: `what` the folder is, the labels, where the model predicts them, and
    the Python code that loads the model. The code runs inside the folder."""
    settings, task = tuned.settings, tuned.encoder.task
    usage = tagging_usage(tuned) if task.is_tagging else classification_usage(tuned)
    text = f"""\
# {task.name}, {settings.method} on {short_name(settings.model)}

{what}, made by neo_peft. Labels in order: {", ".join(task.labels)}.
{usage}

```python
{code}
```
"""
    write_text(folder / "README.md", text)


def example_text(tuned: LoadedModel) -> str:
    """Return an input text of the task: a sentence to tag, or the template with the names of the
    fields in place of data."""
    encoder = tuned.encoder
    if encoder.task.is_tagging:
        return " ".join(["The IL-2 gene is active in T cells ."] * (2 if encoder.echo else 1))
    row = {field: f"<{field}>" for field in encoder.task.fields}
    return "".join(encoder.task.texts(row, encoder.source_text))


def classification_usage(tuned: LoadedModel) -> str:
    """Return the card's sentences on the input text and on where the model predicts the label."""
    task, text = tuned.encoder.task, f"The text is `{example_text(tuned)}`"
    if tuned.model.head is None:
        texts = (task.label_text(label, tuned.encoder.source_text) for label in task.labels)
        return (
            f"{text}, without special tokens. The model generates one of "
            f"{', '.join(f'`{each}`' for each in texts)} and then the end token."
        )
    batching = "Pad on the right."
    if tuned.model.prompt:  # transformers then ignores the padding, and takes the last position
        batching = "All texts of a batch must have the same length, because of the prompt."
    return f"{text}. A linear head predicts the label at the text's last token. {batching}"


def tagging_usage(tuned: LoadedModel) -> str:
    """Return the card's sentences on the input text and on where the model predicts the tags."""
    lines = [
        "Words are separated by spaces. Every word is encoded with a leading space, the first one "
        "too (`add_prefix_space`)."
    ]
    if tuned.encoder.echo:
        lines.append("The input is the sentence twice. Use the tags of the second copy.")
    if tuned.encoder.viterbi:
        lines.append(
            "neo_peft chooses the best sequence of tags that BIO allows (Viterbi); transformers "
            "chooses each word's tag alone."
        )
    if tuned.encoder.tag_last_subtoken:
        where = "last sub-token. No aggregation strategy of transformers uses that one."
    else:
        where = 'first sub-token, as `aggregation_strategy="first"` does.'
    return "\n".join([*lines, f"The tag of a word is predicted at its {where}"])


def adapter_code(tuned: LoadedModel) -> str:
    """Return the Python code that loads an adapter with peft."""
    model, parts = tuned.model, tuned.settings.parts
    *others, last = [part.name for part in parts] if len(parts) > 1 else ["."]
    auto = f"AutoModelFor{TRANSFORMERS_NAMES[model.head_kind][0]}"
    labels = f", num_labels={len(tuned.encoder.task.labels)}" if model.head else ""
    text = f"""\
from peft import PeftConfig, PeftModel
from transformers import {auto}

base = PeftConfig.from_pretrained("{[*others, last][0]}").base_model_name_or_path\
  # any copy of {short_name(tuned.settings.model)}
model = {auto}.from_pretrained(base, dtype="float32"{labels})
"""
    for name in others:  # merged first, since peft cannot load both into one model
        text += f'model = PeftModel.from_pretrained(model, "{name}").merge_and_unload()\n'
    text += f'model = PeftModel.from_pretrained(model, "{last}").eval()'
    if model.prompt is not None and model.head_kind != HeadKind.SCORE:
        text += f"  # the first {len(model.prompt)} logits belong to the prompt"
    return text


def model_code(tuned: LoadedModel) -> str:
    """Return the Python code that predicts with a whole model in a transformers pipeline."""
    _, pipeline, arguments = TRANSFORMERS_NAMES[tuned.model.head_kind]
    options = ""
    if tuned.encoder.task.is_tagging:
        strategy = "none" if tuned.encoder.tag_last_subtoken else "first"
        options = f', aggregation_strategy="{strategy}"'
    return f"""\
from transformers import pipeline

predict = pipeline("{pipeline}", model="."{options})
print(predict({example_text(tuned)!r}{arguments}))"""
