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


def after(past):  # the text's hidden states (T, H) behind a prefix
    return trunk(trunk.embed(ids), Packing.of_texts(torch.tensor([len(ids)]), start=P), past)


print("equal:", torch.allclose(after(soft.past(trunk)), after(prefix.past(trunk)), atol=1e-4))
# > equal: True

# %% [markdown]
# ## What a prefix does in a head
# Attention is a mean of values, weighted by a softmax. With more keys the softmax has more terms.
# Let a token give the prefix the share s of its attention. Then the result is
# (1 - s) · (what it was) + s · (a mean of the prefix's values). Is it?

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
equal = torch.allclose(mixed, both @ torch.cat([V, v]), atol=1e-5)
print(f"share of the prefix {s:.2f}; equal: {equal}")
# > share of the prefix 0.43; equal: True

# %% [markdown]
# ## What it cannot do
# In this mean, `text` is as it was. So in the first layer a prefix or prompt cannot move attention
# from one word to another: it takes the same share of all, and adds a vector. (Higher layers get
# another x, so another q and k.) LoRA changes q. The last token's attention to two others:


# %%
def tuned_by(method, **given):
    given |= {"prompt_length": P} if method != "lora" else {}
    settings = neo_peft.make_settings(task="sentiment", method=method, threads=1, **given)
    return neo_peft.load_untuned(settings, with_method=True)


q_proj = tuned_by("lora").model.transformer.h[0].attn.attention.q_proj
torch.nn.init.normal_(q_proj.lora_B.weight, std=0.5)  # at first B is zero: as if it were trained
lora = (q_proj(x)[-1, : H // heads] @ k.T).softmax(0)
for name, share in (("before", text), ("prefix", both[P:]), ("LoRA", lora)):
    print(f"{name:6} {share[3]:.3f}, {share[4]:.3f}, ratio {share[3] / share[4]:.2f}")
# > before 0.067, 0.141, ratio 0.47
# > prefix 0.038, 0.081, ratio 0.47
# > LoRA   0.068, 0.137, ratio 0.50

# %% [markdown]
# ## The way of the gradient
# A prompt's gradient comes down through all layers, and the same numbers must serve them all. A
# prefix and LoRA have numbers of their own in each layer. Where do gradients arrive? Norms at the
# start, on 16 texts, from the first layer up (LoRA: v and q of each). Read each line by itself.

# %%
for method in ("prompt", "prefix", "lora"):
    tuned = tuned_by(method)
    batch = collate(tuned.encoder(splits.train), range(16))
    tuned.model.loss(batch).backward()
    grads = [p.grad for name, p in tuned.model.trainable().items() if "lora_A" not in name]
    if method == "prefix":  # (P, 2 · layers · H); LoRA's A has no gradient while B is zero
        grads = grads[0].chunk(layers, dim=1)
    print(f"{method:6}", *(f"{grad.norm():5.1f}" for grad in grads))
# > prompt  27.0
# > prefix  26.4   1.4   1.1   1.2   2.3   2.4
# > lora    18.1   8.6  32.3  28.6   7.3   2.1   6.2   2.3  30.9  12.4  35.1   9.9

# %% [markdown]
# ## One task, three methods
# Forty steps of eight texts, one seed: no ranking (lesson 5). At first all learn only the format.

# %%
given, rows = {"max_steps": 40, "batch_size": 8, "warmup_ratio": 0.1}, splits.validation
for method, rate in (("prompt", 0.1), ("prefix", 0.03), ("lora", 0.005)):
    tuned = tuned_by(method, learning_rate=rate, **given)
    neo_peft.fit(tuned.model, tuned.encoder(splits.train), tuned.settings)
    found = neo_peft.evaluate(tuned.model, tuned.encoder, tuned.encoder(rows), with_loss=True)
    right = sum(a == row["label"] for a, row in zip(found.predicted, rows)) / len(rows)
    print(f"{method:6} loss {found.loss:.2f}, accuracy {right:.2f}")
print(f"always neutral {sum(row['label'] == 'neutral' for row in rows) / len(rows):.2f}")
# > prompt loss 0.81, accuracy 0.56
# > prefix loss 0.59, accuracy 0.60
# > lora   loss 0.47, accuracy 0.60
# > always neutral 0.60

# %% [markdown]
# ## Exercises
# 1. Attention to a prefix and a text, from that to each alone: o (d,), and lse = log Σ exp(score).
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
