"""The growth benchmark: its predictions are compared with torch's counts of a real step."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks import growth, peers, sides

# torch's counter only knows the attention kernels of a GPU. So we add those of the CPU. Their first
# arguments are the same. It does not know oneDNN's products either (kernels/).
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_FLOPS = {
    FLASH: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(
            gradient, q, k, v
        )
    ),
    torch.ops.mkldnn._linear_pointwise: (
        lambda x, weight, *_, out_shape=None, **__: 2 * x[0] * weight[0] * weight[1]
    ),
}
AT = {"shape": "125m", "precision": "fp32", "device": "cpu"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    for name in list(sides.SHAPES):  # the points of a curve change SHAPES
        monkeypatch.setitem(sides.SHAPES, name, sides.SHAPES[name])
    monkeypatch.setitem(sides.SHAPES, "125m", (36, 4, 3))
    monkeypatch.setattr(peers, "RECORDS", tmp_path)


@pytest.mark.parametrize("curve", growth.CURVES)
def test_the_counted_operations_are_those_that_torch_counts_in_a_step(curve):
    for _, point in growth.points_of(curve, AT)[1:3]:
        step = growth.make_step(point, {})
        with FlopCounterMode(display=False, custom_mapping=CPU_FLOPS) as counter:
            step()
        assert growth.operations(point) == counter.get_total_flops()


@pytest.mark.parametrize("curve", ["tokens a batch", "prompt length", "LoRA rank"])
def test_the_counted_bytes_are_those_that_autograd_saves(curve):
    for _, point in growth.points_of(curve, AT)[1:3]:
        model, saved = growth.make_step(point, {}).func.model.train(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t) or t, lambda t: t
        ):
            loss = model.loss(point.batch)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in saved
        }
        total = sum(size for address, size in storages.items() if address not in weights)
        loss_count = 4  # bytes: the loss saves the number of its targets
        assert total == growth.saved_bytes(point)["all"] + loss_count
        del loss


def test_the_points_have_the_x_of_their_curve():
    xs = {curve: [x for x, _ in growth.points_of(curve, AT)] for curve in growth.CURVES}
    assert xs["prompt length"] == [8, 20, 50, 100] and xs["LoRA rank"] == [4, 16, 64, 256]
    assert xs["layers"] == [1, 2, 4, 8]
    tokens = xs["tokens a batch"]
    assert tokens == [tokens[0] * times for times in (1, 2, 4, 8)]
    for x, point in growth.points_of("layers", AT):
        assert len(growth.make_step(point, {}).func.model.transformer.h) == x


def test_a_record_and_its_plot_are_written_and_the_table_is_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "CURVES", {"prompt length": ("sentiment", "prompt_length", (4, 9))})
    growth.main(["--repeats", "1"])
    lines = json.loads((tmp_path / "growth-125m-fp32-cpu.json").read_text())["curves"][
        "prompt length"
    ]
    assert [line["x"] for line in lines] == [4, 9]
    assert all(
        line["seconds"] > 0 and line["bytes"] > 0 and line["predicted_seconds"] > 0
        for line in lines
    )
    assert (tmp_path / "growth-125m-fp32-cpu.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["curve", "x"] and len(printed) == 4
