"""GPT-Neo's trunk (the model without its head) in plain PyTorch, on packed batches.

Black et al. 2021 (GPT-Neo). Layers alternate between global and local attention, as in GPT-3 (Brown
et al. 2020, section 2.1). Differences from GPT-2: attention scores are not divided by
sqrt(head_dim); q, k and v have no bias; in a local layer a token attends to the last `window_size`
tokens, itself included. Parameters have their published names. Read `packing.py` first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neo_peft.kernels.gelu import gelu_new
from neo_peft.kernels.linear import Linear
from neo_peft.packing import Packing

# The position of padding in a stored `Past`: after every query, so the mask hides it.
NOWHERE = 1 << 40

KeysValues = tuple[Tensor, Tensor]  # of one layer (and grid): (1 or b or B, heads, S, head_dim)
Masks = list[Tensor | None]  # the masks of one layer, one for each grid
Indices = Tensor | None  # indices of tokens (M,); None means all tokens


@dataclass(frozen=True)
class Config:
    """The sizes of a GPT-Neo, with the names of the published config.json."""

    vocab_size: int  # V, number of tokens
    hidden_size: int  # H, width of the hidden states
    num_heads: int  # attention heads in each layer
    max_position_embeddings: int  # number of positions
    window_size: int  # number of tokens that a token attends to in a local layer
    intermediate_size: int  # width of the MLP's inner layer
    attention_layers: tuple[str, ...]  # "global" or "local" for each layer
    layer_norm_epsilon: float  # added to the variance in each layer norm
    initializer_range: float  # standard deviation of random weights
    eos_token_id: int  # id of the end-of-text token

    @property
    def num_layers(self) -> int:
        return len(self.attention_layers)


@dataclass(frozen=True)
class Past:
    """Stored keys and values of earlier tokens, with batch size 1 if all examples share them."""

    keys: tuple[Tensor, ...]  # one tensor for each layer (1 or B, heads, S, head_dim)
    values: tuple[Tensor, ...]  # the same shapes
    positions: Tensor  # the absolute positions of their tokens (1 or B, S)

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def map(self, change: Callable[[Tensor], Tensor], positions: Tensor) -> "Past":
        """Return a past with `change` applied to all keys and values, and with new positions."""
        return Past(tuple(map(change, self.keys)), tuple(map(change, self.values)), positions)

    def select(self, examples: Tensor) -> "Past":
        """Return the past of the examples with these indices; a prefix has only index 0."""
        return self.map(lambda tensor: tensor[examples], self.positions[examples])

    def concat(self, later: "Past") -> "Past":
        """Return this past followed by a later one of the same examples."""
        keys, values = (
            tuple(torch.cat(pair, dim=2) for pair in zip(*both, strict=True))
            for both in ((self.keys, later.keys), (self.values, later.values))
        )
        return Past(keys, values, torch.cat([self.positions, later.positions], dim=1))


def causal_mask(queries: Tensor, keys: Tensor, window_size: int | None) -> Tensor:
    """Return a mask (b, 1, Q, S): True where a query may attend to a key.

    `queries` (b, Q) and `keys` (b, S) are absolute positions. A query attends to itself and
    earlier positions. In a local layer, these are only the last `window_size` positions.
    """
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    return (distance >= 0) & (distance < window_size) if window_size else distance >= 0


class SelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        # Keep the published order: LoRA draws its random weights in this order (see lora.py).
        self.k_proj = Linear(size, size, bias=False)
        self.v_proj = Linear(size, size, bias=False)
        self.q_proj = Linear(size, size, bias=False)
        self.out_proj = Linear(size, size)

    def forward(
        self, x: Tensor, packing: Packing, past: KeysValues | None, masks: Masks, wanted: Indices
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return the outputs (M, H) at the tokens `wanted`, and each grid's new keys and values.
        The packed tokens x (N, H) also attend to `past`."""
        projected = (
            project(x).split(packing.sizes) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, new = [], []
        for grid, mask, *parts in zip(packing.grids, masks, *projected, strict=True):
            q, k, v = (  # (b, heads, T, head_dim)
                grid.scatter(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for part in parts
            )
            earlier = new[0] if packing.has_prompt and new else past  # grid 0 is the prompt
            new.append((k, v))
            if earlier is not None:
                k, v = (  # (b, heads, S + T, head_dim)
                    torch.cat([grid.select(old).expand(grid.batch, -1, -1, -1), own], dim=2)
                    for old, own in zip(earlier, (k, v), strict=True)
                )
            # scale=1.0: GPT-Neo does not divide by sqrt(head_dim).
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0
            )
            out.append(grid.gather(attended.transpose(1, 2)))
        tokens = torch.cat(out)  # (N, H)
        return self.out_proj(tokens if wanted is None else tokens[wanted]), new


class Attention(nn.Module):
    """An extra level of modules, as in the published names: `attn.attention.q_proj`."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = SelfAttention(config)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu_new(self.c_fc(x), inplace=True))


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
        """Return the outputs (M, H) at the tokens `wanted`, and each grid's new keys and values."""
        attended, new = self.attn.attention(self.ln_1(x), packing, past, masks, wanted)
        x = (x if wanted is None else x[wanted]) + attended
        return x + self.mlp(self.ln_2(x)), new


def _embedding(count: int, size: int) -> nn.Embedding:
    """Return an embedding without initial values: torch's init on `meta` imports its compiler."""
    return nn.Embedding.from_pretrained(torch.empty(count, size), freeze=False)


class GPTNeo(nn.Module):
    """The trunk: from the embeddings of N tokens to their last hidden states. The language model
    head has the same weights as `wte`."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.wte = _embedding(config.vocab_size, config.hidden_size)
        self.wpe = _embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Block(config, kind) for kind in config.attention_layers)
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (N, H) of token ids (N,), in fp32 even if `wte` is not."""
        return self.wte(ids).float()

    def forward(
        self, x: Tensor, packing: Packing, past: Past | None = None, wanted: Indices = None
    ) -> Tensor:
        """Return the last hidden states (M, H) at the tokens `wanted` from embeddings x (N, H)."""
        return self.ln_f(self.layers(x, packing, past, wanted)[0])

    def past_of(self, embeddings: Tensor) -> Past:
        """Return the keys and values of P tokens before every text from their embeddings (P, H).
        They are the same for every example, in values and gradients: see prompt.py."""
        packing = Packing.of_texts(torch.tensor([len(embeddings)])).to(embeddings.device)
        no_outputs = torch.zeros(0, dtype=torch.long, device=embeddings.device)
        _, new = self.layers(embeddings, packing, past=None, wanted=no_outputs)
        return Past(*zip(*new, strict=True), packing.grids[0].positions)

    def layers(
        self, x: Tensor, packing: Packing, past: Past | None, wanted: Indices = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return the last layer's outputs at the tokens `wanted`, and the new keys and values of
        all layers, layer by layer and grid by grid."""
        x = x + self.wpe(packing.positions).float()  # learned absolute positions
        masks, new = {}, []
        for layer, block in enumerate(self.h):
            if block.window_size not in masks:
                masks[block.window_size] = _masks(packing, past, block.window_size)
            own_past = None if past is None else (past.keys[layer], past.values[layer])
            is_last = layer == len(self.h) - 1  # other layers need the outputs of all tokens
            inputs = x, packing, own_past, masks[block.window_size], wanted if is_last else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Chen et al. 2016: store only the layer's input. The backward pass computes the
                # other activations again, with the same dropout masks.
                x, keys_values = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x, keys_values = block(*inputs)
            new += keys_values
        return x, new


def _masks(packing: Packing, past: Past | None, window_size: int | None) -> Masks:
    """Return one mask for each grid; None means plain causal attention. The keys of the past or the
    prompt come before the grid's own keys."""
    masks = []
    for index, grid in enumerate(packing.grids):
        keys, earlier = grid.positions, past and grid.select(past.positions)
        if packing.has_prompt and index > 0:
            earlier = packing.grids[0].positions
        if earlier is not None:
            batch = max(len(earlier), len(keys))
            keys = torch.cat([earlier.expand(batch, -1), keys.expand(batch, -1)], dim=1)
        # Without earlier keys `is_causal` is exact, and faster if the window covers the longest
        # text. With them it is wrong: query 0 would attend only to key 0.
        plain = earlier is None and grid.longest <= (window_size or grid.longest)
        masks.append(None if plain else causal_mask(grid.positions, keys, window_size))
    return masks
