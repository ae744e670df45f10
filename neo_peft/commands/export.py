"""Hand a finished run to other programs: python -m neo_peft export runs/ner-lora DIR

DIR becomes a folder of peft's, or with --merge a whole model, which transformers loads without
peft. A README.md in it shows how, and says how the model is read.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neo_peft.commands.flags import OneLineParser, add_choice, argument, of_an_adapter
from neo_peft.errors import InputError
from neo_peft.runs.folder import newest_run, short_name
from neo_peft.settings import Settings, filled, names
from neo_peft.system.files import new_folder, write_folder, write_text
from neo_peft.tasks import TASKS, Task


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m neo_peft export",
        allow_abbrev=False,
        description="Write a finished run as a folder that peft loads, or transformers alone.",
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        type=argument(filled),
        help="a run's folder (default: the newest finished one)",
    )
    parser.add_argument(
        "folder", metavar="DIR", type=argument(filled), help="the folder to write, new or empty"
    )
    parser.add_argument(
        "--merge", action="store_true", help="write a whole model, for transformers without peft"
    )
    add_choice(parser, "--task", tuple(TASKS), "the task, where there is no run.json")
    parser.add_argument(
        "--labels", type=argument(names), help="the labels in order, where there is no run.json"
    )
    parser.add_argument(
        "--label-words",
        type=argument(names),
        help="what is said for each, where there is no run.json",
    )
    parser.add_argument(
        "--model", type=argument(filled), help="the base model (default: the one in RUN's run.json)"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    folder = Path(flags.folder)
    new_folder(folder)  # refused before a base is loaded
    run = Path(flags.run) if flags.run else newest_run(flags.task)
    from neo_peft.runs import loading  # after the flags: torch takes seconds to import

    settings = loading.settings_in(run, **of_an_adapter(flags))
    refuse_what_cannot_be(run, settings, flags.merge)
    # Whatever the run computed in: a sum in half precision would be another model.
    tuned = loading.load(run, dataclasses.replace(settings, precision="fp32", device="cpu"))
    for note in tuned.notes:
        print(f"note    {note}", file=sys.stderr)
    write_folder(
        folder, lambda temporary: (write_model if flags.merge else write_adapter)(temporary, tuned)
    )
    print(
        f"{folder} holds {run} for {'transformers' if flags.merge else 'peft'}; its README.md "
        "shows how to load it"
    )


def refuse_what_cannot_be(run: Path, settings: Settings, merge: bool) -> None:
    """Refuse a whole model where it has no place for the method, and an adapter of peft's where
    nothing is one."""
    parts, by_head = settings.parts, TASKS[settings.task].tags_words or settings.with_head
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


def write_adapter(folder: Path, tuned: Any) -> None:
    """Write the run's adapter as peft does, and a card."""
    from neo_peft.formats.adapter import save_adapter
    from neo_peft.formats.base_folder import BUNDLED

    settings = tuned.settings
    if settings.model in BUNDLED:  # peft knows no bundled names; it loads the folder
        settings = dataclasses.replace(settings, model=str(tuned.base.folder.resolve()))
    save_adapter(folder, tuned.model, settings)
    write_text(folder / "README.md", card(tuned, "An adapter for peft", adapter_lines(tuned)))


def write_model(folder: Path, tuned: Any) -> None:
    """Write the whole model, LoRA merged, with its tokenizer, and a card."""
    from neo_peft.formats.adapter import save_model
    from neo_peft.lora import merge_lora

    merge_lora(tuned.model)
    task = tuned.encoder.task
    save_model(folder, tuned.model, task.labels, tokenizer_for(task, tuned))
    write_text(
        folder / "README.md", card(tuned, "A whole model for transformers", model_lines(tuned))
    )


def tokenizer_for(task: Task, tuned: Any) -> Any:
    """Set the tokenizer so that transformers' pipelines say texts as our encoder does."""
    tokenizer = tuned.base.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tuned.encoder.end)
    tokenizer.padding_side = "right"  # on the left it would move GPT-Neo's positions
    if task.tags_words:  # every word carries its leading space, the first one too
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        before_words.add_prefix_space = True
        tokenizer.backend_tokenizer.pre_tokenizer = before_words
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True
    return tokenizer


#
# ---- The card


