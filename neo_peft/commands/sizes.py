"""Show what each method trains and stores, for the published sizes of GPT-Neo: python -m neo_peft
sizes

A recipe is the flags that train.py would get. Its model is built by the same code as train.py's,
but on torch's meta device, where a tensor has a shape and no numbers. The parameters are counted,
and the state that the optimizer makes.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neo_peft.commands.flags import OneLineParser, add_json
from neo_peft.commands.train import parse_flags
from neo_peft.runs import tables
from neo_peft.settings import task_of

if TYPE_CHECKING:
    from neo_peft.gptneo import GPTNeo

WHOLE = "--task sentiment --method full"  # trains and stores all of the model
# hidden_size, num_layers, num_heads; what else a config.json says is the same for all of them.
PUBLISHED = {
    "EleutherAI/gpt-neo-125m": (768, 12, 12),
    "EleutherAI/gpt-neo-1.3B": (2048, 24, 16),
    "EleutherAI/gpt-neo-2.7B": (2560, 32, 20),
}
# Flags of train.py. The task matters where there is a head, which has a row for each label.
RECIPES = (
    "--task sentiment --method lora --rank 8 --target-modules q_proj,v_proj",
    "--task sentiment --method lora --rank 8 --target-modules all-linear",
    "--task ner --preset paper",
    "--task sentiment --method prompt --prompt-length 8",
    "--task ner --preset best",
    "--task sentiment --preset best",
    "--task sentiment --method prompt --prompt-length 20",
    "--task sentiment --method prompt --prompt-length 100",
    "--task sentiment --method head",
    "--task ner --method head",
    "--task sentiment --method lora+prompt --rank 8 --prompt-length 8",
    WHOLE,
)


def main(argv: Sequence[str]) -> None:
    """Print a table for each published size, or one JSON object."""
    parser = OneLineParser(
        prog="python -m neo_peft sizes",
        description="Show what each method trains and stores, for the published sizes of GPT-Neo.",
    )
    add_json(parser)
    flags, found = parser.parse_args(argv), {}
    for name in PUBLISHED:
        found[name] = {recipe: sizes(name, recipe) for recipe in RECIPES}
        if not flags.json:
            print(as_table(name, found[name]) + "\n", flush=True)
    if flags.json:
        print(json.dumps(found))


def sizes(name: str, recipe: str) -> dict[str, int | float]:
    """Return how many parameters a recipe trains on a published model, and how many bytes its
    adapter and its optimizer's state have.

    Only tensors are counted: a safetensors file has a few kilobytes of names in front of them.
    """
    from neo_peft.formats.base_folder import BUNDLED
    from neo_peft.formats.tokenizer import load_tokenizer
    from neo_peft.loop import make_optimizer
    from neo_peft.methods import build_model

    settings = parse_flags([*recipe.split(), "--model", name])
    # Any tokenizer will do: it decides which embeddings are copied, but changes no shape.
    tokenizer = load_tokenizer(BUNDLED["neo-mini"])
    model = build_model(published_trunk(name), tokenizer, task_of(settings), settings)
    adapter, optimizer = model.trainable().values(), make_optimizer(model, settings)
    for parameter in adapter:
        parameter.grad = parameter.detach()
    optimizer.step()  # AdamW makes its two moments at the first one
    moments = [
        value for state in optimizer.state.values() for value in state.values() if value.dim()
    ]
    trainable, total = (sum(one.numel() for one in part) for part in (adapter, model.parameters()))
    return {
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "adapter_bytes": sum(one.nbytes for one in adapter),
        "optimizer_bytes": sum(one.nbytes for one in moments),
    }


def published_trunk(name: str) -> "GPTNeo":
    """Return a GPT-Neo of a published size on the meta device."""
    import torch

    from neo_peft.gptneo import Config, GPTNeo

    hidden_size, layers, heads = PUBLISHED[name]
    config = Config(
        vocab_size=50257,
        hidden_size=hidden_size,
        num_heads=heads,
        max_position_embeddings=2048,
        window_size=256,
        intermediate_size=4 * hidden_size,
        attention_layers=("global", "local") * (layers // 2),
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        eos_token_id=50256,
    )
    with torch.device("meta"):
        return GPTNeo(config)


def as_table(name: str, found: dict[str, dict]) -> str:
    """Return a model's table: trained parameters, their share, and megabytes (10^6 bytes, fp32)."""
    whole = found[WHOLE]["adapter_bytes"]
    rows = [
        [
            recipe,
            f"{size['trainable']:,}",
            f"{size['percent']:.4g}",
            f"{size['adapter_bytes'] / 1e6:,.3f}",
            f"{size['optimizer_bytes'] / 1e6:,.3f}",
            f"1/{round(whole / size['adapter_bytes']):,}",
        ]
        for recipe, size in found.items()
    ]
    return tables.table([name, "trains", "%", "adapter MB", "optimizer MB", "of the model"], rows)
