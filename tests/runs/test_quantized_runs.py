"""Runs on a quantised base: they train, are resumed, scored and mixed."""

import dataclasses
import json
from glob import glob
from pathlib import Path

import pytest
import torch
from killing import SMALL, end, killed_when, result, resumed, start
from safetensors.torch import load_file
from trained import make_job, make_run

import evaluate
from neo_peft.commands import predict as predict_command
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.kernels.quantized import QuantizedLinear, dequantize
from neo_peft.methods import METHODS
from neo_peft.runs import generation, shared
from neo_peft.runs.adapter_set import AdapterSet
from neo_peft.runs.from_flags import settings_from
from neo_peft.runs.loading import load, load_untuned, settings_in
from neo_peft.runs.summary import describe
from neo_peft.runs.texts import predict
from neo_peft.runs.training import run
from neo_peft.settings import make_settings
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

KINDS = ("int8", "nf4")
FROZEN = [name for name, parts in METHODS.items() if not any(part.trains_base for part in parts)]


def quantized_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]


def small_run(tiny_folder, out, **flags):
    """Do a short run and return the content of run.json."""
    flags = {"task": "ner", "method": "lora", "model": str(tiny_folder), "threads": 1} | flags
    limits = {"train_limit": 12, "eval_limit": 6, "max_steps": 3, "batch_size": 4, "epochs": 1}
    run(make_settings(**limits | flags, out=str(out)), print_line=lambda line: None)
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_that_on_the_dequantised_weights(
    tiny_folder, tmp_path, monkeypatch, kind, precision
):
    """To the bit, with the gradient scaler in fp16. The other base has the dequantised weights,
    in the compute dtype, as an unquantised one has."""
    flags = {"precision": precision, "quantize": kind, "target_modules": "all-linear"}
    small_run(tiny_folder, tmp_path / "quantized", **flags)
    original = shared.load_base_for

    def dequantized(settings):
        base = original(settings)
        dtypes = {layer.dtype for layer in quantized_layers(base.trunk)}
        dequantize(base.trunk)
        for block in base.trunk.h:
            for layer in block.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.data = layer.weight.data.to(*dtypes)
        return base

    monkeypatch.setattr(shared, "load_base_for", dequantized)
    small_run(tiny_folder, tmp_path / "plain", **flags)
    ours, theirs = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("quantized", "plain")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("quantized", "plain")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", FROZEN)
def test_a_run_records_how_its_base_was_stored_and_is_scored_on_that(
    tiny_folder, tmp_path, capsys, method
):
    task, kind = ("ner", "int8") if method == "head" else ("sentiment", "nf4")
    folder = tmp_path / "run"
    record = small_run(tiny_folder, folder, task=task, method=method, quantize=kind)
    base = load_base(str(tiny_folder), quantize=kind)
    assert record["flags"]["quantize"] == record["base"]["quantize"] == kind
    assert record["base"]["weight_bytes"] == base.weight_bytes
    assert record["base"]["fingerprint"] == load_base(str(tiny_folder)).fingerprint
    plain = load_untuned(make_settings(task=task, method=method, model=str(tiny_folder)), True)
    assert record["total"] == sum(p.numel() for p in plain.model.parameters())
    assert "resident memory" in record["memory"]["counted"]
    tuned = load(folder)
    assert len(quantized_layers(tuned.model)) == 24 and tuned.base.quantize == kind
    assert exit_status(lambda: evaluate.main([str(folder), "--eval-limit", "6", "--json"])) == 0
    again = json.loads(capsys.readouterr().out)["scores"]
    after = record["scores"]["after"]["test"]
    assert again == {name: after[name] for name in again}


def test_evaluate_can_score_a_run_on_the_unquantised_base(tiny_folder, tmp_path, capsys):
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "lora", quantize="nf4")
    argv = [str(folder), "--eval-limit", "6"]
    assert exit_status(lambda: evaluate.main([*argv, "--quantize", "none"])) == 0
    on_plain = (folder / "predictions.jsonl").read_text()
    assert exit_status(lambda: evaluate.main(argv)) == 0
    assert on_plain != (folder / "predictions.jsonl").read_text()


def test_predict_uses_the_quantised_base(tiny_folder, tmp_path, capsys):
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "lora", quantize="nf4")
    assert exit_status(lambda: predict_command.main([str(folder), "The IL-2 gene ."])) == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    tuned, row = load(folder), {"tokens": ["The", "IL-2", "gene", "."]}
    assert [predicted] == predict(tuned.model, tuned.encoder, [row])
    assert quantized_layers(tuned.model)


def test_full_tuning_refuses_a_quantised_base(tiny_folder, tmp_path):
    message = "--quantize needs a frozen base; the method full trains all weights"
    with pytest.raises(InputError, match=message):
        make_settings(task="ner", method="full", quantize="nf4")
    make_settings(task="ner", method="full", quantize="none")
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "full")
    assert exit_status(lambda: evaluate.main([str(folder), "--quantize", "int8"])) == 2


