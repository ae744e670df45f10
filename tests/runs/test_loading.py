"""A run is loaded only on its own base: weights, what is computed with them, and the tokenizer."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from base_files import change_config, change_tensors
from trained import make_run

import evaluate
from neo_peft.commands import predict
from neo_peft.commands.train import parse_flags as parse_train_flags
from neo_peft.defaults import BUNDLED_MODEL
from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.runs import loading, origin
from neo_peft.runs.folder import read_record, write_record
from neo_peft.system.exit_status import exit_status


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """Return a copy of the tiny model's folder, which a test can change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def lowercase(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(content))


# No tensor's shape or value changes.
CHANGES = {
    "num_heads was 3, and is 4": lambda folder: change_config(folder, num_heads=4),
    "window_size was 11, and is 12": lambda folder: change_config(folder, window_size=12),
    "layer_norm_epsilon was 1e-05, and is 0.0001": lambda folder: change_config(
        folder, layer_norm_epsilon=1e-4
    ),
    "attention_layers was ['global', 'local', 'global', 'local'], and is ['local', 'local', "
    "'global', 'local']": lambda folder: change_config(
        folder, attention_layers=["local", "local", "global", "local"]
    ),
    "eos_token_id was 0, and is 1": lambda folder: change_config(folder, eos_token_id=1),
    "its tokenizer splits texts differently": lowercase,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_base_with_the_same_weights_that_computes_something_else_is_refused(
    folder, tmp_path, capsys, what
):
    run = make_run(tmp_path / "run", folder, "sentiment", "lora")
    assert not loading.load(run).notes
    fingerprint = load_base(str(folder)).fingerprint
    CHANGES[what](folder)
    assert load_base(str(folder)).fingerprint == fingerprint
    message = f"run was trained on the weights of {folder}, but {what}: put the base's files back"
    with pytest.raises(InputError, match=re.escape(message)):
        loading.load(run)
    with pytest.raises(InputError, match=re.escape(message)):
        loading.load_to_train(parse_train_flags(["--adapter", "run"]))
    for command in (
        lambda: evaluate.main(["run"]),
        lambda: predict.main(["--run", "run", "Profit rose."]),
    ):
        assert exit_status(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_run_of_an_older_version_is_loaded_with_a_note(folder, tmp_path):
    run = make_run(tmp_path / "run", folder, "sentiment", "lora")
    record = read_record(run)
    record["base"] = {"fingerprint": record["base"]["fingerprint"], "parameters": 7}
    write_record(run, record)
    (note,) = loading.load(run).notes
    assert "does not record these values of its base: attention_layers, eos_token_id" in note


# ---- The same base in another precision

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def converted(folder, target, dtype) -> Path:
    """Return a copy of a folder with its weights in another precision."""
    shutil.copytree(folder, target)
    change_tensors(
        target, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()})
    )
    return target


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("trained_on_half", [False, True])
def test_the_same_base_in_another_precision_is_named_as_that(
    folder, tmp_path, name, trained_on_half
):
    half = converted(folder, tmp_path / "half", HALVES[name])
    own, other, dtypes = folder, half, ("float32", name)
    if trained_on_half:
        own, other, dtypes = half, folder, dtypes[::-1]
    run = make_run(tmp_path / "run", own, "ner", "lora")
    message = (
        f"run was trained on the same base in another precision than {other}: its weights were "
        f"stored as {dtypes[0]}, and are {dtypes[1]} there, which gives other results; name the "
        f"{dtypes[0]} one with --model"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        loading.load(run, loading.settings_in(run, str(other)))


def test_another_base_in_another_precision_is_another_base(folder, tmp_path):
    run = make_run(tmp_path / "run", folder, "ner", "lora")
    half = converted(folder, tmp_path / "half", torch.float16)
    change_tensors(half, lambda tensors: tensors["transformer.ln_f.bias"].add_(1))
    with pytest.raises(InputError, match="run was trained on another base than"):
        loading.load(run, loading.settings_in(run, str(half)))


@pytest.mark.parametrize("spelling", [BUNDLED_MODEL, str(BUNDLED[BUNDLED_MODEL])])
def test_a_run_on_a_former_bundled_model_is_refused_with_the_reason(
    folder, tmp_path, monkeypatch, spelling
):
    run = make_run(tmp_path / "run", folder, "ner", "lora")
    fingerprint = read_record(run)["base"]["fingerprint"]
    monkeypatch.setattr(origin, "FORMER_BUNDLED", (fingerprint,))
    message = (
        "run was trained on the neo-mini of an earlier version of neo_peft; the bundled model "
        "changed since then: train again"
    )
    with pytest.raises(InputError, match=message):
        loading.load(run, loading.settings_in(run, spelling))


def test_with_another_model_a_former_bundled_model_is_any_other_base(folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", folder, "ner", "lora")
    fingerprint = read_record(run)["base"]["fingerprint"]
    monkeypatch.setattr(origin, "FORMER_BUNDLED", (fingerprint,))
    assert not loading.load(run).notes
    change_tensors(folder, lambda tensors: tensors["transformer.ln_f.bias"].add_(1))
    message = f"run was trained on another base than {folder}: the fingerprint of its base is "
    with pytest.raises(InputError, match=re.escape(message + fingerprint[:12])):
        loading.load(run)
