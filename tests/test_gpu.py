"""A CUDA device gives the results of a CPU. Skipped without one."""

import os
import signal
from pathlib import Path

import pytest
import torch
from killing import result

from neo_peft import loop
from neo_peft.commands import train
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.progress import no_progress
from neo_peft.runs import training
from neo_peft.runs.curves import read_metrics
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.system import signals
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import get_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = ("lora", "prompt", "prefix", "lora+prompt")


def tuned_on(device: str, method: str, precision: str = "fp32", **more):
    settings = make_settings(
        task="sentiment",
        method=method,
        device=device,
        precision=precision,
        epochs=1,
        max_steps=5,
        threads=1,
        learning_rate=1e-3,
        **more,
    )
    tuned = load_untuned(settings, with_method=True)
    rows = load_splits(get_task("sentiment"), "sample").train[:80]
    return tuned, tuned.encoder(rows), settings


def losses(device: str, method: str, precision: str = "fp32", **more) -> list[float]:
    tuned, examples, settings = tuned_on(device, method, precision, **more)
    state, step_losses = loop.make_state(tuned.model, settings), []
    for event in loop.steps(tuned.model, examples, settings, state, no_progress):
        if isinstance(event, loop.EpochEnd):
            state.next_epoch()
        else:
            step_losses.append(event.loss)
    return step_losses


@pytest.mark.parametrize("method", METHODS)
def test_five_training_steps_have_the_losses_of_a_cpu(method):
    torch.testing.assert_close(
        torch.tensor(losses("cuda", method)),
        torch.tensor(losses("cpu", method)),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("method", METHODS)
def test_fp16_training_has_nearly_the_losses_of_fp32(method):
    fp16, fp32 = losses("cuda", method, "fp16"), losses("cpu", method)
    torch.testing.assert_close(torch.tensor(fp16), torch.tensor(fp32), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_training_has_nearly_the_losses_of_fp32(method):
    bf16, fp32 = losses("cuda", method, "bf16"), losses("cpu", method)
    torch.testing.assert_close(torch.tensor(bf16), torch.tensor(fp32), rtol=0.05, atol=0.05)


def test_fp16_has_a_loss_scale_and_a_step_with_infinite_gradients_halves_it():
    tuned, examples, settings = tuned_on("cuda", "lora", "fp16")
    state = loop.make_state(tuned.model, settings)
    before = {name: p.detach().clone() for name, p in tuned.model.trainable().items()}
    state.scaler.update(2.0**40)  # far too large for fp16
    next(loop.steps(tuned.model, examples, settings, state, no_progress))
    assert state.skipped == 1 and state.scaler.get_scale() == 2.0**39
    for name, parameter in tuned.model.trainable().items():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_run_is_resumed_on_a_gpu(precision, monkeypatch, tmp_path):
    """Its steps are those of a run that was not stopped: to the bit where the GPU adds in one
    order, and closely in any case."""
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "ner", "--method", "lora", "--dropout", "0.2", "--device", "cuda"]
    flags += ["--precision", precision, "--epochs", "2", "--train-limit", "40"]
    flags += ["--eval-limit", "10", "--batch-size", "8", "--threads", "1"]
    for name in ("whole", "again"):
        assert exit_status(lambda: train.main([*flags, "--out", name])) == 0  # noqa: B023
    real = training.Log.step

    def stop_at_7(log, step):
        real(log, step)
        if step.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Log, "step", stop_at_7)
    signals.listen()
    assert exit_status(lambda: train.main([*flags, "--out", "stopped"])) == 128 + signal.SIGTERM
    monkeypatch.setattr(training.Log, "step", real)
    assert exit_status(lambda: train.main(["--resume", "stopped"])) == 0
    whole, again, stopped = (result(Path(name)) for name in ("whole", "again", "stopped"))
    if whole == again:
        assert stopped == whole
    metrics = [
        [line for line in read_metrics(Path(name, "metrics.jsonl")) if "loss" in line]
        for name in ("whole", "stopped")
    ]
    losses_of_steps = [torch.tensor([line["loss"] for line in lines]) for lines in metrics]
    torch.testing.assert_close(*losses_of_steps, rtol=1e-2, atol=1e-3)


def test_recomputed_activations_give_the_same_losses():
    plain, recomputed = losses("cuda", "lora"), losses("cuda", "lora", checkpoint_activations=True)
    torch.testing.assert_close(torch.tensor(recomputed), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_predictions_are_those_of_a_cpu():
    results = {}
    for device in ("cuda", "cpu"):
        tuned, examples, _ = tuned_on(device, "lora")
        results[device] = evaluate(tuned.model, tuned.encoder, examples)
    assert results["cuda"].predicted == results["cpu"].predicted
    torch.testing.assert_close(
        torch.tensor(results["cuda"].probabilities),
        torch.tensor(results["cpu"].probabilities),
        rtol=1e-3,
        atol=1e-4,
    )


def test_frozen_matrices_are_fp16_and_trainable_parameters_are_fp32():
    tuned, _, _ = tuned_on("cuda", "lora", "fp16")
    matrices = [p for p in tuned.model.parameters() if not p.requires_grad and p.dim() == 2]
    assert {p.dtype for p in matrices} == {torch.float16}
    assert {p.dtype for p in tuned.model.trainable().values()} == {torch.float32}
    assert {p.device.type for p in tuned.model.parameters()} == {"cuda"}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_training_on_a_quantised_base_has_the_losses_of_a_cpu(kind):
    cuda, cpu = losses("cuda", "lora", quantize=kind), losses("cpu", "lora", quantize=kind)
    torch.testing.assert_close(torch.tensor(cuda), torch.tensor(cpu), rtol=1e-3, atol=1e-4)
    fp16 = losses("cuda", "lora", "fp16", quantize=kind)
    torch.testing.assert_close(torch.tensor(fp16), torch.tensor(cpu), rtol=0.02, atol=0.02)
