# %% [markdown]
# # Lesson 10: what was learnt
# You will be able to find what each part of an adapter adds to a score, how many directions it has,
# whether two runs found the same ones, and what a model thinks after each layer. It follows Hu et
# al. 2021, sections 7.2 and 7.3. The command is `python -m neo_peft look RUN`, the code is
# `neo_peft/look/look.py`. Here we compute its numbers by hand.

# %%
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft.decoding import score
from neo_peft.encoding import collate
from neo_peft.look.look import look
from neo_peft.runs.loading import load, settings_in
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.runs.training import run

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## Two runs
# The same LoRA, r = 4, with two seeds, on a part of the sample; and what `look` finds in the first.

# %%
paths = [Path(folder.name, f"seed-{seed}") for seed in (0, 1)]
given = {"rank": 4, "train_limit": 160, "eval_limit": 60, "epochs": 4, "batch_size": 4}
given |= {"task": "ner", "method": "lora", "threads": 1, "head_baseline": True}
for seed, path in enumerate(paths):
    settings = neo_peft.make_settings(seed=seed, out=str(path), **given)
    run(settings, print_line=lambda line: None)
seen = look(paths[0], settings_in(paths[0]), against=[paths[1]])

# %% [markdown]
# ## What each part adds
# A run's score is a baseline's, plus what a head on the frozen base adds, plus what LoRA adds. The
# run has kept the predictions of all three, so we can score them again.

# %%
task = neo_peft.get_task("ner")
for step, kind in zip(seen["parts"], ("baseline", "head_alone", "after"), strict=True):
    rows = read_predictions(paths[0], PredictionKind(kind), "test")
    by_hand = score(task, rows, [row["predicted"] for row in rows])["f1"]
    print(f"{kind:10} look {step['score']:.3f}, by hand {by_hand:.3f}")
# > baseline   look 0.164, by hand 0.164
# > head_alone look 0.583, by hand 0.583
# > after      look 0.613, by hand 0.613

# %% [markdown]
# ## Without a layer
# Does the first layer need its adapter? With zeros in its B's, ΔW is zero. Such losses do not add
# up to what LoRA adds, because the head was trained together with all layers.

# %%
tuned, other, without = (load(path, settings_in(path)) for path in (*paths, paths[0]))
attention = without.model.transformer.h[0].attn.attention
for projection in (attention.q_proj, attention.v_proj):
    torch.nn.init.zeros_(projection.lora_B.weight)
predicted = neo_peft.evaluate(without.model, tuned.encoder, tuned.encoder(rows)).predicted
of_look = next(line["score"] for line in seen["switched_off"] if line["group"] == "layer")
print(f"look {of_look:.3f}, by hand {score(task, rows, predicted)['f1']:.3f}")
# > look 0.547, by hand 0.547

# %% [markdown]
# ## How many directions?
# ΔW = (alpha / r) · BA has at most r singular values that are not zero. A direction is an input
# that ΔW looks for, and what it writes where it finds it. How many does the run use? q_proj of the
# last layer:


# %%
def change(model):  # ΔW (out, in)
    q_proj = model.transformer.h[-1].attn.attention.q_proj
    return (q_proj.scaling * q_proj.lora_B.weight @ q_proj.lora_A.weight).detach()


name = f"h.{len(tuned.model.transformer.h) - 1}.attn.attention.q_proj"
line = next(line for line in seen["changed_weights"] if line["layer"].endswith(name))
U, s, Vh = torch.linalg.svd(change(tuned.model))
for value, of_look in zip(s, line["singular_values"]):
    print(f"{'█' * round(30 * float(value / s[0])):30} {value:.2f}, look {of_look:.2f}")
# > ██████████████████████████████ 7.99, look 7.99
# > █████                          1.20, look 1.20
# > █                              0.17, look 0.17
# > █                              0.16, look 0.16

# %% [markdown]
# ## Do two seeds find the same directions?
# The share of the first i directions of one run that lies in the first j of the other: φ(i, j) =
# |Uᵢᵀ Uⱼ|² / min(i, j), by Hu et al. From 0 to 1; for random ones about max(i, j) / H.

# %%
_, _, Vh_other = torch.linalg.svd(change(other.model))
pair = next(pair for pair in seen["agreement"][0]["layers"] if pair["layer"] == line["layer"])
for i, j in ((1, 1), (4, 4)):
    phi = (Vh[:i] @ Vh_other[:j].T).square().sum() / min(i, j)
    print(f"φ({i}, {j}) {phi:.2f}, look {pair['inputs'][i - 1][j - 1]:.2f}; random {j / 256:.2f}")
# > φ(1, 1) 0.20, look 0.20; random 0.00
# > φ(4, 4) 0.07, look 0.07; random 0.02

# %% [markdown]
# ## Layer by layer
# The last norm and the head can read any layer's output, as if it were the last. So we see where a
# word's tag is decided. (A middle layer need not be readable in this way.)

# %%
text, states = seen["text"], []
model, target = tuned.model, text["targets"][0]  # the first word of an entity
row = text["text"] | {"tags": text["gold"]}
batch = collate(tuned.encoder([row]), [0])
for block in model.transformer.h[1:]:  # the input of a layer is the output of the one before
    block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
with torch.no_grad():
    last = model(batch)  # at the words only
    states = [model.transformer.ln_f(x[batch.target_indices]) for x in states] + [last]
    logits = model.head(torch.stack(states))  # (layers, words, K)
word, tag = row["tokens"].index(target["word"]), task.labels.index(target["label"])
print("by hand", *(f"{p:.2f}" for p in logits.softmax(-1)[:, word, tag]))
print("look   ", *(f"{p:.2f}" for p in target["after"][1:]), target["word"], target["label"])
# > by hand 0.31 0.35 0.42 0.83
# > look    0.31 0.35 0.42 0.83 Costimulation B-protein

# %% [markdown]
# ## Exercises
# 1. φ(i, j) of two changes of a weight, by their output directions (the columns of U).
# 2. The words of a prompt: for each of its embeddings (P, H) the index of the most similar row of
#    `wte` (V, H), by cosine.


# %%
def agreement(change, other, i, j):
    return ...


def nearest(prompt, wte):
    return ...


check(10, agreement)
check(10, nearest)
# > agreement: still open: replace the `...` and run it again
# > nearest: still open: replace the `...` and run it again
