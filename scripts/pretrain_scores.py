"""How well a language model predicts text: bits per byte, and how much it copies."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft.formats.base import Base
from neo_peft.gptneo import GPTNeo
from neo_peft.packing import Packing


def losses(trunk: GPTNeo, texts: Tensor, bf16: bool = False) -> Tensor:
    """Return the cross-entropy in nats (B * T,) of the tokens of texts (B, T + 1), without each
    text's first token."""
    texts = texts.to(trunk.wte.weight.device)
    packing = Packing.of_texts(torch.full((len(texts),), texts.shape[1] - 1, device=texts.device))
    with torch.autocast(texts.device.type, torch.bfloat16, enabled=bf16):
        logits = trunk(trunk.embed(texts[:, :-1].flatten()), packing) @ trunk.wte.weight.T
    return F.cross_entropy(logits.float(), texts[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def measure(base: Base, documents: list[str]) -> str:
    """Return a line with the bits per byte of documents, and with what repeating a text saves.

    For bits per byte, the end token and a document are split into windows, and a window's first
    token is not counted. For the copies, a document's first 60 tokens are given twice; the second
    copy is counted without its first five tokens. Documents with fewer tokens have no part in it.
    """
    nats, count, config, copies = 0.0, 0, base.trunk.config, []
    for ids in base.tokenizer(documents, verbose=False)["input_ids"]:
        end = config.eos_token_id
        for window in torch.tensor([end, *ids]).split(config.max_position_embeddings):
            nats += float(losses(base.trunk, window[None]).sum())
            # The tokens of a byte-level BPE have one character for each byte.
            count += sum(map(len, base.tokenizer.convert_ids_to_tokens(window[1:].tolist())))
        if len(ids) >= 60 and len(copies) < 100:
            copies.append(losses(base.trunk, torch.tensor([[end, *ids[:60], *ids[:60]]])))
    line = f"{nats / np.log(2) / count:.4f} bits per byte"
    if copies:
        each = torch.stack(copies)  # (documents, 120)
        line += f"; {each[:, :60].mean():.3f} nats per token on 60 tokens of {len(each)} documents,"
        line += f" {each[:, 65:].mean():.3f} on their repetition"
    return line