def card(tuned: Any, what: str, lines: list[str]) -> str:
    """Say what a folder holds, how its model is read, and the lines of Python that load it, to be
    run inside it."""
    settings, task = tuned.settings, tuned.encoder.task
    return "\n".join(
        [
            f"# {task.name}, {settings.method} on {short_name(settings.model)}",
            "",
            f"{what}, made by neo_peft. Labels in order: {', '.join(task.labels)}.",
            *reading(tuned),
            "",
            "```python",
            *lines,
            "```",
            "",
        ]
    )


def example(tuned: Any) -> str:
    """Say a text of the task, with the names of a row's fields in place of its data."""
    if tuned.encoder.task.tags_words:
        return " ".join(["The IL-2 gene is active in T cells ."] * (2 if tuned.encoder.echo else 1))
    row = {field: f"<{field}>" for field in tuned.encoder.task.fields}
    return "".join(tuned.encoder.task.texts(row, tuned.encoder.source_text))


def reading(tuned: Any) -> list[str]:
    """Say where a model is read, in the words of who has to repeat it."""
    task, encoder = tuned.encoder.task, tuned.encoder
    if not task.tags_words:
        text = f"The text is `{example(tuned)}`"
        if tuned.model.head:
            # Behind a prompt transformers sees no padding, and reads the last column.
            how = (
                "Pad on the right."
                if tuned.model.prompt is None
                else "A batch is of texts of one length."
            )
            return [f"{text}; a linear head reads its last token. {how}"]
        answers = ", ".join(f"`{task.answer(label, encoder.source_text)}`" for label in task.labels)
        return [
            f"{text}, without special tokens; the model goes on with one of {answers} and the end "
            "token."
        ]
    lines = [
        "Words are split by spaces, and each carries its leading space, the first one too "
        "(`add_prefix_space`)."
    ]
    if encoder.echo:
        lines.append("A sentence is given twice, and the tags of its second copy count.")
    if encoder.viterbi:
        lines.append(
            "The best tags that BIO allows together are chosen (Viterbi), which transformers does "
            "not do."
        )
    if encoder.read_last:
        return [
            *lines,
            "A word's tag stands at its last sub-token, which no aggregation of transformers' "
            "takes.",
        ]
    return [
        *lines,
        'A word\'s tag stands at its first sub-token, as `aggregation_strategy="first"` takes it.',
    ]


def adapter_lines(tuned: Any) -> list[str]:
    """Write the Python that loads an adapter by peft."""
    from neo_peft.model import HeadKind

    model, parts = tuned.model, tuned.settings.parts
    auto, labels = "AutoModelForCausalLM", ""
    if model.head:
        kind = "Token" if model.head_kind == HeadKind.CLASSIFIER else "Sequence"
        auto = f"AutoModelFor{kind}Classification"
        labels = f", num_labels={len(tuned.encoder.task.labels)}"
    *first, last = [part.name for part in parts] if len(parts) > 1 else ["."]
    lines = [
        "from peft import PeftConfig, PeftModel",
        f"from transformers import {auto}",
        "",
        f'base = PeftConfig.from_pretrained("{[*first, last][0]}")'
        ".base_model_name_or_path"
        f"  # any copy of {short_name(tuned.settings.model)}",
        f'model = {auto}.from_pretrained(base, dtype="float32"{labels})',
    ]
    for name in first:  # one after the other: peft has no model of both
        lines.append(f'model = PeftModel.from_pretrained(model, "{name}").merge_and_unload()')
    lines.append(f'model = PeftModel.from_pretrained(model, "{last}").eval()')
    if model.prompt is not None and model.head_kind != HeadKind.SCORE:
        lines[-1] += f"  # its first {len(model.prompt)} logits are the prompt's own"
    return lines


def model_lines(tuned: Any) -> list[str]:
    """Write the Python that lets transformers answer by a whole model."""
    from neo_peft.model import HeadKind

    pipeline, options, more = {
        HeadKind.CLASSIFIER: ("token-classification", ', aggregation_strategy="first"', ""),
        HeadKind.SCORE: ("text-classification", "", ""),
        HeadKind.LM_HEAD: (
            "text-generation",
            "",
            ", max_new_tokens=10, do_sample=False, return_full_text=False",
        ),
    }[tuned.model.head_kind]
    if tuned.encoder.read_last:
        options = ', aggregation_strategy="none"'
    return [
        "from transformers import pipeline",
        "",
        f'answer = pipeline("{pipeline}", model="."{options})',
        f"print(answer({example(tuned)!r}{more}))",
    ]
