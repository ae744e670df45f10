"""Pretrain a GPT-Neo on text files (plain or .xz, one document per line), or measure one.

    python scripts/pretrain.py --model neo-mini --heldout heldout.txt
    python scripts/pretrain.py --heldout heldout.txt --text bio.txt.xz news.txt:0.5 --out my-mini

The first command prints the values of a model. The second trains one; `FILE:0.5` uses half of a
file's documents, `FILE:2` all of them twice. If --out has a checkpoint, the run resumes from it.
`torchrun --nproc-per-node 2 scripts/pretrain.py ...` splits each batch between two processes.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from neo_peft.system.openmp import wait_passively

wait_passively()  # before torch is imported

import numpy as np
import torch
from pretrain_checkpoint import read_checkpoint, start_averages, write_checkpoint
from pretrain_model import start
from pretrain_scores import losses, measure
from pretrain_text import Windows, choose_documents, read_documents
from torch import nn
from tqdm import tqdm

from neo_peft.errors import InputError
from neo_peft.formats.base import Base, load_base
from neo_peft.gptneo import GPTNeo
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import read_json, write_json, write_tensors

WARMUP = 100  # steps in which the learning rate rises; then it falls linearly to zero
SAVE_EVERY = 100  # steps between two checkpoints
PART = 4  # texts in one forward pass on a CPU: their activations fit its cache
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def train(base: Base, windows: Windows, flags: argparse.Namespace, heldout: list[str]) -> None:
    """Train the trunk, from the checkpoint in --out if there is one: the blocks' matrices with Muon
    (Jordan et al. 2024), all other parameters with Adam at 0.15 of the learning rate."""
    weights = dict(base.trunk.requires_grad_(True).named_parameters())
    matrices = [p for name, p in weights.items() if name.startswith("h.") and p.dim() == 2]
    others = [p for name, p in weights.items() if not (name.startswith("h.") and p.dim() == 2)]
    muon = torch.optim.Muon(matrices, weight_decay=0.0)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    tensors, path = start_averages(weights, muon, adam), flags.out / "checkpoint.safetensors"
    first = read_checkpoint(path, tensors) if path.exists() else 0
    if RANK == 0 and first >= flags.steps:
        print(f"no step is left: {first} are done, and --steps is {flags.steps}")
    bar = tqdm(range(first, flags.steps), "steps", disable=RANK > 0, dynamic_ncols=True)
    for step in bar:
        batch = windows.batch(step, flags.batch_size, flags.copies, flags.seed)[RANK::WORLD]
        loss = add_gradients(base.trunk, batch, flags)
        for p in weights.values() if WORLD > 1 else ():
            torch.distributed.all_reduce(p.grad)
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        rate = min((step + 1) / WARMUP, (flags.steps - step) / max(1, flags.steps - WARMUP))
        for optimizer, share in ((muon, 1), (adam, 0.15)):
            optimizer.param_groups[0]["lr"] = share * rate * flags.learning_rate
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix_str(f"loss {loss:.3f}")
        if RANK == 0 and (step + 1) % SAVE_EVERY == 0:
            write_checkpoint(path, step + 1, tensors)
            bar.write(f"step {step + 1}: {measure(base, heldout)}")


def add_gradients(trunk: GPTNeo, batch: np.ndarray, flags: argparse.Namespace) -> float:
    """Compute this process's part of the gradients from its texts (b, T + 1); return their loss."""
    tokens, loss = flags.batch_size * (batch.shape[1] - 1), 0.0
    for texts in torch.from_numpy(batch).split(len(batch) if trunk.wte.weight.is_cuda else PART):
        part = losses(trunk, texts, flags.bf16).sum() / tokens
        part.backward()
        loss += part.item() * WORLD
    return loss


def save(base: Base, out: Path) -> None:
    """Save the model in fp16, in the layout of transformers."""
    kinds = list(base.trunk.config.attention_layers)
    stored = {f"transformer.{n}": p.detach().half() for n, p in base.trunk.named_parameters()}
    write_tensors(out / "model.safetensors", stored)
    layers = {"num_layers": len(kinds), "attention_types": [[kinds, 1]], "attention_layers": kinds}
    write_json(out / "config.json", read_json(base.folder / "config.json") | layers)
    base.tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--heldout", required=True, metavar="FILE", help="documents for evaluation only")
    add("--text", nargs="*", metavar="FILE[:WEIGHT]", help="default: only measure")
    add("--model", help="start from this GPT-Neo's weights and tokenizer, not from random ones")
    add("--layers", type=int, help="add layers to the model until it has so many")
    add("--out", type=Path, metavar="FOLDER", help="needed with --text")
    add("--bf16", action="store_true", help="compute products in bf16")
    options = {"steps": 2400, "batch-size": 32, "learning-rate": 0.02}
    for name, default in (options | {"spaced": 0.3, "copies": 0.0, "seed": 0}).items():
        add(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    flags = parser.parse_args()
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"pretraining needs torch 2.9 or later; this is {torch.__version__}")
    heldout = read_documents(flags.heldout)[0]
    if not flags.text:
        return print(measure(load_base(flags.model or "neo-mini"), heldout))
    if not flags.out:
        raise InputError("--out is missing: the folder for the model")
    if WORLD > 1:
        torch.distributed.init_process_group()
    documents = choose_documents(flags.text, flags.spaced, flags.seed)
    base = start(flags.model, flags.layers, documents, flags.seed)
    base.trunk.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    config, encoded = base.trunk.config, base.tokenizer(documents, verbose=False)
    windows = Windows(encoded["input_ids"], config.eos_token_id, config.max_position_embeddings)
    del documents, encoded  # gigabytes
    if len(windows.stream) <= flags.batch_size * windows.size:
        needed = f"a batch of {flags.batch_size} needs more"
        raise InputError(f"--text has {len(windows.stream)} tokens; {needed}")
    flags.out.mkdir(parents=True, exist_ok=True)
    train(base, windows, flags, heldout)
    if RANK == 0:
        save(base, flags.out)
        print(f"saved in fp16: {measure(load_base(str(flags.out)), heldout)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
