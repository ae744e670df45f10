"""GPT-Neo's trunk in plain PyTorch, on packed batches, under the published parameter names.

Black et al. 2021 (GPT-Neo); the layers alternate global attention and local attention as in GPT-3
(Brown et al. 2020, section 2.1). Where it differs from GPT-2: attention scores are not divided by
sqrt(head_dim); q, k and v have no bias; a local layer sees the last `window_size` tokens, itself
included. Read `packing.py` first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neo_peft.elementwise import gelu_new
from neo_peft.packing import Packing

# The position of a place that holds no key: later than any query, so that none sees it.
NOWHERE = 1 << 40

KeysValues = tuple[Tensor, Tensor]  # of one layer: each (1 or B, heads, S, head_dim)
Masks = list[Tensor | None]  # of one layer, one for each grid
Indices = Tensor | None  # of tokens, (M,); None for all of them


@dataclass(frozen=True)
class Config:
    """The sizes of a GPT-Neo, under the names of its config.json."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    max_position_embeddings: int
    window_size: int
    intermediate_size: int
    attention_layers: tuple[str, ...]  # "global" or "local", one a layer
    layer_norm_epsilon: float
    initializer_range: float
    eos_token_id: int

    @property
    def num_layers(self) -> int:
        return len(self.attention_layers)


@dataclass(frozen=True)
class Past:
    """Keys and values that were computed before. A prefix, shared by all, has a batch of one."""

    keys: tuple[Tensor, ...]  # of each layer (1 or B, heads, S, head_dim)
    values: tuple[Tensor, ...]
    positions: Tensor  # the absolute positions of their tokens (1 or B, S)

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def map(self, change: Callable[[Tensor], Tensor], positions: Tensor) -> "Past":
        return Past(tuple(map(change, self.keys)), tuple(map(change, self.values)), positions)

    def select(self, examples: Tensor) -> "Past":
        """Return the past of these examples (indices); index 0 of a prefix is anyone's."""
        return self.map(lambda tensor: tensor[examples], self.positions[examples])

    def concat(self, later: "Past") -> "Past":
        """Join a past and what came after it, example by example."""
        keys, values = (
            tuple(torch.cat(pair, dim=2) for pair in zip(*both, strict=True))
            for both in ((self.keys, later.keys), (self.values, later.values))
        )
        return Past(keys, values, torch.cat([self.positions, later.positions], dim=1))


def causal_mask(queries: Tensor, keys: Tensor, window_size: int | None) -> Tensor:
    """Return a mask (b, 1, Q, S): True where a query may attend to a key, from the absolute
    positions of the queries (b, Q) and of the keys (b, S).

    A query sees itself and what came before, in a local layer the last `window_size` tokens only. A
    prompt takes the positions 0 … P − 1 and the text those from P on, so that the same rule covers
    both.
    """
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    return (distance >= 0) & (distance < window_size) if window_size else distance >= 0


class SelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        # The published order: a seed's LoRA draws depend on it (see lora.py).
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)

    def forward(
        self, x: Tensor, packing: Packing, past: KeysValues | None, masks: Masks, wanted: Indices
    ) -> tuple[Tensor, list[KeysValues]]:
        """Self-attention over packed tokens x (N, H), which also attend to `past`. Returns the
        outputs that are `wanted` (M, H), and the new keys and values of each grid."""
        projected = (
            project(x).split(packing.sizes) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, new = [], []
        for grid, mask, *parts in zip(packing.grids, masks, *projected, strict=True):
            q, k, v = (  # (b, heads, T, head_dim)
                grid.scatter(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for part in parts
            )
            in_front = new[0] if packing.has_prompt and new else past
            new.append((k, v))
            if in_front is not None:
                k, v = (  # (b, heads, S + T, head_dim)
                    torch.cat([grid.select(before).expand(grid.batch, -1, -1, -1), now], dim=2)
                    for before, now in zip(in_front, (k, v), strict=True)
                )
            # scale=1.0: GPT-Neo does not divide by sqrt(head_dim).
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0
            )
            out.append(grid.gather(attended.transpose(1, 2)))
        tokens = torch.cat(out)  # (N, H)
        return self.out_proj(tokens if wanted is None else tokens[wanted]), new


class Attention(nn.Module):
    """One more level in the published names: `attn.attention.q_proj`."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = SelfAttention(config)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu_new(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: Config, kind: str):
        super().__init__()
        self.window_size = config.window_size if kind == "local" else None
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, packing: Packing, past: KeysValues | None, masks: Masks, wanted: Indices
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return the outputs that are `wanted` (M, H), and each grid's new keys and values."""
        attended, new = self.attn.attention(self.ln_1(x), packing, past, masks, wanted)
        x = (x if wanted is None else x[wanted]) + attended
        return x + self.mlp(self.ln_2(x)), new


def _embedding(count: int, size: int) -> nn.Embedding:
    """Make an embedding without drawing it, which on the meta device imports torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(count, size), freeze=False)


class GPTNeo(nn.Module):
    """The trunk: from the embeddings of N tokens to their last hidden states. The language model's
    head is `wte` again."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.wte = _embedding(config.vocab_size, config.hidden_size)
        self.wpe = _embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Block(config, kind) for kind in config.attention_layers)
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (N, H) of token ids (N,), in fp32 whatever the dtype of `wte`: the
        residual stream is fp32."""
        return self.wte(ids).float()

    def forward(
        self, x: Tensor, packing: Packing, past: Past | None = None, wanted: Indices = None
    ) -> Tensor:
        """Return the last hidden states of embeddings (N, H), those that are `wanted` (M, H)."""
        return self.ln_f(self.layers(x, packing, past, wanted)[0])

    def prefix(self, embeddings: Tensor) -> Past:
        """Return the keys and values of a prefix from its embeddings (P, H), once for all texts
        behind it.

        Under a causal mask a prefix cannot see the text that follows, so its states are the same
        for every example: exact in value, and in gradient too, which sums over the examples that
        attend to it.
        """
        packing = Packing.of_texts(torch.tensor([len(embeddings)])).to(embeddings.device)
        none = torch.zeros(0, dtype=torch.long, device=embeddings.device)
        _, kept = self.layers(embeddings, packing, past=None, wanted=none)
        return Past(*zip(*kept, strict=True), packing.grids[0].positions)

    def layers(
        self, x: Tensor, packing: Packing, past: Past | None, wanted: Indices = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return the last outputs that are `wanted`, and each layer's new keys and values."""
        x = x + self.wpe(packing.positions).float()  # learned, absolute
        masks, new = {}, []
        for layer, block in enumerate(self.h):
            if block.window_size not in masks:
                masks[block.window_size] = _masks(packing, past, block.window_size)
            before = None if past is None else (past.keys[layer], past.values[layer])
            # The last layer's output is computed only where it is wanted.
            last = layer == len(self.h) - 1
            inputs = x, packing, before, masks[block.window_size], wanted if last else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Chen et al. 2016: of a layer its input alone is kept; backward computes the rest
                # again, with the same draws of dropout.
                x, keys_values = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x, keys_values = block(*inputs)
            new += keys_values
        return x, new


def _masks(packing: Packing, past: Past | None, window_size: int | None) -> Masks:
    """Return for each grid which keys its tokens see, those of the prompt or the past first. None
    is plain causal attention."""
    masks = []
    for number, grid in enumerate(packing.grids):
        keys, before = grid.positions, past and grid.select(past.positions)
        if packing.has_prompt and number:
            before = packing.grids[0].positions
        if before is not None:
            batch = max(len(before), len(keys))
            keys = torch.cat([before.expand(batch, -1), keys.expand(batch, -1)], dim=1)
        # With nothing before, and while the window holds the whole text, plain causal attention is
        # the same, and faster. Else `is_causal` would align the two top left, which is wrong.
        plain = before is None and grid.longest <= (window_size or grid.longest)
        masks.append(None if plain else causal_mask(grid.positions, keys, window_size))
    return masks
