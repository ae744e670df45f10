"""The memory and the disk that a run needs: compared with loaded tensors, files, and by hand."""

from dataclasses import replace

import pytest
import torch
from trained import make_job

from neo_peft import loop
from neo_peft.formats.base import load_base
from neo_peft.formats.published import published_config, trunk_without_data
from neo_peft.loop import make_optimizer
from neo_peft.model import TunedModel
from neo_peft.runs import cost, training
from neo_peft.runs.too_large import base_bytes
from neo_peft.settings import make_settings

LARGE = "EleutherAI/gpt-neo-1.3B"
METHODS = ["lora", "prompt", "prefix", "full", "head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_the_bytes_of_a_base_are_those_of_its_loaded_tensors(tiny_folder, kind, dtype):
    base = load_base(str(tiny_folder), dtype, quantize=kind)
    settings = make_settings(task="ner", method="lora", quantize=kind)
    assert base_bytes(base.trunk.config, settings, dtype) == base.weight_bytes


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizers_bytes_are_those_of_its_averages_after_a_step(tiny_folder, tmp_path, method):
    job = make_job(tmp_path, tiny_folder, task="ner", method=method)
    optimizer = make_optimizer(job.tuned.model, job.settings)
    for parameter in job.tuned.model.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    averages = [state[name] for state in optimizer.state.values() for name in optimizer.MOMENTS]
    memory = cost.memory_of(job.tuned.model, job.examples, job.settings)
    assert memory.optimizer == sum(tensor.nbytes for tensor in averages)


def test_the_largest_batch_is_the_one_that_the_first_epoch_trains_on(tiny_folder, tmp_path):
    flags = {"batch_size": 2, "gradient_accumulation": 2, "epochs": 1, "seed": 3}
    job = make_job(tmp_path, tiny_folder, task="ner", **flags)
    examples, trained = job.examples["train"], []
    model = job.tuned.model
    model.register_forward_pre_hook(lambda _, given: trained.append(len(given[0].ids)))
    loop.fit(model, examples, job.settings)
    batches = cost.step_batches(examples, job.settings)
    assert [cost.tokens_of(examples, batch) for batch in batches] == trained
    largest = cost.largest(examples, batches)
    assert cost.tokens_of(examples, largest) == max(trained) > min(trained)


def test_scoring_is_counted_for_the_batch_of_the_longest_texts(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", eval_limit=20)
    part = job.examples["validation"]
    longest = sorted(part.lengths.tolist())[-7:]
    assert cost.tokens_of(part, cost.longest_texts(part, 7)) == sum(longest)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_disk_that_a_run_keeps_is_that_of_its_files(tiny_folder, tmp_path, monkeypatch, method):
    """The files also have headers, the random states and the counts of steps: some kilobytes."""
    monkeypatch.setattr(training, "drop_checkpoints", lambda folder: None)
    settings = make_settings(
        **{"task": "ner", "method": method, "model": str(tiny_folder), "threads": 1, "epochs": 3},
        **{"train_limit": 8, "eval_limit": 6, "learning_rate": 0.001, "keep": "last"},
        out=str(tmp_path / "run"),
    )
    training.run(settings, print_line=lambda line: None)
    files = {path.stat().st_ino: path for path in (tmp_path / "run").rglob("*.safetensors")}
    found = sum(path.stat().st_size for path in files.values())
    disk = cost.disk(make_job(tmp_path, tiny_folder, task="ner", method=method).tuned.model)
    assert disk.kept < found < disk.kept + 100_000
    assert disk.most - disk.kept == 3 * 4 * disk.kept // 9 - disk.kept


def test_tuning_all_weights_of_1_3b_keeps_47_gigabytes():
    """Two checkpoints with the weights, two averages and the best weights; and the result."""
    trunk = trunk_without_data(published_config(LARGE)).requires_grad_(True)
    assert cost.disk(TunedModel(trunk)).kept == 9 * 4 * 1_315_575_808


def test_each_flag_that_needs_less_memory_is_counted_so(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=8)

    def memory(**changes):
        settings = replace(job.settings, **changes)
        return cost.memory_of(job.tuned.model, job.examples, settings)

    plain = memory()
    assert memory(checkpoint_activations=True).activations < plain.activations / 2
    assert memory(batch_size=2, gradient_accumulation=4).step < plain.step
    assert memory(quantize="nf4").base < memory(quantize="int8").base < plain.base
    assert plain.peak == max(plain.step, plain.scoring)


def test_a_step_of_full_tuning_needs_at_least_five_times_the_weights(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", method="full", batch_size=1)
    memory = cost.memory_of(job.tuned.model, job.examples, job.settings)
    # the weights, two averages, the gradients, and AdamW's temporary tensor
    assert memory.step >= cost.LIBRARIES + 5 * job.tuned.base.weight_bytes
    assert memory.optimizer == 2 * 4 * job.trainable
