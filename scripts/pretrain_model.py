"""The model that scripts/pretrain.py starts from: its weights, its tokenizer, and added layers."""

import copy
from dataclasses import replace

import torch
from torch import nn

from neo_peft.errors import InputError
from neo_peft.formats.base import Base, load_base
from neo_peft.gptneo import GPTNeo


def start(model: str | None, layers: int | None, documents: list[str], seed: int) -> Base:
    """Load `model`. Without one, draw random weights in neo-mini's shape, and train a tokenizer."""
    base = load_base(model or "neo-mini")
    if not model:
        torch.manual_seed(seed)
        for name, p in base.trunk.named_parameters():
            # norms 1, biases 0
            p.data.normal_(0, 0.02) if p.dim() > 1 else p.data.fill_(name.endswith("weight"))
        base.tokenizer = base.tokenizer.train_new_from_iterator(
            documents, base.trunk.config.vocab_size
        )
    grow(base.trunk, (layers or len(base.trunk.h)) - len(base.trunk.h))
    return base


def grow(trunk: GPTNeo, new: int) -> None:
    """Add `new` layers in the middle. They are copies of the layers after them, with output
    projections of zero, so the trunk's outputs stay the same (block expansion, Wu et al. 2024)."""
    half, kinds = len(trunk.h) // 2, trunk.config.attention_layers
    if not 0 <= new <= len(kinds) - half or new % 2:
        raise InputError(f"--layers adds an even number to {len(kinds)}, at most its half")
    added = copy.deepcopy(trunk.h[half : half + new])
    for block in added:
        for output in (block.attn.attention.out_proj, block.mlp.c_proj):
            output.load_state_dict({k: 0 * v for k, v in output.state_dict().items()})
    trunk.h = nn.ModuleList([*trunk.h[:half], *added, *trunk.h[half:]])
    kinds = kinds[:half] + kinds[half : half + new] + kinds[half:]
    trunk.config = replace(trunk.config, attention_layers=kinds)
