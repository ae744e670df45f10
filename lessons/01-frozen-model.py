# %% [markdown]
# # Lesson 1: a frozen GPT-Neo and one sentence
# You will be able to explain what happens between a sentence and the next word: the tokens, the
# shape of each step, which tokens a token attends to, and what GPT-Neo's attention leaves out.
# LoRA and soft prompts add to this model and leave its weights frozen, so we look at it first.
# It follows Black et al. 2021 (GPT-Neo) and, for local layers, Brown et al. 2020, section 2.1
# (GPT-3). The code is `neo_peft/gptneo.py`.

# %%
import copy
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

from neo_peft import load_base
from neo_peft.gptneo import causal_mask
from neo_peft.packing import Packing

torch.set_num_threads(1)
base = load_base("neo-mini")  # the bundled model
trunk, config = base.trunk, base.trunk.config
print(f"{sum(w.numel() for w in trunk.parameters()):,} parameters")
print("trained:", sum(w.numel() for w in trunk.parameters() if w.requires_grad))
print("hidden size H:", config.hidden_size, " layers:", *config.attention_layers)
# > 6,897,152 parameters
# > trained: 0
# > hidden size H: 256  layers: global local global local global local

# %% [markdown]
# ## Tokens
# The sentence has eight words. How many tokens has it? Words are split at punctuation and digits,
# and rare words into parts.
# A token that starts a word includes the space in front of it, printed here as `·`.

# %%
ids = torch.tensor(base.tokenizer("The IL-2 gene is active in human T")["input_ids"])
tokens = [base.tokenizer.decode(i).replace(" ", "·") for i in ids.tolist()]
print(len(ids), "tokens:", *tokens)
# > 10 tokens: The ·IL - 2 ·gene ·is ·active ·in ·human ·T

# %% [markdown]
# ## Shapes
# N tokens become N embeddings of H numbers. Each layer maps N hidden states to N new ones. The
# head that predicts has no weights of its own: it multiplies by the token embeddings once more.

# %%
packing = Packing.of_texts(torch.tensor([len(ids)]))  # a batch of one text, and its positions
x = trunk.embed(ids)
hidden = trunk(x, packing)  # adds position embeddings, then all layers and a layer norm
logits = hidden @ trunk.wte.weight.T
print("embeddings", *x.shape, "| hidden states", *hidden.shape, "| logits", *logits.shape)
# > embeddings 10 256 | hidden states 10 256 | logits 10 8192

# %% [markdown]
# ## Predictions
# The logits at a token are a prediction of the next token. What can follow the `T`? A softmax over
# the vocabulary gives each token's probability.


# %%
def best_three(logits):
    top = logits.softmax(-1).topk(3)
    words = [base.tokenizer.decode(i).replace(" ", "·") for i in top.indices.tolist()]
    return "  ".join(f"{word} {p:.3f}" for word, p in zip(words, top.values.tolist()))


for i in (-4, -3, -2, -1):
    print(f"after {tokens[i]:8}", best_three(logits[i]))
# > after ·active  ·in 0.649  ·and 0.053  ·at 0.032
# > after ·in      ·the 0.308  ·response 0.041  ·a 0.024
# > after ·human   ·monocytes 0.066  ·T 0.058  ·cells 0.049
# > after ·T       ·cells 0.481  ·cell 0.120  ·lymphocytes 0.095

# %% [markdown]
# ## Why the attention is unscaled
# A token's query q is multiplied by the keys k of the tokens that it attends to. The usual score is
# q·k / √d, with d numbers in each head, because the dot products of *random* vectors grow with √d
# (Vaswani et al. 2017, section 3.2.1). GPT-Neo leaves the division out. Is it a weaker model, then?
# No: q = W_q x, so dividing W_q by √d gives the same scores. Mesh TensorFlow, in which GPT-Neo was
# trained, does this at the start: the initial W_q is √d times smaller than W_k. The trap: a program
# that divides the scores of these *trained* weights raises no error, but it is another model.

# %%
divided = copy.deepcopy(trunk)
for block in divided.h:
    block.attn.attention.q_proj.weight /= (config.hidden_size / config.num_heads) ** 0.5
print("as trained:   ", best_three(logits[-1]))
print("divided by √d:", best_three((divided(x, packing) @ trunk.wte.weight.T)[-1]))
# > as trained:    ·cells 0.481  ·cell 0.120  ·lymphocytes 0.095
# > divided by √d: ·cells 0.209  ·cell 0.112  ·- 0.060

# %% [markdown]
# ## What a local layer sees
# A row of the picture is a token, and `#` marks the tokens that it attends to: itself and earlier
# ones. In a local layer they are only the last `window_size` tokens, here three, itself included.
# So its cost can grow with the length of a text, not with its square.

# %%
positions = torch.arange(6)[None]  # (1, T)
masks = [causal_mask(positions, positions, window)[0, 0].tolist() for window in (None, 3)]
print("global           local, window 3")
for rows in zip(*masks):
    print("    ".join(" ".join(".#"[seen] for seen in row) for row in rows))
# > global           local, window 3
# > # . . . . .    # . . . . .
# > # # . . . .    # # . . . .
# > # # # . . .    # # # . . .
# > # # # # . .    . # # # . .
# > # # # # # .    . . # # # .
# > # # # # # #    . . . # # #

# %% [markdown]
# Is it true of the model? We change the first token of a long text. At how many tokens does the
# output of a single layer change?

# %%
a = trunk.embed(ids.repeat(20))  # (N, H), longer than the window
b = torch.cat([trunk.embed(ids[1:2]), a[1:]])  # another first token
long = Packing.of_texts(torch.tensor([len(a)]))
for kind in ("global", "local"):
    block = trunk.h[config.attention_layers.index(kind)]
    mask = causal_mask(long.positions[None], long.positions[None], block.window_size)
    before, after = (block(text, long, None, [mask], None)[0] for text in (a, b))
    changed = (before != after).any(1).sum()
    print(f"{kind}: window {block.window_size}, {changed} of {len(a)} tokens change")
# > global: window None, 200 of 200 tokens change
# > local: window 64, 64 of 200 tokens change

# %% [markdown]
# ## Exercises
# Replace each `...` and run the lesson again.
# 1. An attention head as GPT-Neo has it: causal, unscaled. q, k, v and the result are (T, d).
# 2. The mask (T, T) of a local layer, True where it attends, without `causal_mask`.


# %%
def head(q, k, v):
    return ...


def local_mask(T, window):
    return ...


check(1, head)
check(1, local_mask)
# > head: still open: replace the `...` and run it again
# > local_mask: still open: replace the `...` and run it again
