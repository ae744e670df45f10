"""How much attention each head pays to each position of a prompt or a prefix.

The model computes attention without storing the probabilities. Here they are computed again from
the inputs of its attention layers, which hooks collect, one text at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neo_peft.encoding import Examples, collate
from neo_peft.gptneo import KeysValues
from neo_peft.model import Batch, TunedModel


@torch.inference_mode()
def attention_to_prompt(model: TunedModel, examples: Examples, chosen: Sequence[int]) -> Tensor:
    """Return the share of attention (layers, heads, P) that the prompt's positions get: the mean
    over all tokens of the chosen examples. The rest goes to the text."""
    model.eval()
    sums, tokens = 0.0, 0
    for index in chosen:
        batch = collate(examples, [index]).to(model.device)
        probabilities = attention_of_text(model, batch)[..., : len(model.prompt)]
        sums, tokens = sums + probabilities.double().sum(2), tokens + len(batch.ids)
    return sums.cpu() / tokens


def attention_of_text(model: TunedModel, batch: Batch) -> Tensor:
    """Return the attention probabilities (layers, heads, T, P + T) of a batch of one text, behind
    the model's prompt."""
    past, found = model.prompt_past(), []

    def store(module: nn.Module, inputs: tuple) -> None:
        x, packing, past, masks, _ = inputs
        found.append(probabilities_of_layer(module, x, past, masks[0]))

    attention_layers = [block.attn.attention for block in model.transformer.h]
    hooks = [layer.register_forward_pre_hook(store) for layer in attention_layers]
    try:
        model(batch, past)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


def probabilities_of_layer(module: nn.Module, x: Tensor, past: KeysValues, mask: Tensor) -> Tensor:
    """Return the probabilities (heads, T, P + T) of one text's tokens x (T, H), in fp32."""
    q, k = (
        project(x).unflatten(1, (module.num_heads, -1)).transpose(0, 1).float()
        for project in (module.q_proj, module.k_proj)
    )  # (heads, T, head_dim)
    keys = torch.cat([past[0][0].float(), k], dim=1)
    with torch.autocast(x.device.type, enabled=False):
        scores = q @ keys.transpose(1, 2)  # GPT-Neo does not divide by sqrt(head_dim)
    return scores.masked_fill(~mask[0], -torch.inf).softmax(-1)
