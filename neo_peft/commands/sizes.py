"""Show what each method trains and stores, for the published sizes of GPT-Neo: python -m neo_peft
sizes

The models are built as train.py builds them, by the same code, but on torch's meta device, where a
tensor has a shape and no numbers: what is counted are their own parameters, and the state that
their own optimizer makes.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from neo_peft.commands.flags import OneLineParser
from neo_peft.runs import tables
from neo_peft.settings import make_settings, task_of

# hidden_size, num_layers, num_heads; what else a config.json says is the same for all of them.
PUBLISHED = {
    "EleutherAI/gpt-neo-125m": (768, 12, 12),
    "EleutherAI/gpt-neo-1.3B": (2048, 24, 16),
    "EleutherAI/gpt-neo-2.7B": (2560, 32, 20),
}
# The task matters where there is a head: else sentiment and similarity are said by the language
# model's own.
LORA = {"task": "sentiment", "method": "lora", "rank": 8, "target_modules": "q_proj,v_proj"}
PROMPT = {"task": "sentiment", "method": "prompt", "prompt_length": 8}
RECIPES = {
    "lora, rank 8, q and v": LORA,
    "lora, rank 8, all-linear": LORA | {"target_modules": "all-linear"},
    "preset paper, ner: lora, rank 16, q and v, biases, head": {"task": "ner", "preset": "paper"},
    "preset paper, sentiment and similarity: prompt, 8 rows": PROMPT,
    "preset best, ner: lora, rank 32, all-linear, head": {"task": "ner", "preset": "best"},
    "preset best, sentiment: lora, rank 16, all-linear, head": {
        "task": "sentiment",
        "preset": "best",
    },
    "prompt, 20 rows": PROMPT | {"prompt_length": 20},
    "prompt, 100 rows": PROMPT | {"prompt_length": 100},
    "head, 3 labels of sentiment": {"task": "sentiment", "method": "head"},
    "head, 11 labels of ner": {"task": "ner", "method": "head"},
    "lora+prompt, rank 8, q and v, 8 rows": PROMPT | LORA | {"method": "lora+prompt"},
    "full": {"task": "sentiment", "method": "full"},
}


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m neo_peft sizes",
        allow_abbrev=False,
        description="Show what each method trains and stores, for the published sizes of GPT-Neo.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    found = {}
    for name in PUBLISHED:
        found[name] = {recipe: sizes(name, given) for recipe, given in RECIPES.items()}
        if not flags.json:
            print(as_table(name, found[name]) + "\n", flush=True)
    if flags.json:
        print(json.dumps(found))


def sizes(name: str, recipe: dict[str, Any]) -> dict[str, int | float]:
    """Count what a recipe trains on a published model, and the bytes of its adapter and of its
    optimizer's state.

    The bytes are those of the tensors alone: a safetensors file has a few kilobytes of names in
    front of them.
    """
    from neo_peft.formats.base_folder import BUNDLED
    from neo_peft.formats.tokenizer import load_tokenizer
    from neo_peft.loop import make_optimizer
    from neo_peft.model import build_model

    settings = make_settings(**recipe | {"model": name})
    # Whose tokens the labels and the prompt's text are changes which rows are copied, and no shape.
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


def published_trunk(name: str) -> Any:
    """Make a trunk of a published size on the meta device."""
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
    """Show a model's sizes: what trains, its share, and megabytes (10^6 bytes, all in fp32)."""
    whole = found["full"]["adapter_bytes"]
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
