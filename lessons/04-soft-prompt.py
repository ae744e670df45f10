# %% [markdown]
# # Lesson 4: a soft prompt by hand
# You will be able to put trained embeddings in front of a text, give both the right positions,
# compute the prompt's keys and values once for all texts, and choose how a prompt starts.
# It follows Lester et al. 2021, sections 2 and 3.2. The code is `neo_peft/prompt.py`.
# ![the prompt and the text with positions, and the masks](../docs/drawings/prompt.svg)

# %%
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft import loop
from neo_peft.encoding import collate
from neo_peft.packing import Packing
from neo_peft.progress import no_progress

torch.set_num_threads(1)
base, task = neo_peft.load_base("neo-mini"), neo_peft.get_task("sentiment")
trunk, splits = base.trunk, neo_peft.load_splits(task, "sample")
ids = torch.tensor(base.tokenizer("Sentence : Sales rose . Label :")["input_ids"])

# %% [markdown]
# ## Embeddings in front
# An instruction is P tokens, so P embeddings in front of the text's T embeddings. We could look for
# better words. Or we could train these P · H numbers themselves (and a head if the task has one).

# %%
prompt = trunk.embed(torch.tensor(base.tokenizer(task.instruction)["input_ids"]))  # (P, H)
soft = neo_peft.SoftPrompt(prompt)  # a copy of these numbers, as a parameter
P, T = len(soft), len(ids)
x = torch.cat([soft.embeddings, trunk.embed(ids)])  # (P + T, H)
hidden = trunk(x, Packing.of_texts(torch.tensor([P + T])))
print(f"P = {P}, T = {T}, x {tuple(x.shape)}, trained {soft.embeddings.numel():,}")
# > P = 15, T = 10, x (25, 256), trained 3,840

# %% [markdown]
# ## Positions
# GPT-Neo adds to each embedding another one for its position. The prompt has 0 … P - 1, and *each*
# text of a batch starts at P. The positions of a prompt of 4 and texts of 5 and 3 tokens:

# %%
print(*Packing.of_texts(torch.tensor([5, 3]), start=4, prompt=True).positions.tolist())
# > 0 1 2 3 4 5 6 7 8 4 5 6

# %% [markdown]
# ## Keys and values do not depend on the text
# The batch above has the prompt only once. Why is that enough? A token attends to itself and to
# earlier ones, and the text comes later. (In the paper's T5 the prompt sees the text.) So in every
# layer the prompt's keys and values are the same for all texts. We reverse the text. What changes?


# %%
def keys(text):  # (layers, heads, P + T, head_dim)
    packing = Packing.of_texts(torch.tensor([P + T]))
    _, pairs = trunk.layers(torch.cat([prompt, text]), packing, past=None)
    return torch.stack([pair[0][0] for pair in pairs])  # a pair: a layer's keys and values


change = (keys(trunk.embed(ids)) - keys(trunk.embed(ids.flip(0)))).abs().amax((0, 1, 3))  # (P + T,)
print(f"largest change of a key: prompt {change[:P].max():.4f}, text {change[P:].max():.1f}")
# > largest change of a key: prompt 0.0000, text 3.1

# %% [markdown]
# So we compute them once: the linear layers see P + B · T tokens, not B · (P + T). In evaluation
# once is enough for all batches. Values and gradients are the same, but for rounding:

# %%
past = soft.past(trunk)  # of all layers, each (1, heads, P, head_dim)
later = trunk(trunk.embed(ids), Packing.of_texts(torch.tensor([T]), start=P), past)
grads = [torch.autograd.grad(h.square().sum(), soft.embeddings)[0] for h in (hidden[P:], later)]
equal = torch.allclose(later, hidden[P:], atol=1e-4), torch.allclose(*grads, rtol=1e-3, atol=1e-3)
print("equal hidden states of the text, equal gradients of the prompt:", *equal)
# > equal hidden states of the text, equal gradients of the prompt: True True

# %% [markdown]
# ## Four starts
# Where shall training start? At embeddings of a text (the instruction), of random tokens, of the
# label words, or at random numbers with wte's standard deviation? In section 3.2 of Lester et al.
# label words were best; in their largest model all were equal. The loss is the mean of two tokens:
# label and end token; a guess knows the last. The first row has LoRA's rate, too low for a prompt.

