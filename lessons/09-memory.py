# %% [markdown]
# # Lesson 9: where the memory goes
# You will be able to count the bytes of a training step by hand: weights, gradients, optimizer,
# activations; and store a weight in 8 or 4 bits. It follows Loshchilov & Hutter 2019 (AdamW), Chen
# et al. 2016, section 4 (recomputed activations), and Dettmers et al. 2023, section 3 (4 bits). The
# code is `neo_peft/kernels/quantized.py`; `python -m neo_peft sizes` counts for you.

# %%
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft import loop
from neo_peft.encoding import collate
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.kernels.quantized import LEVELS, QuantizedLinear
from neo_peft.packing import Packing

torch.set_num_threads(1)
task, H = neo_peft.get_task("sentiment"), 256  # neo-mini's hidden size
rows = neo_peft.load_splits(task, "sample").train[:16]

# %% [markdown]
# ## Weights, gradients, optimizer
# A number in fp32 has 4 bytes. A *trained* one has a gradient too, and AdamW's two moving means: 4
# bytes for each weight, and 12 more for each trained one. We take a step and look. (On torch's
# device `meta` a model has shapes and no numbers, so we can count a large one, too.)


# %%
def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def tuned_by(method, **given):
    settings = neo_peft.make_settings(task="sentiment", method=method, threads=1, **given)
    return neo_peft.load_untuned(settings, with_method=True)


for method in ("full", "lora", "prompt"):
    tuned = tuned_by(method)
    weights, state = list(tuned.model.parameters()), loop.make_state(tuned.model, tuned.settings)
    tuned.model.loss(batch := collate(tuned.encoder(rows), range(16))).backward()
    grads = bytes_of(p.grad for p in weights if p.grad is not None)
    state.optimizer.step()
    means = [mean for own in state.optimizer.state.values() for mean in own.values() if mean.dim()]
    parts = bytes_of(weights), grads, bytes_of(means)
    by_hand = sum(4 * p.numel() + 12 * p.numel() * p.requires_grad for p in weights)
    print(f"{method:6}", *(f"{size:>10,}" for size in parts), f" by hand: {sum(parts) == by_hand}")
config = Config(50257, 2048, 16, 2048, 256, 8192, ("global", "local") * 12, 1e-5, 0.02, 50256)
with torch.device("meta"):
    total = sum(parameter.numel() for parameter in GPTNeo(config).parameters())
for name, trained in (("full", total), ("LoRA, r = 8, q and v", 24 * 2 * 8 * (2048 + 2048))):
    print(f"GPT-Neo 1.3B, {name}: {(4 * total + 12 * trained) / 1e9:.1f} GB")
# > full   27,588,608 27,588,608 55,177,216  by hand: True
# > lora   27,785,216    196,608    393,216  by hand: True
# > prompt 27,609,088     20,480     40,960  by hand: True
# > GPT-Neo 1.3B, full: 21.0 GB
# > GPT-Neo 1.3B, LoRA, r = 8, q and v: 5.3 GB

# %% [markdown]
# ## Activations
# The backward pass needs numbers of the forward pass, which autograd keeps. Which ones? A frozen
# linear layer needs only its weight; a trained one also needs its input. For one block by hand, in
# units of H numbers a token:
# - always: inputs of two norms (2), q, k, v and attention's result (4), GELU's derivative at the
#   MLP's 4 H inner numbers (4): 10. Attention's weights (T · T) are computed again.
# - LoRA on q and v: the input of A (1), too: 11, and B's inputs, r numbers each
# - full: the inputs of q, k and v (1), out_proj (1, a copy), c_fc (1) and c_proj (4), too: 17


# %%
def kept_bytes(model, compute, *given):  # of what autograd keeps, except weights
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute(*given)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


x, packing = torch.randn(50, H, requires_grad=True), Packing.of_texts(torch.tensor([50]))
for method in ("prompt", "lora", "full"):
    model = tuned_by(method).model
    units = kept_bytes(model, model.transformer.h[0], x, packing, None, [None], None) / x.nbytes
    print(f"{method:6} {'█' * round(2 * units)} {units:.1f} H for each token")
# > prompt ████████████████████ 10.0 H for each token
# > lora   ██████████████████████ 11.1 H for each token
# > full   ██████████████████████████████████ 17.0 H for each token

# %% [markdown]
# This part grows with the tokens, and LoRA saves less of it. What helps: keep each block's input
# only, and compute the rest again in the backward pass, at the price of a second forward pass.

# %%
for given in ({}, {"checkpoint_activations": True}):
    model = tuned_by("lora", **given).model
    size = kept_bytes(model, model.loss, batch)
    print(f"{len(batch.ids)} tokens, {', '.join(given) or 'plain'}: {size / 1e6:.1f} MB")
# > 646 tokens, plain: 41.4 MB
# > 646 tokens, checkpoint_activations: 5.1 MB

# %% [markdown]
# ## 8 and 4 bits
# Do frozen weights need 4 bytes? int8: scale each row so that its largest value is 127, and round.
# nf4: the nearest of 16 levels, times the largest value of each 64 weights (stored in 8 bits, too).
# In scores of tuned models neither cost anything that could be seen (docs/performance.md).

# %%
W = tuned_by("lora").model.transformer.h[0].mlp.c_fc.weight
scale = W.abs().amax(1, keepdim=True) / 127  # (out, 1)
eight, levels, blocks = (W / scale).round() * scale, torch.tensor(LEVELS), W.reshape(-1, 64)
largest = blocks.abs().amax(1, keepdim=True)
codes = ((blocks / largest)[..., None] - levels).abs().argmin(-1)  # 0 to 15
four = (levels[codes] * largest).view_as(W)
for kind, mine in (("int8", eight), ("nf4", four)):
    layer, norm = QuantizedLinear(W, kind), W.norm()
    size = bytes_of(layer.parameters()) / W.numel()
    error, other = (mine - W).norm() / norm, (mine - layer.weight).norm() / norm
    print(f"{kind:4}: {size:.2f} bytes each, error {error:.1%}, distance to neo_peft {other:.1%}")
# > int8: 1.02 bytes each, error 0.7%, distance to neo_peft 0.0%
# > nf4 : 0.52 bytes each, error 9.2%, distance to neo_peft 0.4%

# %% [markdown]
# ## Exercises
# 1. The bytes of weights, gradients and AdamW. `frozen` numbers have `bits` each, `trained` fp32.
# 2. A matrix in `bits` bits: return the whole numbers and the scales (rows, 1), as above for 8.


# %%
def bytes_needed(frozen, trained, bits):
    return ...


def quantize(W, bits):
    return ...


check(9, bytes_needed)
check(9, quantize)
# > bytes_needed: still open: replace the `...` and run it again
# > quantize: still open: replace the `...` and run it again
