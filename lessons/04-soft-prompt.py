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
# text of a batch starts at P. Here P is 4 (`start`) and the texts have 5 and 3 tokens:

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
# > largest change of a key: prompt 0.0000, text 3.2

# %% [markdown]
# So we compute them once, and every text attends to them. B texts cost P + B · T tokens, not
# B · (P + T). In evaluation once is enough for all batches. Values and gradients are the same:

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
# label words, or at random numbers with the spread of wte? In section 3.2 of Lester et al. label
# words were best, but in their largest model the start made no difference. Which learns fastest,
# by the loss after `Label :`? The rate is high; the first row has a LoRA's rate.

# %%
print("mean loss of steps        ", *(f"{i}-{i + 3}".rjust(5) for i in range(1, 20, 4)))
given = {"task": "sentiment", "method": "prompt", "warmup_ratio": 0.1, "prompt_length": 20}
given |= {"max_steps": 20, "batch_size": 8, "threads": 1}
starts = [("text", 0.005), ("vocab", 0.1), ("labels", 0.1), ("random", 0.1), ("text", 0.1)]
for start, rate in starts:
    settings = neo_peft.make_settings(prompt_init=start, learning_rate=rate, **given)
    tuned = neo_peft.load_untuned(settings, with_method=True, base=base)
    examples, state = tuned.encoder(splits.train), neo_peft.loop.make_state(tuned.model, settings)
    events = neo_peft.loop.steps(tuned.model, examples, settings, state, no_progress)
    losses = torch.tensor([step.loss for _, step in zip(range(20), events)])
    print(f"{start:6}, learning rate {rate:5}", *(f"{x:5.2f}" for x in losses.view(-1, 4).mean(1)))
counts = torch.tensor([sum(row["label"] == x for row in splits.train) for x in task.labels])
guess = -(counts * (counts / counts.sum()).log()).sum() / len(examples.targets)
print(f"guessing each label by its share in training: {guess:.2f}")
# > mean loss of steps           1-4   5-8  9-12 13-16 17-20
# > text  , learning rate 0.005  9.59  8.29  7.35  7.01  6.52
# > vocab , learning rate   0.1  9.31  5.11  2.68  1.44  0.93
# > labels, learning rate   0.1  9.39  4.90  2.69  1.70  1.13
# > random, learning rate   0.1  9.44  4.23  2.11  1.51  1.00
# > text  , learning rate   0.1  8.46  4.24  2.06  1.57  1.04
# > guessing each label by its share in training: 0.47

# %% [markdown]
# Guessing is still better: so few steps teach that a label and the end follow, not yet which label.
# And one run of each start is little evidence: another seed can change the order (lesson 5).
# ## A wrong position
# The last prompt was trained with texts that start at P = 20. What if a program lets them start
# elsewhere? We exchange their position embeddings, and leave the prompt and the masks unchanged.

# %%
batch = collate(tuned.encoder(splits.validation), range(24))
past, P = tuned.model.prefix(), len(tuned.model.prompt)
packing, shown = Packing.of_texts(batch.lengths, P), []
right, wpe = packing.positions, trunk.wpe.weight
wrong = {start: right - P + start for start in (P, P + 1, P + 50, 8, 4, 0)}
wrong["its first token at 0"] = torch.where(right == P, 0, right)
for name, positions in wrong.items():
    x = trunk.embed(batch.ids) - wpe[right] + wpe[positions]  # the trunk adds wpe[right]
    hidden = trunk(x, packing, past, batch.target_indices)
    shown.append(f"{name}: {tuned.model.loss_of(hidden, batch.targets) / len(batch.targets):.2f}")
print("text at", ", ".join(shown))
# > text at 20: 0.91, 21: 0.89, 70: 1.03, 8: 4.01, 4: 5.00, 0: 5.58, its first token at 0: 1.01

# %% [markdown]
# Lower is worse, little by little; the first token alone matters little. Higher is mild. What is
# different? In pretraining a token at position p had p tokens before it. Moved down, it has more.
# No error is raised. Padding on the left moves the positions too, unless a program corrects them.
# ## Exercises
# 1. The mask (T, P + T) of a local layer (lesson 1), True where a token of the text (row) attends.
# 2. The positions of a batch's tokens, text after text, without the prompt: a list.


# %%
def prompt_mask(P, T, window):
    return ...


def positions(P, lengths):
    return ...


check(4, prompt_mask)
check(4, positions)
# > prompt_mask: still open: replace the `...` and run it again
# > positions: still open: replace the `...` and run it again
