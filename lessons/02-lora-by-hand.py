# %% [markdown]
# # Lesson 2: LoRA by hand
# You will be able to compute what LoRA does to one linear layer: output, gradients, a training
# step, the merge. First with small matrices, every number printed; then the package gives the same
# numbers. It follows Hu et al. 2021, section 4.1. The code is `neo_peft/lora.py`.
# ```
#          ┌── W, frozen ────────────────────┐
#     x ───┤   (3, 4)                       (+)── h = W x + (alpha / r) · B A x
#    (4,)  └── A ────── B ────── · alpha / r ┘   (3,)
#              (2, 4)   (3, 2)       only A and B are trained; r = 2
# ```

# %%
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check
from torch import nn, tensor

from neo_peft.lora import add_lora, merge_lora

W = tensor([[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])  # (out, in)
A = first_A = tensor([[0.5, 0.0, 0.5, -0.5], [-1.0, 0.5, 0.0, 0.5]])  # (r, in)
B = torch.zeros(3, 2)  # (out, r)
x = tensor([1.0, 2.0, 0.0, -1.0])  # (in,)
alpha, r = 3.0, 2
s = alpha / r


def show(name, matrix):  # its rows one after another, with | between them
    rows = [" ".join(f"{value + 0:6.3f}" for value in row) for row in matrix.tolist()]
    print(f"{name}:", " | ".join(rows))


# %% [markdown]
# ## The output
# A starts at random (here with chosen numbers), B at zero. How far does LoRA change the output
# before the first step? Not at all, whatever A is: training starts from the pretrained model.
# A and B have r (in + out) numbers: here more than W. In a real layer they are far fewer, because r
# is small compared with in and out: lesson 3 counts them. alpha is a constant that you choose:
# alpha / r sets how much the correction counts. Lesson 3 shows why it is divided by r.


# %%
def output(A, B):
    return W @ x + s * B @ (A @ x)


print("A x:", A @ x, " W x:", W @ x, " h:", output(A, B))
print("numbers in A and B:", A.numel() + B.numel(), " in W:", W.numel())
# > A x: tensor([ 1.0000, -0.5000])  W x: tensor([2., 1., 3.])  h: tensor([2., 1., 3.])
# > numbers in A and B: 14  in W: 12

# %% [markdown]
# ## The gradients, and two steps
# We want the output y. The loss is half of the squared distance, so its gradient with respect to h
# is g = h - y. The chain rule takes g back through both factors (ᵀ is the transpose):
#
#     gradient of B = s · g (A x)ᵀ          gradient of A = s · Bᵀ g xᵀ
#
# Each contains the other matrix. Which one moves in the first step? Only B: while B is zero, the
# gradient of A is zero. (If both were zero, neither would ever move.) W has a gradient too, g xᵀ.
# But W is frozen: neither its gradient nor Adam's two numbers for each weight need memory.

# %%
y = tensor([1.0, 1.0, 5.0])
for step in (1, 2):
    g = output(A, B) - y
    grad_A, grad_B = s * torch.outer(B.T @ g, x), s * torch.outer(g, A @ x)
    A, B = A - 0.1 * grad_A, B - 0.1 * grad_B  # plain gradient descent
    print(f"step {step}: g {g.tolist()}, loss {g.square().sum() / 2:.3f} before the step")
    show("gradient of A", grad_A)
    show("gradient of B", grad_B)
    show("A", A)
    show("B", B)
# > step 1: g [1.0, 0.0, -2.0], loss 2.500 before the step
# > gradient of A:  0.000  0.000  0.000  0.000 |  0.000  0.000  0.000  0.000
# > gradient of B:  1.500 -0.750 |  0.000  0.000 | -3.000  1.500
# > A:  0.500  0.000  0.500 -0.500 | -1.000  0.500  0.000  0.500
# > B: -0.150  0.075 |  0.000  0.000 |  0.300 -0.150
# > step 2: g [0.71875, 0.0, -1.4375], loss 1.292 before the step
# > gradient of A: -0.809 -1.617  0.000  0.809 |  0.404  0.809  0.000 -0.404
# > gradient of B:  1.078 -0.539 |  0.000  0.000 | -2.156  1.078
# > A:  0.581  0.162  0.500 -0.581 | -1.040  0.419  0.000  0.540
# > B: -0.258  0.129 |  0.000  0.000 |  0.516 -0.258

# %% [markdown]
# ## The merge
# W x + s · B A x = (W + s · B A) x. One matrix saves the two small products with A and B: a merged
# model is as fast as the untuned one. Subtracting s · B A undoes it, up to rounding. Which rank has
# B A? At most r. Here it is lower, since a single example makes all columns of B parallel.

# %%
merged = W + s * B @ A
show("s · B A", s * B @ A)
print("rank of B A:", torch.linalg.matrix_rank(B @ A).item())
print("with LoRA:", output(A, B), " merged:", merged @ x)
# > s · B A: -0.426  0.019 -0.193  0.329 |  0.000  0.000  0.000  0.000 |  0.852 -0.037  0.387 -0.658
# > rank of B A: 1
# > with LoRA: tensor([1.2821, 1.0000, 4.4358])  merged: tensor([1.2821, 1.0000, 4.4358])

# %% [markdown]
# ## The same from neo_peft.lora
# `add_lora` freezes a model and puts LoRA into the layers that you name. We give it our A; autograd
# and torch's SGD take the two steps. The last line compares with our merged matrix.

# %%
model = nn.ModuleDict({"fc": nn.Linear(4, 3, bias=False)})
model["fc"].weight.data = W.clone()
add_lora(model, ["fc"], rank=r, alpha=alpha)
layer = model["fc"]
layer.lora_A.weight.data = first_A.clone()  # B is zero already
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
optimizer = torch.optim.SGD(trained.values(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    ((layer(x) - y).square().sum() / 2).backward()
    optimizer.step()
for name, weight in trained.items():
    show(name.removeprefix("fc."), weight)
print("W unchanged:", torch.equal(layer.base_layer.weight, W))
merge_lora(model)  # fc is a plain nn.Linear again
print("merged: largest difference", f"{(model['fc'].weight - merged).abs().max():.5f}")
# > lora_A.weight:  0.581  0.162  0.500 -0.581 | -1.040  0.419  0.000  0.540
# > lora_B.weight: -0.258  0.129 |  0.000  0.000 |  0.516 -0.258
# > W unchanged: True
# > merged: largest difference 0.00000

# %% [markdown]
# ## Exercises
# Replace each `...` and run the lesson again.
# 1. The outputs (N, out) of N tokens X (N, in). A token is a row of X: mind the transposes.
# 2. W is merged: it contains the correction `old`. Return it with `new` in place of `old`. Each is
#    (A, B, alpha), and their ranks differ. In this way one model in memory serves many tasks.


# %%
def outputs(X, W, A, B, alpha):
    return ...


def switch(W, old, new):
    return ...


check(2, outputs)
check(2, switch)
# > outputs: still open: replace the `...` and run it again
# > switch: still open: replace the `...` and run it again
