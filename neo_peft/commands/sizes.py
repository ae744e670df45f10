"""Show what each method trains and stores, in parameters and bytes, for the published sizes of
GPT-Neo: python -m neo_peft sizes

A recipe is a list of flags of train.py. The same code as in train.py builds its model, but on
torch's meta device, where tensors have shapes and no data. The parameters are counted. AdamW has
two numbers for each trained one, so its state is computed: twice the adapter's bytes.

With flags of train.py it prints what that run costs (runs/estimate.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from neo_peft.commands.flags import OneLineParser, add_settings
from neo_peft.commands.train import parse_flags
from neo_peft.formats.published import PUBLISHED, published_config, trunk_without_data
from neo_peft.runs import tables
from neo_peft.runs.from_flags import settings_from
from neo_peft.settings import Settings, task_of

if TYPE_CHECKING:
    from neo_peft.formats.tokenizer import BundledTokenizer
    from neo_peft.gptneo import GPTNeo

BASE = "bytes of the base in memory"  # for each value of --quantize
WHOLE = "--task sentiment --method full"  # trains and stores the whole model
# Flags of train.py. The task matters if there is a head, since its size depends on the labels.
RECIPES = (
    "--task sentiment --method lora --rank 8 --target-modules q_proj,v_proj",
    "--task sentiment --method lora --rank 8 --target-modules all-linear",
    "--task ner --preset paper",
    "--task sentiment --method prompt --prompt-length 8",
    "--task ner --preset best",
    "--task sentiment --preset best",
    "--task sentiment --method prompt --prompt-length 20",
    "--task sentiment --method prompt --prompt-length 100",
    "--task sentiment --method prefix --prompt-length 8",
    "--task sentiment --method head",
    "--task ner --method head",
    "--task sentiment --method lora+prompt --rank 8 --prompt-length 8",
    WHOLE,
)


def main(argv: Sequence[str]) -> None:
    """Print a table for each published size, or one JSON object. With flags of train.py, print what
    that run costs."""
    parser = OneLineParser(
        prog="python -m neo_peft sizes",
        description="Show how many parameters each method trains and how many bytes it stores, for "
        "the published sizes of GPT-Neo. With flags of train.py: what that run costs in memory, "
        "disk and time, as train.py --dry-run does, but also without the weights of the base.",
        argument_default=argparse.SUPPRESS,
    )
    add_settings(parser, without=("out", "resume"))
    given = vars(parser.parse_args(argv))
    if given.keys() <= {"json"}:
        print_published(as_json=bool(given))
    else:
        print_plan(settings_from(given))


def print_plan(settings: Settings) -> None:
    """Print what a run with these settings costs."""
    from neo_peft.runs.estimate import plan
    from neo_peft.system.bars import show_progress

    print_line = partial(print, file=sys.stderr if settings.json else sys.stdout, flush=True)
    record = plan(settings, print_line, show_progress)
    if settings.json:
        print(json.dumps(record))


def print_published(as_json: bool) -> None:
    """Print the table of each published size, or all of them as JSON."""
    by_model = {}
    for name in PUBLISHED:
        by_model[name] = {recipe: sizes(name, recipe) for recipe in RECIPES}
        if not as_json:
            print(as_table(name, by_model[name]))
        by_model[name][BASE] = base_bytes(name)
        if not as_json:
            shown = ", ".join(f"{size / 1e6:,.1f} {k}" for k, size in by_model[name][BASE].items())
            print(f"MB of the frozen base in memory: {shown}\n", flush=True)
    if as_json:
        print(json.dumps(by_model))


def sizes(name: str, recipe: str) -> dict[str, int | float]:
    """Return the number of trained parameters, and the bytes of the adapter and the optimizer.

    `name` is a published model, `recipe` has flags of train.py. Only tensors are counted: a
    safetensors file also has a header of a few kilobytes.
    """
    settings, layers = parse_flags([*recipe.split(), "--model", name]), PUBLISHED[name][1]
    # All pairs of layers are alike: two and four layers give the counts of all, in a fifth of the
    # time.
    two, four = (count(published_trunk(name, layers=number), settings) for number in (2, 4))
    counts = {key: two[key] + (four[key] - two[key]) * (layers - 2) // 2 for key in two}
    return counts | {"percent": 100 * counts["trainable"] / counts["total"]}


def base_bytes(name: str) -> dict[str, int]:
    """Return the bytes of a base's weights in memory for each value of --quantize, in fp32."""
    from neo_peft.formats.base import weight_bytes

    trunk = published_trunk(name, layers=PUBLISHED[name][1])
    kinds = {"fp32": "none", "int8": "int8", "nf4": "nf4"}
    return {shown: weight_bytes(trunk, kind) for shown, kind in kinds.items()}


def count(trunk: "GPTNeo", settings: Settings) -> dict[str, int]:
    """Return the counts of a trunk with the method and the head of the settings."""
    from neo_peft.kernels.adamw import AdamW
    from neo_peft.methods import build_model

    model = build_model(trunk, bundled_tokenizer(), task_of(settings), settings)
    adapter_bytes = sum(parameter.nbytes for parameter in model.trainable().values())
    return {
        "trainable": sum(parameter.numel() for parameter in model.trainable().values()),
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "adapter_bytes": adapter_bytes,
        "optimizer_bytes": len(AdamW.MOMENTS) * adapter_bytes,
    }


@cache
def bundled_tokenizer() -> "BundledTokenizer":
    """Return a tokenizer. Any one works: it selects which embeddings are copied, but changes no
    shape."""
    from neo_peft.formats.base_folder import BUNDLED
    from neo_peft.formats.tokenizer import load_tokenizer

    return load_tokenizer(BUNDLED["neo-mini"])


def published_trunk(name: str, layers: int) -> "GPTNeo":
    """Return a GPT-Neo with the sizes of a published one, and `layers` layers, without data."""
    return trunk_without_data(published_config(name, layers))


def as_table(name: str, by_recipe: dict[str, dict]) -> str:
    """Return a model's table: trained parameters, their share, and megabytes (10^6 bytes, fp32)."""
    whole = by_recipe[WHOLE]["adapter_bytes"]
    rows = [
        [
            recipe,
            f"{size['trainable']:,}",
            f"{size['percent']:.4g}",
            f"{size['adapter_bytes'] / 1e6:,.3f}",
            f"{size['optimizer_bytes'] / 1e6:,.3f}",
            f"1/{round(whole / size['adapter_bytes']):,}",
        ]
        for recipe, size in by_recipe.items()
    ]
    header = [name, "trained", "%", "adapter MB", "optimizer MB", "of the model"]
    return tables.table(header, rows)
