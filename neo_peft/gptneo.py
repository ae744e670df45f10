"""GPT-Neo's trunk in plain PyTorch, on unpadded rows, under the published parameter names.

Black et al. 2021 (GPT-Neo); the layers alternate global attention and local attention as in GPT-3
(Brown et al. 2020, section 2.1). Where it differs from GPT-2: attention scores are not divided by
sqrt(head_dim); q, k and v have no bias; a local layer sees the last `window_size` tokens, itself
included. Read `rows.py` first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neo_peft.elementwise import gelu_new
from neo_peft.packing import Rows

# the position of a place that holds no key: later than any query, so that none sees it
NOWHERE = 1 << 40


KeysValues = tuple[Tensor, Tensor]  # of one layer: each (1 or B, heads, S, head_dim)


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
    """Keys and values that were computed before, in every layer (1 or B, heads, S, head_dim), and
    the absolute positions (1 or B, S) of their tokens. A batch of one is shared by all examples:
    that is a prefix."""

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
    """Say which key each query sees, from absolute positions (b, Q) and (b, S): (b, 1, Q, S) of
    bool.

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
        self,
        x: Tensor,
        rows: Rows,
        past: KeysValues | None,
        masks: list[Tensor | None],
        read: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Attend from rows (N, H) to themselves and to the past; return those of `read` (M, H), of
        all without it, and each rectangle's own keys and values."""
        out, kept = [], []
        projected = (
            project(x).split(rows.sizes) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        for rectangle, mask, *parts in zip(rows.rectangles, masks, *projected, strict=True):
            q, k, v = (  # (b, heads, T, head_dim)
                rectangle.scatter(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for part in parts
            )
            before = kept[0] if rows.led and kept else past
            kept.append((k, v))
            if before is not None:
                k, v = (  # (b, heads, S + T, head_dim)
                    torch.cat([rectangle.own(old).expand(rectangle.batch, -1, -1, -1), now], dim=2)
                    for old, now in zip(before, (k, v), strict=True)
                )
            # scale=1.0: GPT-Neo does not divide by sqrt(head_dim).
            seen = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0
            )
            out.append(rectangle.gather(seen.transpose(1, 2)))
        attended = torch.cat(out)
        return self.out_proj(attended if read is None else attended[read]), kept


class Attention(nn.Module):
    """The published names put one level between a block and its attention:
    `attn.attention.q_proj`."""

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
        self,
        x: Tensor,
        rows: Rows,
        past: KeysValues | None,
        masks: list[Tensor | None],
        read: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Compute the next layer's rows: those of `read` (M, H), of all (N, H) without it."""
        attended, kept = self.attn.attention(self.ln_1(x), rows, past, masks, read)
        x = (x if read is None else x[read]) + attended
        return x + self.mlp(self.ln_2(x)), kept


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Make an embedding whose rows are yet to come: to draw them on the meta device would import
    torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)


class GPTNeo(nn.Module):
    """The trunk: from embeddings of N rows to their last hidden states. The language model's head
    is `wte` again."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.wte = _embedding(config.vocab_size, config.hidden_size)
        self.wpe = _embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Block(config, kind) for kind in config.attention_layers)
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token ids (N,) as fp32 rows (N, H), whatever `wte` is held in: the residual
        stream is fp32."""
        return self.wte(ids).float()

    def forward(
        self, x: Tensor, rows: Rows, past: Past | None = None, read: Tensor | None = None
    ) -> Tensor:
        """Compute last hidden states from embeddings (N, H): those of the rows `read` (M,), of all
        without it."""
        return self.ln_f(self._blocks(x, rows, past, read)[0])

    def forward_and_keep(
        self, x: Tensor, rows: Rows, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Compute the last hidden states of all rows, which lie in one rectangle, and keep their
        keys and values for tokens to come."""
        x, kept = self._blocks(x, rows, past, keep=True)
        (rectangle,) = rows.rectangles
        positions = rectangle.positions.expand(rectangle.batch, -1)
        if rectangle.slots is not None:
            filled = torch.zeros(positions.numel(), dtype=torch.bool, device=x.device)
            filled[rectangle.slots] = True
            positions = positions.masked_fill(~filled.view_as(positions), NOWHERE)
        return self.ln_f(x), Past(*zip(*kept, strict=True), positions)

    def prefix(self, embeddings: Tensor) -> Past:
        """Compute the keys and values of a prefix from its embeddings (P, H), once for all texts
        behind it.

        Under a causal mask a prefix cannot see the text that follows, so that its states are the
        same for every example: exact in value, and in gradient too, which sums over the examples
        that look at it.
        """
        rows = Rows.of_texts(torch.tensor([len(embeddings)])).to(embeddings.device)
        _, kept = self._blocks(embeddings, rows, past=None, keep=True)
        return Past(*zip(*kept, strict=True), rows.rectangles[0].positions)

    def _blocks(
        self,
        x: Tensor,
        rows: Rows,
        past: Past | None,
        read: Tensor | None = None,
        keep: bool = False,
    ):
        x = x + self.wpe(rows.positions).float()  # learned, absolute
        masks, kept = {}, []
        for layer, block in enumerate(self.h):
            if block.window_size not in masks:
                masks[block.window_size] = _masks(rows, past, block.window_size)
            before = None if past is None else (past.keys[layer], past.values[layer])
            # What no row of a later layer looks at is not computed: in the last one only what is
            # read goes on.
            last = layer == len(self.h) - 1
            given = x, rows, before, masks[block.window_size], read if last else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Chen et al. 2016: of a layer its input alone is kept, and backward computes it
                # again, with the same draws of dropout.
                x, keys_values = checkpoint(block, *given, use_reentrant=False)
            else:
                x, keys_values = block(*given)
            if keep:
                kept += keys_values
        return x, kept


def _masks(rows: Rows, past: Past | None, window_size: int | None) -> list[Tensor | None]:
    """Say for each rectangle which keys its rows see, its prefix's or past's first; None is plain
    causal attention."""
    masks = []
    for number, rectangle in enumerate(rows.rectangles):
        seen = rectangle.positions
        is_led = rows.led and number > 0
        before = rows.rectangles[0].positions if is_led else past and rectangle.own(past.positions)
        if before is not None:
            batch = max(len(before), len(seen))
            seen = torch.cat([before.expand(batch, -1), seen.expand(batch, -1)], dim=1)
        # Without anything before, and while the window holds the whole text, plain causal attention
        # is the same, and faster. With it, `is_causal` would align the two top left, which is
        # wrong.
        plain = before is None and rectangle.longest <= (window_size or rectangle.longest)
        masks.append(None if plain else visible(rectangle.positions, seen, window_size))
    return masks
