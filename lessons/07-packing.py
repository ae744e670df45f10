# %% [markdown]
# # Lesson 7: batches without padding
# You will be able to count what padding costs, prove that a padded token changes nothing and needs
# no mask, pack a batch into one row of tokens, and count what that saves. It follows Krell et al.
# 2021, section 2; the causal mask is from Vaswani et al. 2017, section 3.2.3. The code is
# `neo_peft/packing.py`.

# %%
import sys
import time

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft.encoding import collate
from neo_peft.packing import Packing

torch.set_num_threads(1)
settings = neo_peft.make_settings(task="ner", method="lora", threads=1, dropout=0, head_dropout=0)
tuned = neo_peft.load_untuned(settings, with_method=True)
trunk = tuned.model.transformer
rows = neo_peft.load_splits(neo_peft.get_task("ner"), "sample").train[:16]
batch = collate(tuned.encoder(rows), range(16))
lengths = batch.lengths.tolist()

# %% [markdown]
# ## A batch, padded
# A batch is one tensor, but texts have different lengths. The usual answer: fill each up to the
# longest one with a padding token. How much of what is then computed is of any use?

# %%
for length in sorted(lengths, reverse=True)[::4]:
    print("█" * length + "·" * (max(lengths) - length))
B, T, N = len(lengths), max(lengths), sum(lengths)
print(f"B = {B} texts, T = {T}: {B * T} places for {N} tokens, {1 - N / (B * T):.0%} are padding")
# > ███████████████████████████████████████
# > ████████████████████████████████·······
# > ██████████████████████████████·········
# > ██████████████████████████·············
# > B = 16 texts, T = 39: 624 places for 475 tokens, 24% are padding

# %% [markdown]
# ## Why padding on the right needs no mask
# With a causal mask a token attends to itself and to its left, and no word has right padding on
# its left. (Its own outputs are thrown away.) To generate, many programs pad on the left. Then a
# mask must hide the padding, and the words get other positions, unless the program corrects them.


# %%
def hidden_states(ids, start=0):  # (T, H) of one text's tokens (T,)
    return trunk(trunk.embed(ids), Packing.of_texts(torch.tensor([len(ids)]), start))


text, alone = (ids := batch.ids[: lengths[0]]), hidden_states(ids)
right = hidden_states(torch.cat([text, torch.zeros(10, dtype=torch.long)]))[: len(text)]
left = hidden_states(text, start=10)  # as if a perfect mask hid ten padding tokens
print(f"on the right: the text changes by {(right - alone).abs().max():.4f}")
print(f"on the left:  the text changes by {(left - alone).abs().max():.4f}")
# > on the right: the text changes by 0.0000
# > on the left:  the text changes by 9.3286

# %% [markdown]
# ## One row of tokens
# Linear layers, norms and embeddings work on each token alone. So why give them a grid? We
# concatenate the texts: N tokens, no padding. Each one needs its position in its own text.

# %%
print("lengths 3, 5, 2: positions", *Packing.of_texts(torch.tensor([3, 5, 2])).positions.tolist())
x, c_fc = torch.randn(B, T, trunk.config.hidden_size), trunk.h[0].mlp.c_fc
is_text = torch.arange(T) < batch.lengths[:, None]  # (B, T): True for a token, False for padding
print("same outputs:", torch.allclose(c_fc(x)[is_text], c_fc(x[is_text]), atol=1e-5))
# > lengths 3, 5, 2: positions 0 1 2 0 1 2 3 4 0 1
# > same outputs: True

# %% [markdown]
# ## Attention is where tokens meet
# Only here texts must be kept apart. A mask for the (N, N) square would do; most of it is computed
# for nothing. Better: a grid (b, T) for b neighbouring texts of one length. On a GPU each call
# costs time, so there all texts are in one padded grid; the other layers stay packed.

# %%
print(*(f"{grid.batch}×{grid.longest}" for grid in Packing.of_texts(batch.lengths).grids))
packed = trunk(trunk.embed(batch.ids), Packing.of_texts(batch.lengths))
singles = torch.cat([hidden_states(text) for text in batch.ids.split(lengths)])
print("the batch equals its texts, one at a time:", torch.allclose(packed, singles, atol=1e-4))
# > 1×29 1×31 1×25 1×27 1×18 1×34 1×36 1×26 1×28 1×31 1×32 1×31 1×39 1×23 1×35 1×30
# > the batch equals its texts, one at a time: True

# %% [markdown]
# ## What it saves
# A training step of LoRA on both forms: the numbers that autograd keeps for the backward pass
# (lesson 9 counts them), and which one is faster. Seconds differ from run to run.


# %%
def step(ids, lengths, wanted):  # the MB that autograd keeps, the CPU seconds, the loss
    kept, start = {}, time.process_time()

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = trunk(trunk.embed(ids), Packing.of_texts(lengths), None, wanted)
        loss = torch.nn.functional.cross_entropy(tuned.model.head(hidden), batch.targets)
    loss.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in tuned.model.parameters()}
    kept = {at: tensor.untyped_storage().nbytes() for at, tensor in kept.items()}
    size = sum(size for at, size in kept.items() if at not in weights)
    return size / 1e6, time.process_time() - start, loss.item()


padded = torch.zeros(B, T, dtype=torch.long).masked_scatter(is_text, batch.ids)
wanted = is_text.flatten().nonzero().flatten()[batch.target_indices]  # the same tokens, padded
forms = {"padded": (padded.flatten(), torch.tensor([T] * B), wanted)}
forms["packed"] = batch.ids, batch.lengths, batch.target_indices
seconds = {}
for name, form in forms.items():
    runs = [step(*form) for _ in range(5)]
    seconds[name] = min(run[1] for run in runs)
    print(f"{name}: {len(form[0])} tokens, {runs[0][0]:.0f} MB kept, loss {runs[0][2]:.4f}")
print("faster:", min(seconds, key=seconds.get))
# > padded: 624 tokens, 41 MB kept, loss 2.8407
# > packed: 475 tokens, 32 MB kept, loss 2.8407
# > faster: packed

# %% [markdown]
# The loss is the same: it divides by the number of *targets* in the batch, not of texts or places.
# Sorting texts by length also saves padding, but then a batch has only short or only long texts.
# ## Exercises
# 1. The share of padding. Texts are taken in order, `size` in a batch; a batch is as long as its
#    longest text.
# 2. The mask (N, N) of a packed batch, True where a token (row) attends. Text after text.


# %%
def padding_share(lengths, size):
    return ...


def packed_mask(lengths):
    return ...


check(7, padding_share)
check(7, packed_mask)
# > padding_share: still open: replace the `...` and run it again
# > packed_mask: still open: replace the `...` and run it again
