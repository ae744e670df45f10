# %% [markdown]
# # Lesson 6: from prompt to prefix to LoRA
# You will be able to explain what each method can change in attention and what not, follow its
# gradient through the model, and compare all three on one task. It follows He et al. 2022, section
# 3, and Petrov et al. 2024, section 4. The code is `neo_peft/prefix.py`, `prompt.py`, `lora.py`.
#
#              embeddings      layer 1          layer 2
#     prompt   █ ──────────▶   k v ─────────▶   k v          P rows of H numbers, at the bottom
#     prefix                   █ █              █ █          keys and values in every layer
#     LoRA                     W + █            W + █        a change of the weights

# %%
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft.decoding import score
from neo_peft.encoding import collate
from neo_peft.packing import Packing
from neo_peft.prefix import Prefix

torch.set_num_threads(1)
base, task = neo_peft.load_base("neo-mini"), neo_peft.get_task("sentiment")
trunk, splits = base.trunk, neo_peft.load_splits(task, "sample")
layers, heads, H, P = trunk.config.num_layers, trunk.config.num_heads, trunk.config.hidden_size, 8
ids = torch.tensor(base.tokenizer("Sentence : Sales rose . Label :")["input_ids"])
print(f"trained numbers: prompt {P * H:,}, prefix {P * 2 * layers * H:,}, ", end="")
print(f"LoRA, r = 8, on q and v {layers * 2 * 8 * (H + H):,}")
# > trained numbers: prompt 2,048, prefix 24,576, LoRA, r = 8, on q and v 49,152

# %% [markdown]
# ## A prefix can do what a prompt can
# A prompt's keys and values come out of the layers (lesson 4). We train them in place of the
# embeddings. At first nothing changes. But a prompt has H free numbers for each position, a prefix
# 2 · H in every layer: it can take keys and values that no prompt gives.

# %%
words = torch.tensor(base.tokenizer(task.instruction)["input_ids"][:P])
soft = neo_peft.SoftPrompt(trunk.embed(words))
prefix = Prefix(soft.past(trunk))
packing = Packing.of_texts(torch.tensor([len(ids)]), start=P)  # the text's positions begin at P
states = [trunk(trunk.embed(ids), packing, front.past(trunk)) for front in (soft, prefix)]
print("equal:", torch.allclose(*states, atol=1e-4))
# > equal: True

# %% [markdown]
# ## What a prefix does in a head
# Attention is a mean of values, weighted by a softmax; more keys give it more terms. If a token
# gives the prefix the share s of its attention, is the result (1 - s) · (what it was) + s · (a mean
# of the prefix's values)?

