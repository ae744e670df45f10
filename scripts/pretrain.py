"""Pretrain neo-mini, tokenizer and weights, on text files (plain or .xz, one document per line).

    python scripts/pretrain.py --text bio.txt.xz news.txt:0.5 --heldout heldout.txt --out my-mini

`FILE:0.5` uses half of a file's documents, `FILE:2` all of them twice. If --out has a checkpoint,
the run resumes from it. `torchrun --nproc-per-node 2 scripts/pretrain.py ...` splits each batch
between two processes.
"""

import argparse
import lzma
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from neo_peft.errors import InputError
from neo_peft.formats.base import Base, load_base
from neo_peft.packing import Packing
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import read_json, write_json, write_whole

# punctuation, but not the marks in 1,000, 0.5 and IL-2
PUNCTUATION = re.compile(r"""([()\[\];:!?"]|,(?!\d)|\.(?=\s|$)|'s\b)""")
WARMUP = 100  # number of steps in which the learning rate rises
DECAY = 0.5  # share of the steps, the last ones, in which it falls (Hu et al. 2024)
SAVE_EVERY = 100  # steps between two checkpoints
RANK, LOCAL, WORLD = (
    int(os.environ.get(*variable))
    for variable in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
)


def read_documents(file: str) -> tuple[list[str], float]:
    """Return the documents and the weight of FILE or FILE:WEIGHT; the weight defaults to 1."""
    path, _, weight = file.partition(":")
    try:
        with (
            lzma.open(path, "rt", encoding="utf-8")
            if path.endswith(".xz")
            else open(path, encoding="utf-8") as lines
        ):
            return [line.strip() for line in lines if line.strip()], float(weight or 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise InputError(
            f"{file} is not FILE or FILE:WEIGHT, UTF-8 text, plain or .xz: {error}"
        ) from None


def choose_documents(files: list[str], spaced: float, seed: int) -> list[str]:
    """Return documents of all files, drawn by the files' weights and shuffled. A share `spaced` of
    them has spaces around the punctuation."""
    random, chosen = np.random.default_rng(seed), []
    for documents, weight in map(read_documents, files):
        order = random.permutation(len(documents))
        chosen += [documents[order[i % len(order)]] for i in range(round(weight * len(order)))]
    chosen = [
        " ".join(PUNCTUATION.sub(r" \1 ", d).split()) if random.random() < spaced else d
        for d in chosen
    ]
    return [chosen[i] for i in random.permutation(len(chosen))]


def start(model: str | None, documents: list[str], seed: int) -> Base:
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
    return base


def losses(trunk: torch.nn.Module, texts: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy in nats (B * T,) of the tokens of texts (B, T + 1), without each
    text's first token."""
    texts = texts.to(trunk.wte.weight.device)
    packing = Packing.of_texts(torch.full((len(texts),), texts.shape[1] - 1, device=texts.device))
    with torch.autocast(texts.device.type, torch.bfloat16, enabled=texts.is_cuda):
        logits = trunk(trunk.embed(texts[:, :-1].flatten()), packing) @ trunk.wte.weight.T
        return torch.nn.functional.cross_entropy(logits, texts[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def optimizer_step(
    trunk: torch.nn.Module, averages: dict[str, torch.Tensor], step: int, rate: float
) -> None:
    """Take an optimizer step: the blocks' matrices with Muon (Jordan et al. 2024), all other
    parameters with Adam at 0.15 of the learning rate."""
    for name, p in trunk.named_parameters():
        first, second = averages["first " + name], averages["second " + name]
        if name.startswith("h.") and p.dim() == 2:
            x = p.grad.lerp(first.lerp_(p.grad, 0.05), 0.95)
            x = (x.T if (tall := len(p) > p.shape[1]) else x) / (x.norm() + 1e-7)
            # Newton-Schulz: moves all singular values near 1. In fp32: not all CPUs have bf16.
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
            p -= rate * max(1, len(p) / p.shape[1]) ** 0.5 * (x.T if tall else x)
        else:
            first.lerp_(p.grad, 0.1)
            second.lerp_(p.grad**2, 0.05)
            p -= 0.15 * rate * first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)


@torch.no_grad()
def bits_per_byte(base: Base, documents: list[str]) -> float:
    """Return the bits per byte of documents. The end token and a document are split into windows,
    and a window's first token is not counted."""
    nats, count, config = 0.0, 0, base.trunk.config
    for ids in base.tokenizer(documents, verbose=False)["input_ids"]:
        for window in torch.tensor([config.eos_token_id, *ids]).split(
            config.max_position_embeddings
        ):
            nats += float(losses(base.trunk, window[None]).sum())
            # The tokens of a byte-level BPE have one character for each byte.
            count += sum(map(len, base.tokenizer.convert_ids_to_tokens(window[1:].tolist())))
    return nats / np.log(2) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE[:WEIGHT]")
    parser.add_argument(
        "--heldout", required=True, metavar="FILE", help="documents for evaluation only"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--model", help="start from this GPT-Neo's weights and tokenizer, not from random ones"
    )
    for name, default in {
        "steps": 2400,
        "batch-size": 32,
        "learning-rate": 0.02,
        "spaced": 0.3,
        "seed": 0,
    }.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help="default: %(default)s"
        )
    flags = parser.parse_args()
    if WORLD > 1:
        torch.distributed.init_process_group()
    heldout, documents = (
        read_documents(flags.heldout)[0],
        choose_documents(flags.text, flags.spaced, flags.seed),
    )
    base = start(flags.model, documents, flags.seed)
    trunk = base.trunk.requires_grad_(True).to(
        f"cuda:{LOCAL}" if torch.cuda.is_available() else "cpu"
    )
    tokens, size = (
        base.tokenizer(documents, verbose=False)["input_ids"],
        trunk.config.max_position_embeddings,
    )
    stream = torch.tensor([i for ids in tokens for i in (trunk.config.eos_token_id, *ids)])
    if len(stream) <= flags.batch_size * size:
        raise InputError(
            f"--text has {len(stream)} tokens; a batch of {flags.batch_size} needs more"
        )
    texts = stream.unfold(0, size + 1, size)  # a text's last token is the next one's first
    weights = {name: p.detach() for name, p in trunk.named_parameters()}
    averages = {
        f"{which} {name}": torch.zeros_like(p)
        for name, p in weights.items()
        for which in ("first", "second")
    }
    # the tensors of a checkpoint
    state = {**weights, **averages, "step": torch.zeros(1, dtype=torch.long)}
    if (checkpoint := flags.out / "checkpoint.safetensors").exists():
        for name, tensor in load_file(checkpoint).items():
            state[name].copy_(tensor)
    flags.out.mkdir(parents=True, exist_ok=True)
    for step in (
        bar := tqdm(
            range(int(state["step"]), flags.steps), "steps", disable=RANK > 0, dynamic_ncols=True
        )
    ):
        epoch, offset = divmod(
            step * flags.batch_size, len(texts) // flags.batch_size * flags.batch_size
        )
        batch = np.random.default_rng((flags.seed, epoch)).permutation(len(texts))[offset:][
            : flags.batch_size
        ]
        (
            loss := losses(trunk, texts[batch[RANK::WORLD]]).sum() / (flags.batch_size * size)
        ).backward()
        for p in trunk.parameters() if WORLD > 1 else ():
            torch.distributed.all_reduce(p.grad)
        torch.nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
        rate = min(1, (step + 1) / WARMUP, (flags.steps - step) / (DECAY * flags.steps))
        optimizer_step(trunk, averages, step + 1, rate * flags.learning_rate)
        trunk.zero_grad()
        bar.set_postfix_str(f"loss {loss.item() * WORLD:.3f}")
        if RANK == 0 and (step + 1) % SAVE_EVERY == 0:
            state["step"].fill_(step + 1)
            write_whole(checkpoint, lambda path: save_file(state, path))
            bar.write(
                f"step {step + 1}: {bits_per_byte(base, heldout):.4f} bits per byte on --heldout"
            )
    if RANK == 0:
        stored = {f"transformer.{name}": p.half() for name, p in weights.items()}
        write_whole(
            flags.out / "model.safetensors", lambda path: save_file(stored, path, {"format": "pt"})
        )
        write_json(flags.out / "config.json", read_json(base.folder / "config.json"))
        base.tokenizer.save_pretrained(flags.out)
        print(
            f"saved in fp16: {bits_per_byte(load_base(str(flags.out)), heldout):.4f} bits per byte "
            "on --heldout"
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
