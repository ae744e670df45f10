"""The bytes that autograd keeps from the forward pass of a training step for its backward pass.

An operation keeps only what its gradients need, and nothing where no gradient is needed: before the
first trained tensor, and for the weight of a frozen matrix. For N packed tokens with hidden size H,
in the compute dtype (4 or 2 bytes a number), each layer keeps:

norm        its input in fp32, and two numbers for each token
attention   queries, keys, values, output; a number for each token and head; a mask in numbers
LoRA        the input of A (after dropout, with a mask of one byte a number), and the output of A
MLP         the derivative of its activation
full        the input of each matrix

In bf16 and fp16, casts of trained matrices are kept too. The formulas follow the order of gptneo.py
and model.py. `tests/runs/test_activations.py` compares them with what autograd keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from neo_peft.gptneo import Block
from neo_peft.lora import LoRALinear
from neo_peft.model import TunedModel
from neo_peft.packing import Packing

FP32, INDEX = 4, 8  # bytes of a number and of an index


@dataclass(frozen=True)
class Kept:
    """Bytes that are kept for the backward pass of one batch."""

    layers: tuple[int, ...]  # of each layer
    inputs: int  # of the embeddings: token ids and positions
    head: int  # of the last norm and the head, with the logits
    logits: int  # of the logits alone, in fp32

    @property
    def total(self) -> int:
        return sum(self.layers) + self.inputs + self.head


def kept_in_step(model: TunedModel, lengths: Sequence[int], targets: int) -> Kept:
    """Return the bytes kept for a batch of texts with these lengths and number of targets. All
    layers are counted as if nothing was computed again in the backward pass.

    The model can be on the meta device.
    """
    return _Step(model, lengths, targets).kept()


def prompt_tokens(model: TunedModel) -> int:
    """Return how many tokens of a prompt go through the layers with a training batch. The trained
    keys and values of a prefix do not."""
    return 0 if model.prompt is None or model.prompt.embeddings is None else len(model.prompt)


def trains(module: nn.Module) -> bool:
    """Return whether a tensor of a module is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


class _Step:
    def __init__(self, model: TunedModel, lengths: Sequence[int], targets: int):
        self.model, self.trunk = model, model.transformer
        self.config, self.width = self.trunk.config, model.compute_dtype.itemsize
        self.targets = targets  # number of target positions
        self.on_gpu = model.device.type not in ("cpu", "meta")
        prompt = model.prompt
        self.before = 0 if prompt is None else len(prompt)  # positions before each text
        self.has_prompt = prompt_tokens(model) > 0
        self.trains_prefix = prompt is not None and not self.has_prompt
        counts = torch.tensor(list(lengths))
        packing = Packing.of_texts(counts, self.before, self.on_gpu, self.has_prompt)
        self.grids = packing.grids
        self.tokens = len(packing.positions)

    def kept(self) -> Kept:
        trunk, size, layers = self.trunk, self.config.hidden_size, []
        is_trained = trains(trunk.wte) or trains(trunk.wpe)
        inputs = 2 * INDEX * self.tokens if is_trained else 0
        needs = is_trained or self.has_prompt
        for index, block in enumerate(trunk.h):
            is_last = index == len(trunk.h) - 1
            count, needs = self.block(block, self.targets if is_last else self.tokens, needs)
            count += INDEX * self.targets if is_last and needs else 0  # of the target positions
            layers.append(count)
        needs = needs or trains(trunk.ln_f)
        head = self.targets * (FP32 * size + 2 * FP32) if needs else 0
        classes = (
            self.config.vocab_size if self.model.head is None else self.model.head.out_features
        )
        logits = FP32 * self.targets * classes
        head += self.head(needs) + logits + INDEX * self.targets + FP32  # targets, their number
        head += FP32 * self.targets if self.model.target_weights else 0
        return Kept(tuple(layers), inputs, head, logits)

    def block(self, block: Block, rows: int, needs: bool) -> tuple[int, bool]:
        """Return the bytes of a layer, and whether its output needs a gradient. After attention it
        computes `rows` tokens. `needs`: whether its input needs a gradient."""
        attention, mlp, config = block.attn.attention, block.mlp, self.config
        normed = needs or trains(block.ln_1)
        total = self.norm(self.tokens) if normed else 0
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        total += self.inputs(projections, self.tokens, normed)
        attended = normed or any(map(trains, projections)) or self.trains_prefix
        if attended:
            total += self.attention(block.window_size)
        total += self.inputs([attention.out_proj], rows, attended)
        needs = needs or attended or trains(attention.out_proj)
        normed = needs or trains(block.ln_2)
        total += self.norm(rows) if normed else 0
        total += self.inputs([mlp.c_fc], rows, normed)
        inner = normed or trains(mlp.c_fc)
        if inner:
            total += self.width * rows * config.intermediate_size  # the activation's derivative
        total += self.inputs([mlp.c_proj], rows, inner)
        return total, inner or trains(mlp.c_proj)

    def norm(self, rows: int) -> int:
        return rows * (FP32 * self.config.hidden_size + 2 * FP32)

    def inputs(self, layers: Sequence[nn.Module], rows: int, needs: bool) -> int:
        """Return the bytes of the common input of linear layers, and of what LoRA keeps."""
        total, is_shared = 0, False
        for layer in layers:
            own = self.width != FP32  # each layer casts the input for itself
            if isinstance(layer, LoRALinear):
                A, B = layer.lora_A.weight, layer.lora_B.weight
                inputs, matrices = A.shape[1], [B, A] if needs else [B]
                total += self.width * rows * len(A)
                if layer.dropout:
                    own = True
                    total += rows * inputs if needs else 0  # which elements are zero
            elif layer.weight.requires_grad:
                inputs, matrices = layer.in_features, [layer.weight] if needs else []
            else:
                continue
            total += self.width * rows * inputs if own else 0
            is_shared = is_shared or not own
            if self.width != FP32:
                total += sum(self.width * matrix.numel() for matrix in matrices)
        return total + (FP32 * rows * inputs if is_shared else 0)

    def attention(self, window: int | None) -> int:
        """Return the bytes of attention in a layer."""
        config, width, size = self.config, self.width, self.config.hidden_size
        places = sum(grid.batch * grid.longest for grid in self.grids)  # with padding on a GPU
        texts = self.grids[1:] if self.has_prompt else self.grids
        total = places * (2 * width * size + FP32 * config.num_heads)  # queries and output
        if not self.before or self.has_prompt:
            total += 2 * places * width * size  # keys and values of all tokens
        for grid in texts if self.before else ():  # joined with those of the prefix
            total += 2 * width * size * grid.batch * (self.before + grid.longest)
        for index, grid in enumerate(self.grids):
            is_prompt = self.has_prompt and not index
            keys = grid.longest + (0 if is_prompt else self.before)
            if keys > grid.longest or grid.longest > (window or grid.longest):
                total += width * len(grid.positions) * grid.longest * keys
        return total

    def head(self, needs: bool) -> int:
        """Return the bytes of the head before its logits."""
        head, size, rows = self.model.head, self.config.hidden_size, self.targets
        weight = self.trunk.wte.weight if head is None else head.weight
        dropped = head is not None and self.model.head_dropout
        total = rows * size * (1 if self.on_gpu else FP32) if dropped and needs else 0
        if weight.requires_grad:
            # Without dropout the input in fp32 is the output of the last norm.
            total += self.width * rows * size
            total += self.width * weight.numel() if needs and self.width != FP32 else 0
        return total