# %%
print("mean loss of steps        ", *(f"{i}-{i + 3}".rjust(5) for i in range(1, 20, 4)))
given = {"task": "sentiment", "method": "prompt", "warmup_ratio": 0.1, "prompt_length": P}
given |= {"max_steps": 20, "batch_size": 8, "threads": 1}
starts = [("text", 0.005), ("vocab", 0.1), ("labels", 0.1), ("random", 0.1), ("text", 0.1)]
for start, rate in starts:
    settings = neo_peft.make_settings(prompt_init=start, learning_rate=rate, **given)
    tuned = neo_peft.load_untuned(settings, with_method=True, base=base)
    examples, state = tuned.encoder(splits.train), loop.make_state(tuned.model, settings)
    events = loop.steps(tuned.model, examples, settings, state, no_progress)
    losses = torch.tensor([step.loss for _, step in zip(range(20), events)])
    print(f"{start:6}, learning rate {rate:5}", *(f"{x:5.2f}" for x in losses.view(-1, 4).mean(1)))
shares = torch.tensor([sum(row["label"] == x for row in splits.train) for x in task.labels])
shares = shares / shares.sum()
print(f"guessing by the labels' shares in training: {-(shares * shares.log()).sum() / 2:.2f}")
# > mean loss of steps           1-4   5-8  9-12 13-16 17-20
# > text  , learning rate 0.005  8.52  6.74  5.55  5.17  4.92
# > vocab , learning rate   0.1  8.75  3.22  1.52  0.93  0.66
# > labels, learning rate   0.1  7.76  3.22  1.54  1.18  0.79
# > random, learning rate   0.1  8.02  3.01  1.45  1.11  0.71
# > text  , learning rate   0.1  7.24  3.61  1.99  1.12  0.72
# > guessing by the labels' shares in training: 0.47

# %% [markdown]
# One seed, twenty steps: no ranking (lesson 5). Compare the last column with guessing: only below
# it a prompt knows more than the labels' shares. 0.1 is fast; longer runs want less (lesson 8).
# ## A wrong position
# The last prompt was trained at position 0, with texts that start at P. What if a program gives the
# texts other positions, or the prompt too? We exchange position embeddings; the masks stay. A pair
# is where the prompt starts, and where the texts start.

# %%
batch = collate(tuned.encoder(splits.validation), range(24))
packing, wpe = Packing.of_texts(batch.lengths, P), trunk.wpe.weight
right = packing.positions  # of all tokens
pairs = (0, P), (0, 60), (0, 150), (0, 8), (0, 0), (70, 20), (70, 70 + P)
for prompt_at, text_at in pairs:
    moved = tuned.model.prompt.embeddings + wpe[prompt_at : prompt_at + P] - wpe[:P]
    x = trunk.embed(batch.ids) + wpe[right - P + text_at] - wpe[right]  # the trunk adds wpe[right]
    hidden = trunk(x, packing, trunk.past_of(moved), batch.target_indices)
    loss = tuned.model.loss_of(hidden, batch.targets) / len(batch.targets)
    print(f"{prompt_at}, {text_at}: {loss:.2f}", end="; ")
# > 0, 15: 0.81; 0, 60: 1.03; 0, 150: 2.74; 0, 8: 1.60; 0, 0: 4.19; 70, 20: 4.97; 70, 85: 1.64;

# %% [markdown]
# Texts that start earlier, or far too late, are predicted badly; no error is raised. If prompt and
# text move together (the last pair), less is lost than with the prompt behind the text (70, 20).
# ## Exercises
# 1. The mask (T, P + T) of a local layer (lesson 1), True where a token of the text (row) attends.
# 2. The positions of the texts' tokens behind a prompt of P, text after text, as a list.


# %%
def prompt_mask(P, T, window):
    return ...


def positions(P, lengths):
    return ...


check(4, prompt_mask)
check(4, positions)
# > prompt_mask: still open: replace the `...` and run it again
# > positions: still open: replace the `...` and run it again
