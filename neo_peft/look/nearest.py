"""The words that a trained prompt or prefix is most similar to, before and after training.

A soft prompt's embedding is compared with the rows of `wte`. A prefix has no embeddings: its keys
in the first layer are compared with the keys that the words of the vocabulary would have there, at
the same position. Similarity is the cosine.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.gptneo import GPTNeo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEAREST = 3  # number of words for each position
TOKENS_AT_ONCE = 8192  # of the vocabulary, to limit memory

Words = list[list]  # a text and its cosine, the most similar word first


@torch.inference_mode()
def nearest_words(
    vectors: Tensor, vocabulary: Tensor, tokenizer: "PreTrainedTokenizerFast"
) -> list[Words]:
    """Return the words whose rows of `vocabulary` (V, H) are most similar to each vector (P, H)."""
    return [_best(cosines(vector, vocabulary), tokenizer) for vector in vectors.float()]


def cosines(vector: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine of a vector (H,) and each row (V, H), in fp32."""
    parts = rows.split(TOKENS_AT_ONCE)
    return torch.cat([F.cosine_similarity(part.float(), vector[None]) for part in parts])


def _best(similarity: Tensor, tokenizer: "PreTrainedTokenizerFast") -> Words:
    best = similarity.topk(NEAREST)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[tokenizer.decode([token]), value] for token, value in pairs]


@torch.inference_mode()
def nearest_first_keys(
    prefixes: list[Tensor], trunk: GPTNeo, tokenizer: "PreTrainedTokenizerFast"
) -> list[list[Words]]:
    """Return the words whose keys in the first layer are most similar to a prefix's: for each of
    several prefixes of keys (P, H), a list with each position's words."""
    found = [[] for _ in prefixes]
    for position, keys in enumerate(vocabulary_keys(trunk, len(prefixes[0]))):
        for words, prefix in zip(found, prefixes, strict=True):
            words.append(_best(cosines(prefix[position].float(), keys), tokenizer))
    return found


def vocabulary_keys(trunk: GPTNeo, positions: int) -> Iterator[Tensor]:
    """Yield for each position the keys (V, H) that the tokens have there in the first layer."""
    block: nn.Module = trunk.h[0]
    for position in range(positions):
        place = trunk.wpe.weight[position].float()
        yield torch.cat(
            [
                block.attn.attention.k_proj(block.ln_1(part.float() + place))
                for part in trunk.wte.weight.split(TOKENS_AT_ONCE)
            ]
        )
