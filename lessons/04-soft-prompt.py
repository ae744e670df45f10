# %% [markdown]
# # Lesson 4: a soft prompt by hand
# You will be able to put trained embeddings in front of a text, give both the right positions,
# compute the prompt's keys and values once for all texts, and choose how a prompt starts.
# It follows Lester et al. 2021, sections 2 and 3.2. The code is `neo_peft/prompt.py`.
# ![the prompt and the text with positions, and the masks](../docs/drawings/prompt.svg)

# %%
import dataclasses
import itertools
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
# better words. Or we could train these P · H numbers themselves, and nothing else: a soft prompt.

# %%
prompt = trunk.embed(torch.tensor(base.tokenizer(task.instruction)["input_ids"]))  # (P, H)
soft = neo_peft.SoftPrompt(prompt)  # a copy of these numbers, as a parameter
P, T = len(soft), len(ids)
x = torch.cat([prompt, trunk.embed(ids)])  # (P + T, H)
hidden = trunk(x, Packing.of_texts(torch.tensor([P + T])))
print(f"P = {P}, T = {T}, x {tuple(x.shape)}, trained {soft.embeddings.numel():,}")
# > P = 15, T = 10, x (25, 256), trained 3,840

# %% [markdown]
# ## Positions
# GPT-Neo adds to each embedding another one for its position. The prompt has 0 … P - 1, and *each*
# text of a batch starts at P. Here P is 4 and the texts have 5 and 3 tokens:

# %%
print(*Packing.of_texts(torch.tensor([5, 3]), start=4, prompt=True).positions.tolist())
# > 0 1 2 3 4 5 6 7 8 4 5 6

# %% [markdown]
# ## Keys and values do not depend on the text
# The batch above has the prompt only once. Why is that enough? A token attends to itself and to
# earlier ones, and the text comes later. So in every layer the prompt's hidden states, keys and
# values are the same, whatever text follows. We reverse the text. What changes?


# %%
def keys(text):  # (layers, heads, P + T, head_dim)
    packing = Packing.of_texts(torch.tensor([P + T]))
    _, pairs = trunk.layers(torch.cat([prompt, text]), packing, past=None)
    return torch.stack([keys[0] for keys, values in pairs])


change = (keys(trunk.embed(ids)) - keys(trunk.embed(ids.flip(0)))).abs().amax((0, 1, 3))  # (P + T,)
print(f"largest change of a key: prompt {change[:P].max():.4f}, text {change[P:].max():.1f}")
# > largest change of a key: prompt 0.0000, text 3.2

# %% [markdown]
# So we compute them once, and every text attends to them. B texts cost P + B · T tokens, not
# B · (P + T). In evaluation once is enough for all batches. The result is the same:

# %%
past = soft.past(trunk)  # keys and values of all layers
later = trunk(trunk.embed(ids), Packing.of_texts(torch.tensor([T]), start=P), past)
print("keys of a layer", tuple(past.keys[0].shape), end=", ")
print("equal hidden states of the text:", torch.allclose(later, hidden[P:], atol=1e-4))
# > keys of a layer (1, 8, 15, 32), equal hidden states of the text: True

# %% [markdown]
# ## Three starts
# Where shall training start? At the embeddings of a text (the instruction), at those of random
# tokens, or at random numbers with the spread of the vocabulary? Lester et al. compare starts in
# section 3.2: the label words were best, but in their largest model the start made no difference.
# The learning rate is high. Which start learns fastest, by the loss of the tokens after `Label :`?

# %%
print("mean loss of steps", *(f"{i}-{i + 3}" for i in range(1, 24, 4)))
given = {"method": "prompt", "learning_rate": 0.1, "warmup_ratio": 0.1, "prompt_length": 20}
for start in ("text", "vocab", "random"):
    settings = neo_peft.make_settings(
        task="sentiment", prompt_init=start, **given, max_steps=24, batch_size=8, threads=1
    )
    tuned = neo_peft.load_untuned(settings, with_method=True, base=base)
    state = loop.make_state(tuned.model, settings)
    events = loop.steps(tuned.model, tuned.encoder(splits.train), settings, state, no_progress)
    losses = torch.tensor([step.loss for step in itertools.islice(events, 24)])
    print(f"{start:7}", *(f"{loss:6.1f}" for loss in losses.view(-1, 4).mean(1)))
# > mean loss of steps 1-4 5-8 9-12 13-16 17-20 21-24
# > text       8.6    4.0    1.9    1.4    0.9    0.9
# > vocab      9.4    5.0    2.8    1.4    0.9    0.9
# > random     9.6    4.3    2.1    1.4    0.9    0.9

# %% [markdown]
# One run of each is little evidence: another seed can change the order (lesson 5).
# ## A wrong position
# The last prompt was trained with texts that start at P. What if a program lets them start
# elsewhere? We move the text, and keep the prompt's keys and values and all the masks.

# %%
batch = collate(tuned.encoder(splits.validation), range(60))
past, P = tuned.model.prefix(), len(tuned.model.prompt)
for start in (P, P + 1, P + 50, 0):
    moved = dataclasses.replace(past, positions=past.positions + start - P)  # for the masks
    packing = Packing.of_texts(batch.lengths, start)
    hidden = trunk(trunk.embed(batch.ids), packing, moved, batch.target_indices)
    loss = tuned.model.loss_of(hidden, batch.targets) / len(batch.targets)
    print(f"text at {start:2}: loss {loss:.2f}")
# > text at 20: loss 1.02
# > text at 21: loss 1.02
# > text at 70: loss 1.35
# > text at  0: loss 5.47

# %% [markdown]
# No error is raised. Padding on the left moves the positions too, unless a program corrects them.
# ## Exercises
# 1. The mask (T, P + T) of a local layer (lesson 1), True where a token of the text (row) attends.
# 2. The positions of a batch's tokens, text after text, without the prompt: a list.
# 3. The start from a text: P embeddings (P, H). ids (a tensor) are repeated or cut to P tokens.


# %%
def prompt_mask(P, T, window):
    return ...


def positions(P, lengths):
    return ...


def start_from_text(wte, ids, P):
    return ...


check(4, prompt_mask)
check(4, positions)
check(4, start_from_text)
# > prompt_mask: still open: replace the `...` and run it again
# > positions: still open: replace the `...` and run it again
# > start_from_text: still open: replace the `...` and run it again