# %%
attention, past = trunk.h[0].attn.attention, prefix.past(trunk)
x = trunk.h[0].ln_1(trunk.embed(ids) + trunk.wpe(torch.arange(P, P + len(ids))))
q, k, v = (f(x)[:, : H // heads] for f in (attention.q_proj, attention.k_proj, attention.v_proj))
K, V = past.keys[0][0, 0], past.values[0][0, 0]  # of the first head: (P, head_dim)
token = q[-1]  # the last token sees the whole text
text, front = (token @ k.T).softmax(0), (token @ K.T).softmax(0)
both = (token @ torch.cat([K, k]).T).softmax(0)
s = both[:P].sum()
mixed = (1 - s) * (text @ v) + s * (front @ V)
error = (mixed - both @ torch.cat([V, v])).abs().max()
print(f"share of the prefix {s:.2f}; largest difference {error:.6f}")
# > share of the prefix 0.43; largest difference 0.000000

# %% [markdown]
# ## What it cannot do
# In this mean, `text` is as it was. So in the first layer a prefix or prompt cannot move attention
# from one word to another: it takes the same share of all, and adds a mean of its own values.
# (Higher layers get another x.) LoRA changes q. The last token's attention to ":" and "Sales":


# %%
def tuned_by(method, task="sentiment", **given):
    given |= {"prompt_length": P} if method in ("prompt", "prefix") else {}
    settings = neo_peft.make_settings(task=task, method=method, threads=1, **given)
    return neo_peft.load_untuned(settings, with_method=True)


q_proj = tuned_by("lora").model.transformer.h[0].attn.attention.q_proj
torch.nn.init.normal_(q_proj.lora_B.weight, std=0.5)  # not trained: to see what can change
lora = (q_proj(x)[-1, : H // heads] @ k.T).softmax(0)
for name, share in (("before", text), ("prefix", both[P:]), ("LoRA", lora)):
    print(f"{name:6} {share[3]:.3f}, {share[4]:.3f}, ratio {share[3] / share[4]:.2f}")
# > before 0.067, 0.141, ratio 0.47
# > prefix 0.038, 0.081, ratio 0.47
# > LoRA   0.068, 0.137, ratio 0.50

# %% [markdown]
# ## The way of the gradient
# A prompt's gradient comes down through all layers to the same numbers. A prefix and LoRA have
# their own in each. Norms at the start, on 16 texts, from the first layer up (LoRA: v, q of each).

# %%
for method in ("prompt", "prefix", "lora"):
    tuned = tuned_by(method)
    batch = collate(tuned.encoder(splits.train), range(16))
    tuned.model.loss(batch).backward()
    grads = [p.grad for name, p in tuned.model.trainable().items() if "lora_A" not in name]
    grads = grads[0].chunk(layers, dim=1) if method == "prefix" else grads  # (P, 2 · layers · H)
    print(f"{method:6}", *(f"{grad.norm():5.1f}" for grad in grads))
# > prompt  27.0
# > prefix  26.4   1.4   1.1   1.2   2.3   2.4
# > lora    18.1   8.6  32.3  28.6   7.3   2.1   6.2   2.3  30.9  12.4  35.1   9.9

# %% [markdown]
# The prefix's first layer gets most of its gradient, LoRA's does not: such norms depend on scales.
# In each layer v gets more than q: v changes what is added up, q only with which weights.
# ## One task, three methods
# Tagging with a linear head: 60 steps of eight sentences, one seed. What is added to the head?

# %%
ner, given = neo_peft.get_task("ner"), {"max_steps": 60, "batch_size": 8, "warmup_ratio": 0.1}
splits = neo_peft.load_splits(ner, "sample")
rows = splits.validation
for method, rate in (("head", 0.01), ("prompt", 0.02), ("prefix", 0.03), ("lora", 0.005)):
    tuned = tuned_by(method, task="ner", learning_rate=rate, **given)
    neo_peft.fit(tuned.model, tuned.encoder(splits.train), tuned.settings)
    found = neo_peft.evaluate(tuned.model, tuned.encoder, tuned.encoder(rows), with_loss=True)
    f1 = score(ner, rows, found.predicted)["f1"]
    print(f"{method:6} validation loss {found.loss:.2f}, F1 {f1:.2f}")
# > head   validation loss 0.44, F1 0.64
# > prompt validation loss 0.44, F1 0.62
# > prefix validation loss 0.45, F1 0.65
# > lora   validation loss 0.40, F1 0.61

# %% [markdown]
# After so few steps nearly all is the head's. LoRA has the lowest loss, and the lowest F1: one seed
# is no ranking (lesson 5). `docs/results.md` has whole runs.
# ## Exercises
# 1. The result of attention to prefix and text, from that to each: o (d,), lse = log Σ exp(score).
# 2. A tuple: how many numbers a prompt, a prefix, and LoRA on q and v train.


# %%
def mix(o_prefix, o_text, lse_prefix, lse_text):
    return ...


def trained(P, r, layers, H):
    return ...


check(6, mix)
check(6, trained)
# > mix: still open: replace the `...` and run it again
# > trained: still open: replace the `...` and run it again