def test_an_adapter_is_trained_further_on_a_base_that_is_stored_the_same(tiny_folder, tmp_path):
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "lora", quantize="nf4")
    assert settings_from({"adapter": str(folder)}).quantize == "nf4"
    assert settings_from({"adapter": str(folder), "quantize": "none"}).quantize == "none"


def test_the_line_on_the_model_has_the_bytes_of_the_base(tiny_folder, tmp_path):
    for kind in ("none", *KINDS):
        job, lines = make_job(tmp_path, tiny_folder, task="ner", quantize=kind), []
        output = job.output._replace(print_line=lines.append)
        describe(dataclasses.replace(job, output=output))
        (line,) = (line for line in lines if line.startswith("model"))
        size = f"{job.tuned.base.weight_bytes / 1e6:.1f} MB"
        assert f"{job.total:,} parameters, fp32 on" in line or f", {kind} in {size}, fp32" in line
        assert (size in line) == (kind != "none")


def test_the_runs_of_a_study_share_no_base_that_is_stored_differently(tiny_folder, tmp_path):
    kept = shared.Shared(tmp_path)
    bases = [
        kept.base_for(
            make_settings(task="ner", method="lora", model=str(tiny_folder), quantize=kind)
        )
        for kind in ("nf4", "none", "int8")
    ]
    assert [base.quantize for base in bases] == ["nf4", "none", "int8"]
    depends_on = [
        shared.computing_conditions(
            load_untuned(
                make_settings(task="ner", method="lora", model=str(tiny_folder), quantize=kind),
                base=base,
            )
        )
        for kind, base in zip(("nf4", "none", "int8"), bases, strict=True)
    ]
    assert depends_on[0] != depends_on[1] != depends_on[2]


# ---- Generated text


@pytest.mark.parametrize("kind", KINDS)
def test_generation_computes_each_weight_once_for_a_small_base(tiny_folder, monkeypatch, kind):
    settings = make_settings(task="sentiment", method="lora", model=str(tiny_folder), quantize=kind)
    tuned, calls, results = load_untuned(settings), [], []
    examples = tuned.encoder(load_splits(TASKS["sentiment"], "sample").test[:5])
    compute = QuantizedLinear.compute_weight
    monkeypatch.setattr(
        QuantizedLinear, "compute_weight", lambda self: calls.append(1) or compute(self)
    )
    for largest in (generation.LARGEST_KEPT, 0):
        monkeypatch.setattr(generation, "LARGEST_KEPT", largest)
        results.append(generation.evaluate_generated(tuned.model, tuned.encoder, examples))
        results.append(len(calls))
        calls.clear()
    assert results[0] == results[2] and any(results[0].generated)
    assert results[1] == 24 < results[3] // 2
    assert not [layer for layer in quantized_layers(tuned.model) if "compute_weight" in vars(layer)]


# ---- Killed and resumed


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_on_a_quantised_base_has_the_same_result(tiny_folder, kind):
    argv = ["--task", "ner", "--method", "lora", "--model", str(tiny_folder), "--dropout", "0.2"]
    argv += ["--precision", "fp16" if kind == "int8" else "fp32", "--quantize", kind, *SMALL]
    assert end(start([*argv, "--out", "whole"])) == 0
    process = start([*argv, "--out", "run"])
    assert killed_when(process, lambda: glob("run/checkpoints/step-*"))
    resumed("run", result(Path("whole")))


# ---- Several runs on one base


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_has_the_predictions_of_each_run_alone(tiny_folder, tmp_path, kind):
    flags = {"quantize": kind}
    folders = {
        "tags": make_run(tmp_path / "tags", tiny_folder, "ner", "lora", bias="all", **flags),
        "label": make_run(tmp_path / "label", tiny_folder, "sentiment", "lora+prompt", **flags),
        "pair": make_run(tmp_path / "pair", tiny_folder, "similarity", "prompt", **flags),
    }
    runs, rows = AdapterSet(folders), []
    for name, folder in folders.items():
        rows += [
            {"run": name, **row}
            for row in load_splits(TASKS[settings_in(folder).task], "sample").test[:4]
        ]
    found = runs.evaluate(rows)
    for name, folder in folders.items():
        alone = AdapterSet([folder]).evaluate(
            [row | {"run": folder.name} for row in rows if row["run"] == name]
        )
        indices = [index for index, row in enumerate(rows) if row["run"] == name]
        assert [found.predicted[index] for index in indices] == alone.predicted
        for index, expected in zip(indices, alone.probabilities, strict=True):
            assert found.probabilities[index] == pytest.approx(expected, abs=1e-5)
    codes = {id(layer.codes) for name in runs for layer in quantized_layers(runs[name].model)}
    assert codes == {id(layer.codes) for layer in quantized_layers(runs.base.trunk)}


def test_runs_on_bases_that_are_stored_differently_are_not_mixed(tiny_folder, tmp_path):
    first = make_run(tmp_path / "first", tiny_folder, "ner", "lora", quantize="nf4")
    second = make_run(tmp_path / "second", tiny_folder, "ner", "lora")
    message = "second was trained with --quantize none, but the base here was loaded with nf4"
    with pytest.raises(InputError, match=message):
        AdapterSet([first, second])
