"""GPT-Neo's trunk in plain PyTorch, on unpadded rows, under the published parameter names.

Black et al. 2021 (GPT-Neo); the layers alternate global attention and local attention as in GPT-3 (Brown et al.
2020, section 2.1). Where it differs from GPT-2: attention scores are not divided by sqrt(head_dim); q, k and v
have no bias; a local layer sees the last `window_size` tokens, itself included. Read `rows.py` first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.rows import Rows

NOWHERE = 1 << 40  # the position of a place that holds no key: later than any query, so that none sees it


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
    """Keys and values that were computed before, in every layer (1 or B, heads, S, head_dim), and the absolute
    positions (1 or B, S) of their tokens. A batch of one is shared by all examples: that is a prefix."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Tensor

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def expand(self, batch: int) -> "Past":
        """View a past that is shared as one of `batch` examples."""
        widen = lambda tensors: tuple(tensor.expand(batch, -1, -1, -1) for tensor in tensors)  # noqa: E731
        return Past(widen(self.keys), widen(self.values), self.positions.expand(batch, -1))

    def then(self, later: "Past") -> "Past":
        """Join a past and what came after it."""
        join = lambda a, b: tuple(torch.cat(pair, dim=2) for pair in zip(a, b, strict=True))  # noqa: E731
        return Past(
            join(self.keys, later.keys),
            join(self.values, later.values),
            torch.cat([self.positions, later.positions], dim=1),
        )

    def select(self, examples: Tensor) -> "Past":
        """Keep these examples (indices) alone."""
        pick = lambda tensors: tuple(tensor[examples] for tensor in tensors)  # noqa: E731
        return Past(pick(self.keys), pick(self.values), self.positions[examples])


def visible(queries: Tensor, keys: Tensor, window_size: int | None) -> Tensor:
    """Say which key each query sees, from absolute positions (b, Q) and (b, S): (b, 1, Q, S) of bool.

    A query sees itself and what came before, in a local layer the last `window_size` tokens only. A prompt takes
    the positions 0 … P − 1 and the text those from P on, so that the same rule covers both.
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

    def forward(self, x: Tensor, rows: Rows, past: tuple[Tensor, Tensor] | None, mask: Tensor | None):
        """Attend from rows (N, H) to themselves and to the past; return (N, H) and their own keys and values."""
        q, k, v = (
            rows.scatter(project(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen_k, seen_v = k, v
        if past is not None:
            seen_k, seen_v = (
                torch.cat([before.expand(rows.batch, -1, -1, -1), now], dim=2)  # (B, heads, S + T, head_dim)
                for before, now in zip(past, (k, v), strict=True)
            )
        # scale=1.0: GPT-Neo does not divide by sqrt(head_dim).
        out = F.scaled_dot_product_attention(q, seen_k, seen_v, attn_mask=mask, is_causal=mask is None, scale=1.0)
        return self.out_proj(rows.gather(out.transpose(1, 2))), (k, v)


class Attention(nn.Module):
    """The published names put one level between a block and its attention: `attn.attention.q_proj`."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = SelfAttention(config)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # "gelu_new"


class Block(nn.Module):
    def __init__(self, config: Config, kind: str):
        super().__init__()
        self.window_size = config.window_size if kind == "local" else None
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rows: Rows, past: tuple[Tensor, Tensor] | None, mask: Tensor | None):
        attended, keys_values = self.attn.attention(self.ln_1(x), rows, past, mask)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), keys_values


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Make an embedding whose rows are yet to come: to draw them on the meta device would import torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)


class GPTNeo(nn.Module):
    """The trunk: from embeddings of N rows to their last hidden states. The language model's head is `wte` again."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.wte = _embedding(config.vocab_size, config.hidden_size)
        self.wpe = _embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Block(config, kind) for kind in config.attention_layers)
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token ids (N,) as fp32 rows (N, H), whatever `wte` is held in: the residual stream is fp32."""
        return self.wte(ids).float()

    def forward(self, x: Tensor, rows: Rows, past: Past | None = None, read: Tensor | None = None) -> Tensor:
        """Compute last hidden states from embeddings (N, H): those of the rows `read` (M,), of all without it."""
        x, _ = self._blocks(x, rows, past)
        return self.ln_f(x if read is None else x[read])

    def forward_and_keep(self, x: Tensor, rows: Rows, past: Past | None = None) -> tuple[Tensor, Past]:
        """Compute the last hidden states of all rows, and keep their keys and values for tokens to come."""
        x, keys_values = self._blocks(x, rows, past)
        filled = torch.zeros(rows.batch * rows.longest, dtype=torch.bool, device=x.device)
        filled[rows.slots] = True
        positions = rows.rectangle.expand(rows.batch, -1)
        positions = positions.masked_fill(~filled.view(rows.batch, rows.longest), NOWHERE)
        keys, values = zip(*keys_values, strict=True)
        return self.ln_f(x), Past(keys, values, positions)

    def prefix(self, embeddings: Tensor) -> Past:
        """Compute the keys and values of a prefix from its embeddings (P, H), once for all texts behind it.

        Under a causal mask a prefix cannot see the text that follows, so that its states are the same for every
        example: exact in value, and in gradient too, which sums over the examples that look at it.
        """
        rows = Rows.of_texts(torch.tensor([len(embeddings)], device=embeddings.device))
        _, keys_values = self._blocks(embeddings, rows, past=None)
        keys, values = zip(*keys_values, strict=True)
        return Past(keys, values, rows.rectangle)

    def _blocks(self, x: Tensor, rows: Rows, past: Past | None):
        x = x + self.wpe(rows.positions).float()  # learned, absolute
        seen = rows.rectangle
        if past is not None:
            batch = max(len(past.positions), len(seen))
            seen = torch.cat([past.positions.expand(batch, -1), seen.expand(batch, -1)], dim=1)
        masks, keys_values = {}, []
        for layer, block in enumerate(self.h):
            window_size = block.window_size
            if window_size not in masks:
                # Without a past, and while the window holds the whole text, plain causal attention is the same,
                # and faster. With one, `is_causal` would align the two top left, which is wrong.
                plain = past is None and rows.longest <= (window_size or rows.longest)
                masks[window_size] = None if plain else visible(rows.rectangle, seen, window_size)
            before = None if past is None else (past.keys[layer], past.values[layer])
            x, kept = block(x, rows, before, masks[window_size])
            keys_values.append(kept)
        return x, keys_values
