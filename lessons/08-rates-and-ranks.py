# %% [markdown]
# # Lesson 8: rates and ranks
# You will be able to explain why LoRA wants a higher learning rate than full tuning, what rank and
# alpha do to a step, find a prompt's rate, and choose without fooling yourself. It
# follows Hu et al. 2021, sections 4.1 and 7.2, and Schulman et al. 2025 (LoRA Without Regret). The
# code is `neo_peft/loop.py`; `python -m neo_peft study --sweep` does this for your data.

# %%
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft

torch.set_num_threads(1)
base, task = neo_peft.load_base("neo-mini"), neo_peft.get_task("sentiment")
splits = neo_peft.load_splits(task, "sample")

# %% [markdown]
# ## What Adam does with a rate
# Adam divides each gradient by its usual size. So in the first step each trained number moves by
# the rate, up or down, however large its gradient is. How far does that move the *output* for a
# token x? Full tuning moves all in · out numbers of W; LoRA moves the out · r of B, and changes W
# by (alpha / r) · BA. We take one layer's first step, for the gradient of one token:

# %%
torch.manual_seed(0)
H, rate, alpha = 256, 0.001, 16
x, out = torch.randn(H), torch.randn(H)
gradient = out[:, None] * x  # of W, (out, in)
print(f"full:   |ΔW x| {(rate * gradient.sign() @ x).norm():.2f}")
for r in (1, 8, 64):
    A = (torch.rand(500, r, H) * 2 - 1) / H**0.5  # random, as at the start; 500 draws
    B = rate * (gradient @ A.mT).sign()  # the gradient of B is (alpha / r) · gradient · Aᵀ
    change = alpha / r * B @ (A @ x)[:, :, None]  # (500, out, 1)
    print(f"r = {r:2}: |ΔW x| {change.norm(dim=1).mean():.2f}")
# > full:   |ΔW x| 3.05
# > r =  1: |ΔW x| 0.11
# > r =  8: |ΔW x| 0.11
# > r = 64: |ΔW x| 0.11

# %% [markdown]
# An output moves by rate · Σ|x_i| (H terms) in full tuning, and with LoRA by
# rate · (alpha / r) · Σ|(A x)_j| (r terms): less, so LoRA needs a larger rate. alpha / r divides
# the sum of r terms by r: for one token all ranks move it alike. alpha is another knob for the
# rate.

# %% [markdown]
# ## Fooling yourself
# Whoever tries twenty settings and reports the best one has also chosen luck. Take twenty models
# that are equally good: each is right on seven rows in ten. We take the best one on 200
# rows of validation, look at 200 rows of test, and repeat this 2,000 times.

# %%
right = (torch.rand(2000, 20, 400) < 0.7).float()  # (repetitions, models, rows)
validation, test = right[..., :200].mean(2), right[..., 200:].mean(2)
chosen = validation.argmax(1, keepdim=True)
print(f"the best: validation {validation.gather(1, chosen).mean():.3f}", end=", ")
print(
    f"test {test.gather(1, chosen).mean():.3f}; the best on test itself {test.amax(1).mean():.3f}"
)
# > the best: validation 0.760, test 0.701; the best on test itself 0.759

# %% [markdown]
# So: choose on validation, report test, once. With seeds, choose by the mean over seeds.
# ## The best rate, measured
# Fifteen steps of eight texts for each rate; the loss on validation. Factors of three are a start.
# So few steps only show who learns fast: all are still worse than guessing by the labels' shares
# (lesson 4). With one seed and 25 rows, neighbouring rates may be tied.


# %%
def loss_of(method, rate, steps=15, **given):
    given |= {"max_steps": steps, "batch_size": 8, "warmup_ratio": 0.1, "threads": 1}
    settings = neo_peft.make_settings(task="sentiment", method=method, learning_rate=rate, **given)
    tuned = neo_peft.load_untuned(settings, with_method=True)
    neo_peft.fit(tuned.model, tuned.encoder(splits.train), settings)
    examples = tuned.encoder(splits.validation[::5])
    return neo_peft.evaluate(tuned.model, tuned.encoder, examples, with_loss=True).loss


best = {}
for method, rates in (
    ("full", (0.0001, 0.0003, 0.001)),
    ("lora", (0.003, 0.01, 0.03)),
    ("prompt", (0.03, 0.1, 0.3)),
):
    losses = {rate: loss_of(method, rate) for rate in rates}
    best[method] = min(losses, key=losses.get)
    for rate, loss in losses.items():
        mark = " best" if rate == best[method] else ""
        print(f"{method:6} {rate:6} {'█' * min(40, round(8 * loss))} {loss:.2f}{mark}")
print(f"best rate over full tuning's: LoRA {best['lora'] / best['full']:.0f} ×, ", end="")
print(f"prompt {best['prompt'] / best['full']:.0f} ×")
# > full   0.0001 ████████████ 1.54
# > full   0.0003 █████ 0.67 best
# > full    0.001 ██████ 0.78
# > lora    0.003 ██████████████ 1.76
# > lora     0.01 ██████ 0.75 best
# > lora     0.03 ████████ 1.04
# > prompt   0.03 ███████████ 1.32
# > prompt    0.1 █████████ 1.15 best
# > prompt    0.3 ███████████ 1.34
# > best rate over full tuning's: LoRA 33 ×, prompt 333 ×

# %% [markdown]
# If the best rate is the lowest or highest one tried, try further.
# ## Ranks
# At LoRA's rate. Hu et al. found that a rank of 1 to 8 is enough (section 7.2). Before you prefer a
# rank, compare the two seeds of r = 8 (seed 0 is above): do they differ more than the ranks do?

# %%
for r, seed in ((1, 0), (64, 0), (8, 1)):
    loss = loss_of("lora", best["lora"], rank=r, seed=seed)
    print(f"r = {r:2}, seed {seed}: {loss:.2f}")
# > r =  1, seed 0: 0.80
# > r = 64, seed 0: 0.73
# > r =  8, seed 1: 0.57

# %% [markdown]
# ## Exercises
# 1. The change of W by LoRA's first step: B is zero, and Adam moves each number by the rate,
#    against the sign of its gradient. `gradient` is that of W, (out, in); A is (r, in).
# 2. `scores[rate]` is a list of (validation, test), one pair for each seed. Return the rate to
#    take (a higher score is better), and the test score to report.


# %%
def first_step(gradient, A, alpha, rate):
    return ...


def choose(scores):
    return ...


check(8, first_step)
check(8, choose)
# > first_step: still open: replace the `...` and run it again
# > choose: still open: replace the `...` and run it again
