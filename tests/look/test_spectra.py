"""The singular values of weight changes, compared with numpy's of the product written out."""

import copy

import numpy as np
import pytest
import torch

from neo_peft.errors import InputError
from neo_peft.look.spectra import (
    agreement,
    compare_changes,
    describe,
    svd_of_product,
    weight_changes,
)
from neo_peft.lora import add_lora, lora_layers


@pytest.fixture(params=[False, True], ids=["lora", "rslora"])
def tuned(request, base):
    """Return a trunk with LoRA on two kinds of layers, whose A and B are random."""
    trunk = copy.deepcopy(base.trunk)
    add_lora(trunk, ["q_proj", "c_fc"], rank=3, alpha=7, rslora=request.param)
    for layer in lora_layers(trunk).values():
        torch.nn.init.normal_(layer.lora_B.weight)
    return trunk


@pytest.mark.parametrize("rank", [3, 12])  # 12 is more than both sizes
def test_the_svd_of_the_factors_is_that_of_their_product(rank):
    b, a = torch.randn(9, rank), torch.randn(rank, 7)
    left, values, right = svd_of_product(b, a)
    product = b.double() @ a.double()
    expected = np.linalg.svd(product.numpy(), compute_uv=False)[: min(rank, 7)]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    torch.testing.assert_close((left * values) @ right, product)
    for basis in (left.T @ left, right @ right.T):
        torch.testing.assert_close(basis, torch.eye(len(values), dtype=torch.float64))


def test_a_lora_layers_change_is_its_scaled_product(base, tuned):
    changes, layers = weight_changes(tuned, base.trunk), lora_layers(tuned)
    assert list(changes) == list(layers) and len(changes) == 8
    for name, change in changes.items():
        layer = layers[name]
        merged = layer.merged().weight.double() - layer.base_layer.weight.double()
        torch.testing.assert_close(change.written_out(), merged, rtol=0, atol=1e-5)
        assert change.values.shape == (3,) and change.directions == 3
        cut = change.first(2).written_out()
        left, values, right = np.linalg.svd(merged.detach().numpy())
        best = (left[:, :2] * values[:2]) @ right[:2]
        np.testing.assert_allclose(cut.detach(), best, atol=1e-4)


def test_full_tunings_change_is_the_difference_of_the_weights(base):
    trunk = copy.deepcopy(base.trunk).requires_grad_(True)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    changes = weight_changes(trunk, base.trunk)
    assert len(changes) == 6 * 4  # all linear layers, but no embeddings and norms
    for name, change in changes.items():
        delta = trunk.get_submodule(name).weight - base.trunk.get_submodule(name).weight
        expected = np.linalg.svd(delta.detach().numpy(), compute_uv=False)
        np.testing.assert_allclose(change.values, expected, rtol=1e-4)


def test_the_norms_are_those_of_the_matrices_written_out(base, tuned):
    for name, change in weight_changes(tuned, base.trunk).items():
        layer, found = tuned.get_submodule(name), describe(name, change)
        weight = layer.base_layer.weight.detach().numpy().astype(float)
        delta = layer.scaling * (layer.lora_B.weight @ layer.lora_A.weight).detach().numpy()
        left, values, right = np.linalg.svd(delta)
        projected = np.linalg.norm(left[:, :3].T @ weight @ right[:3].T)
        assert found["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert found["base_norm"] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        assert found["projected"] == pytest.approx(projected, rel=1e-4)
        assert found["amplification"] == pytest.approx(np.linalg.norm(delta) / projected, rel=1e-4)
        assert (found["outputs"], found["inputs"]) == weight.shape


def test_w_between_random_directions_has_the_expected_norm(base, tuned):
    name, change = next(iter(weight_changes(tuned, base.trunk).items()))
    weight = change.base.weight.detach().double()
    draws = []
    for _ in range(2000):
        left, right = (torch.linalg.qr(torch.randn(24, 3).double())[0] for _ in "UV")
        draws.append(float((left.T @ weight @ right).square().sum()))
    assert describe(name, change)["random"] == pytest.approx(np.sqrt(np.mean(draws)), rel=0.03)


def test_w_is_measured_between_at_most_eight_directions(base):
    trunk = copy.deepcopy(base.trunk).requires_grad_(True)
    with torch.no_grad():
        trunk.h[0].attn.attention.q_proj.weight.add_(torch.randn(24, 24))
    name = "h.0.attn.attention.q_proj"
    change = weight_changes(trunk, base.trunk)[name]
    weight, found = change.base.weight.detach().double(), describe(name, change)
    projected = (change.left[:, :8].T @ weight @ change.right[:8].T).norm()
    assert found["directions"] == 24 and found["projected"] == pytest.approx(float(projected))
    assert found["amplification"] == pytest.approx(float(change.values[:8].norm() / projected))


def test_a_change_of_zero_has_no_directions(base):
    trunk = copy.deepcopy(base.trunk)
    add_lora(trunk, rank=2)
    name, change = next(iter(weight_changes(trunk, base.trunk).items()))
    found = describe(name, change)
    assert found["directions"] == found["norm"] == found["projected"] == 0
    assert found["amplification"] is None
    same = compare_changes(("a", "b"), {name: change}, {name: change})[0]
    assert same["inputs"] == same["outputs"] == []


def test_agreement_is_the_formula_for_each_pair():
    a, b = (torch.linalg.qr(torch.randn(11, n).double())[0] for n in (3, 5))
    phi = agreement(a, b)
    assert phi.shape == (3, 5)
    for i in range(1, 4):
        for j in range(1, 6):
            singular = np.linalg.svd((a[:, :i].T @ b[:, :j]).numpy(), compute_uv=False)
            assert phi[i - 1, j - 1] == pytest.approx((singular**2).sum() / min(i, j))


def test_agreement_is_one_inside_the_larger_space_and_zero_if_orthogonal():
    basis = torch.linalg.qr(torch.randn(11, 11).double())[0]
    turned = basis[:, :5] @ torch.linalg.qr(torch.randn(5, 5).double())[0]
    assert agreement(basis[:, :3], turned)[-1, -1] == pytest.approx(1)
    assert agreement(basis[:, :3], basis[:, 3:7]).abs().max() < 1e-9


def test_runs_that_changed_different_layers_are_refused(base):
    changes = []
    for targets in (["q_proj"], ["q_proj", "v_proj"]):
        trunk = copy.deepcopy(base.trunk)
        add_lora(trunk, targets, rank=2)
        changes.append(weight_changes(trunk, base.trunk))
    with pytest.raises(InputError, match=r"one and two changed different layers \(4 only by two\)"):
        compare_changes(("one", "two"), *changes)
