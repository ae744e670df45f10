# %% [markdown]
# # Lesson 10: what was learnt
# You will be able to find what each part of an adapter adds to a score, whether two runs found the
# same directions, and what a model thinks after each layer, with `python -m neo_peft look RUN`, and
# by hand. It follows Hu et al. 2021, sections 7.2 and 7.3. The code is `neo_peft/look/look.py`.

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
task, folder = neo_peft.get_task("ner"), tempfile.TemporaryDirectory()

# %% [markdown]
# ## Two runs
# The same LoRA with two seeds, r = 2 on all linear layers; and what `look` finds in the first run.

# %%
paths = [Path(folder.name, f"seed-{seed}") for seed in (0, 1)]
given = {"task": "ner", "method": "lora", "rank": 2, "target_modules": "all-linear", "threads": 1}
given |= {"learning_rate": 0.005, "train_limit": 240, "epochs": 2, "batch_size": 8}
for seed, path in enumerate(paths):  # of the second run we want only the adapter
    given |= {"eval_limit": 10 if seed else 70, "head_baseline": not seed}
    settings = neo_peft.make_settings(seed=seed, out=str(path), **given)
    run(settings, print_line=lambda line: None)
rows = read_predictions(paths[0], PredictionKind("after"), "test")
right = [[g == p != "O" for g, p in zip(row["tags"], row["predicted"])] for row in rows]
row, at = next((row, hits.index(True)) for row, hits in zip(rows, right) if any(hits))
seen = look(paths[0], settings_in(paths[0]), row=row, against=[paths[1]])

# %% [markdown]
# ## What each part adds
# A run's score is a baseline's, plus what a head on the frozen base adds, plus what LoRA adds. The
# run keeps the predictions of all three. Does it show that LoRA helps? (Intervals: lesson 5.)

# %%
for part, kind in zip(seen["parts"], ("baseline", "head_alone", "after"), strict=True):
    rows = read_predictions(paths[0], PredictionKind(kind), "test")
    by_hand = score(task, rows, [row["predicted"] for row in rows])["f1"]
    print(f"{kind:10} look {part['score']:.3f}, by hand {by_hand:.3f}")
print("LoRA adds {difference:.3f} ({low:.3f} to {high:.3f})".format(**part["added"]))
# > baseline   look 0.249, by hand 0.249
# > head_alone look 0.557, by hand 0.557
# > after      look 0.723, by hand 0.723
# > LoRA adds 0.167 (0.112 to 0.222)

# %% [markdown]
# ## Without a part
# That interval is about the choice of sentences: other seeds are not shown. `look` also removes one
# part at a time; *: its interval excludes 0. By hand: zeros in layer 0's Bs. The head was trained
# with LoRA: with all of LoRA off, it is below a head alone. k = 1: the first direction only.

# %%
tuned, other, without = (load(path, settings_in(path)) for path in (*paths, paths[0]))
for name, weight in without.model.transformer.h[0].named_parameters():
    if "lora_B" in name:
        torch.nn.init.zeros_(weight)
predicted = neo_peft.evaluate(without.model, tuned.encoder, tuned.encoder(rows)).predicted
print(f"without layer 0, by hand: {score(task, rows, predicted)['f1']:.3f}; by look:")
for part in seen["switched_off"][:-1]:  # the last one, k = 2, is all of the adapter
    name = part["name"].split(":")[0].replace("layer ", "h.").removesuffix(" changed weights off")
    print(f"{name} {part['score']:.3f}{'*' * part['certain']}", end="; ")
# > without layer 0, by hand: 0.707; by look:
# > all 0.420*; h.0 0.707; h.1 0.676*; h.2 0.720; h.3 0.734; h.4 0.696; h.5 0.688; k = 1 0.698;

# %% [markdown]
# ## How strong are the directions?
# ΔW = (alpha / r) · BA has at most r singular values above 0. A direction is an input that ΔW looks
# for, and the output that it then writes. k = 1 drops the smaller one of each. Here a v_proj:

# %%
v_projs = [one.model.transformer.h[0].attn.attention.v_proj for one in (tuned, other)]
changes = [v.scaling * (v.lora_B.weight @ v.lora_A.weight).detach() for v in v_projs]  # (out, in)
line = next(x for x in seen["changed_weights"] if x["layer"].endswith("h.0.attn.attention.v_proj"))
U, values, V = torch.linalg.svd(changes[0])  # outputs: columns of U; inputs: rows of V
for value, of_look in zip(values, line["singular_values"]):
    print(f"{'█' * round(30 * float(value / values[0])):30} {value:.2f}, look {of_look:.2f}")
# > ██████████████████████████████ 2.43, look 2.43
# > ████████████████               1.26, look 1.26

# %% [markdown]
# ## Do two seeds find the same directions?
# φ(i, j), for one run's first i directions and the other's first j, is the share of the smaller set
# in the larger: their squared products, summed, over min(i, j); by chance about max(i, j) / H.

# %%
U_2, _, V_2 = torch.linalg.svd(changes[1])
pair = next(pair for pair in seen["agreement"][0]["layers"] if pair["layer"] == line["layer"])
for side, products in (("inputs", V @ V_2.T), ("outputs", U.T @ U_2)):
    for i in (1, 2):
        by_hand, of_look = products[:i, :i].square().sum() / i, pair[side][i - 1][i - 1]
        print(f"φ({i}, {i}) of {side:7} {by_hand:.3f}, look {of_look:.3f}; chance {i / len(V):.3f}")
# > φ(1, 1) of inputs  0.009, look 0.009; chance 0.004
# > φ(2, 2) of inputs  0.010, look 0.010; chance 0.008
# > φ(1, 1) of outputs 0.000, look 0.000; chance 0.004
# > φ(2, 2) of outputs 0.175, look 0.175; chance 0.008

# %% [markdown]
# ## Layer by layer
# The last norm and the head can read any layer's output, as if it were the last: the "logit lens".
# A middle layer need not be readable so. "untuned": the base without LoRA, read by the same head.

# %%
states, model, word, tag = [], tuned.model, row["tokens"][at], row["tags"][at]  # rightly tagged
shown = next(t for t in seen["text"]["targets"] if (t["word"], t["label"]) == (word, tag))
for block in model.transformer.h[1:]:  # the input of a layer is the output of the one before
    block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
batch = collate(tuned.encoder([row]), [0])
with torch.no_grad():
    last = model(batch)  # at the words' positions only
    states = [model.transformer.ln_f(x[batch.target_indices]) for x in states] + [last]
    p = model.head(torch.stack(states)).softmax(-1)[:, at, task.labels.index(tag)]
for name, line in (("by hand", p), ("look", shown["after"][1:]), ("untuned", shown["before"][1:])):
    print(f"{name:8}", *(f"{value:.2f}" for value in line), word, tag)
# > by hand  0.10 0.13 0.12 0.12 0.13 0.52 Interleukin-21 B-protein
# > look     0.10 0.13 0.12 0.12 0.13 0.52 Interleukin-21 B-protein
# > untuned  0.11 0.13 0.13 0.12 0.13 0.24 Interleukin-21 B-protein

# %% [markdown]
# ## Exercises
# 1. φ(i, j) of two changes of a weight, by their output directions (the columns of U).
# 2. For each row of a prompt (P, H) the index of the row of wte (V, H) with the largest cosine.


# %%
def agreement(change, other, i, j):
    return ...


def nearest(prompt, wte):
    return ...


check(10, agreement)
check(10, nearest)
# > agreement: still open: replace the `...` and run it again
# > nearest: still open: replace the `...` and run it again
