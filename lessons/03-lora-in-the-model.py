# %% [markdown]
# # Lesson 3: LoRA in the model
# You will be able to choose where LoRA goes in GPT-Neo, count what it trains, measure what it adds
# to a trained head, and merge it or hand it to peft. Lesson 2 has the arithmetic of one layer.
# It follows Hu et al. 2021, sections 4.1, 4.2 and 7.1. The code is `neo_peft/lora.py`.
# ![x goes through the frozen W, and through A and B, which are trained](../docs/drawings/lora.svg)

# %%
import copy
import sys
import tempfile

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check
from safetensors.torch import load_file

import neo_peft
from neo_peft.decoding import score
from neo_peft.lora import add_lora, lora_layers, merge_lora
from neo_peft.packing import Packing

torch.set_num_threads(1)
torch.manual_seed(0)
base = neo_peft.load_base("neo-mini")
ids = torch.tensor(base.tokenizer("The IL-2 gene is active in T cells")["input_ids"])
packing = Packing.of_texts(torch.tensor([len(ids)]))  # one text, and its positions (lesson 1)
before = base.trunk(x := base.trunk.embed(ids), packing)  # the hidden states of the untuned model

# %% [markdown]
# ## Where, and how much
# A block of GPT-Neo has six linear layers: q, k, v and out in attention, c_fc and c_proj in the
# MLP. Hu et al. adapt attention only (section 4.2); q and v together did well (section 7.1). A has
# r · in numbers, B out · r; for q and v both are H. Every B is zero: the model is still the same.

# %%
trunk, r, H = copy.deepcopy(base.trunk), 8, base.trunk.config.hidden_size
add_lora(trunk, ["q_proj", "v_proj"], rank=r, alpha=16)  # freezes everything else
trained = sum(w.numel() for w in trunk.parameters() if w.requires_grad)
by_hand = trunk.config.num_layers * 2 * r * (H + H)
print(f"trained: {trained:,}, by hand {by_hand:,}, {trained / base.parameters:.2%} of the model")
print("bit for bit equal at the start:", torch.equal(trunk(x, packing), before))
# > trained: 49,152, by hand 49,152, 0.71% of the model
# > bit for bit equal at the start: True

# %% [markdown]
# ## First the head alone, then LoRA
# The task: give each word a tag, such as B-protein, by a linear head on the hidden states. The head
# starts at random, so every method trains it too. How much of the score (F1: a mean of precision
# and recall, lesson 5) is due to LoRA? We train the head alone, and with LoRA in all six layers.


# %%
def f1_on_test(model):
    predicted = neo_peft.evaluate(model, tuned.encoder, tuned.encoder(splits.test)).predicted
    return score(task, splits.test, predicted)["f1"]


splits = neo_peft.load_splits(task := neo_peft.get_task("ner"), "sample")
for seed in range(3):
    for method, rate in (("head", 0.02), ("lora", 0.005)):
        given = {"task": "ner", "method": method, "learning_rate": rate, "seed": seed, "epochs": 1}
        given |= {"target_modules": "all-linear"} if method == "lora" else {}
        settings = neo_peft.make_settings(batch_size=4, threads=1, **given)
        tuned = neo_peft.load_untuned(settings, with_method=True)  # LoRA: r = 8, alpha = 16
        neo_peft.fit(tuned.model, tuned.encoder(splits.train[::3]), settings)
        print(f"{method} {(f1 := f1_on_test(tuned.model)):.2f}", end="; ")
# > head 0.47; lora 0.55; head 0.52; lora 0.58; head 0.50; lora 0.55;

# %% [markdown]
# LoRA adds the difference. Three seeds, one epoch, a third of the data. (Is it chance? See
# lesson 5.) README compares both after ten epochs on all data, with LoRA on q and v only.
# ## Why alpha / r
# alpha is a constant that you choose (peft's default: 8). It acts roughly like the learning rate:
# Hu et al. do not tune it (section 4.1). Why divide it by r? B A x is a sum of r terms, and Adam's
# first step moves each number of B by the learning rate. So B A x grows with r (left, factor 1).
# With alpha / r it hardly does (right): one learning rate then serves all ranks.

# %%
for rank in (2, 8, 32):
    for alpha in (rank, 16):
        add_lora(model := copy.deepcopy(base.trunk), rank=rank, alpha=alpha)
        logits = model(x, packing) @ model.wte.weight.T
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()  # of the next tokens
        torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=3e-4).step()
        moved = f"factor {alpha / rank:3}: moved {(model(x, packing) - before).norm():.2f}"
        print(f"r {rank:2}, alpha {alpha:2}, {moved}", end="\n" if alpha == 16 else "; ")
# > r  2, alpha  2, factor 1.0: moved 0.02; r  2, alpha 16, factor 8.0: moved 0.21
# > r  8, alpha  8, factor 1.0: moved 0.10; r  8, alpha 16, factor 2.0: moved 0.24
# > r 32, alpha 32, factor 1.0: moved 0.47; r 32, alpha 16, factor 0.5: moved 0.26

# %% [markdown]
# What if a program loads a trained LoRA and gets the factor wrong? We change it in a copy of the
# tuned model. No error is raised. If alpha = r, the factor is 1: test your code with alpha ≠ r.

# %%
wrong = copy.deepcopy(tuned.model)
for factor, mistake in ((1, "forgotten"), (16, "alpha, not divided by r")):
    for layer in lora_layers(wrong).values():
        layer.scaling = factor
    print(f"factor {factor} ({mistake}): F1 {f1_on_test(wrong):.2f}, right: {f1:.2f}")
# > factor 1 (forgotten): F1 0.50, right: 0.55
# > factor 16 (alpha, not divided by r): F1 0.00, right: 0.55

# %% [markdown]
# ## Merging, and peft
# `merge_lora` makes W + (alpha / r) · B A: no extra time. `save_adapter` writes A, B and the head
# as peft does. With peft (optional), transformers first reports that the base has no head.

# %%
merge_lora(merged := copy.deepcopy(tuned.model.eval()))
ours, plain = (m.logits(m.transformer(x, packing)) for m in (tuned.model, merged))
print("merged: equal logits", torch.allclose(ours, plain, atol=1e-4))
try:
    import peft
    from transformers import GPTNeoForTokenClassification as Theirs

    with tempfile.TemporaryDirectory() as folder:
        neo_peft.save_adapter(folder, tuned.model, settings)
        print(max(load_file(f"{folder}/adapter_model.safetensors")), "is the last name")
        theirs = Theirs.from_pretrained(base.folder, num_labels=11, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    print("peft: equal logits", torch.allclose(theirs(ids[None]).logits[0], ours, atol=1e-4))
except ImportError:
    print("peft is not installed (pip install peft): nothing to compare")
# > merged: equal logits True
# > base_model.model.transformer.h.5.mlp.c_proj.lora_B.weight is the last name
# > peft: equal logits True

# %% [markdown]
# ## Exercises
# 1. How many numbers does LoRA train in a whole model, on all six linear layers of every block?
#    c_fc has the shape (inner, hidden), c_proj (hidden, inner), the other four (hidden, hidden).
# 2. Two corrections (A, B, alpha) for the same W. Return one pair (A, B) that adds both, for a
#    program that computes W x + B A x. The factors go into B.


# %%
def count(hidden, inner, layers, rank):
    return ...


def together(first, second):
    return ...


check(3, count)
check(3, together)
# > count: still open: replace the `...` and run it again
# > together: still open: replace the `...` and run it again
