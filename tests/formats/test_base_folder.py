"""Find the files of a base model in a folder or on the hub, and refuse incomplete ones."""

import json
import re

import pytest
import torch
from base_files import SHARDS, WTE, assert_refused, change_config, shard
from safetensors.torch import load_file

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import INDEX, TOKENIZER_FILES, WEIGHTS, split_revision
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.system import hub

# ---- Folders


def test_a_folder_without_weights_is_refused_with_the_files_it_needs(folder):
    (folder / WEIGHTS).unlink()
    assert_refused(
        folder, f"{folder} has no weights: it needs model.safetensors, or {INDEX} with its shards"
    )


def test_pickled_weights_are_refused_with_a_command_that_converts_them(tiny_folder, folder):
    (folder / WEIGHTS).unlink()
    torch.save(load_file(tiny_folder / WEIGHTS), folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match="has only pickled weights, which are never loaded; convert them"
    ) as error:
        load_base(str(folder))
    # run the command of the message
    exec(re.search(r'python -c "(.*)"$', str(error.value)).group(1), {})
    assert load_base(str(folder)).fingerprint == load_base(str(tiny_folder)).fingerprint


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / SHARDS[1]).unlink()
    assert_refused(folder, f"{folder / SHARDS[1]} is missing; {INDEX} lists it")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "deeper/x", ".."])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(folder, name):
    (folder / WEIGHTS).rename(folder.parent / "x")
    (folder / INDEX).write_text(json.dumps({"weight_map": {WTE: name}}))
    assert_refused(folder, f"{INDEX} lists {name}, which is not a file of its own folder")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [WEIGHTS]}])
def test_an_index_without_a_weight_map_is_refused(folder, index):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, f"{INDEX} has no weight_map")


def test_a_folder_without_a_tokenizer_is_refused_with_the_files_it_needs(folder):
    (folder / "tokenizer.json").unlink()
    assert_refused(
        folder, f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
    )


@pytest.mark.parametrize(
    "model",
    ["a/b/c", "a/b/c@v1", "a/b@", "./nothing", "../nothing", "/nothing", "~/nothing", "a_file"],
)
def test_a_model_that_is_no_folder_and_no_hub_id_is_refused_without_a_request(
    tmp_path, monkeypatch, model
):
    monkeypatch.setattr(hub, "hub_file", lambda *_: pytest.fail("a request to the hub"))
    (tmp_path / "a_file").touch()
    assert_refused(
        model,
        f"--model {model} is not a folder; it can be neo-mini, a folder, or a hub id (owner/name",
    )


def test_a_folder_can_have_an_at_sign_in_its_name(folder):
    folder = folder.rename(folder.with_name("tiny@v1"))
    assert load_base(str(folder)).folder == folder
    assert split_revision(str(folder)) == (str(folder), None)


# ---- The hub


@pytest.fixture
def requested(folder, monkeypatch) -> list[str]:
    """Replace the hub by a folder, which also has files that are not needed; return the list of
    requested files."""
    files = []
    for name in (
        "pytorch_model.bin",
        "flax_model.msgpack",
        "generation_config.json",
        "README.md",
        "model.onnx",
    ):
        (folder / name).write_text("never fetched")

    def hub_file(repository, filename, kind="model", revision=None):
        assert (repository, kind, revision) == ("owner/tiny", "model", None)
        files.append(filename)
        if not (folder / filename).exists():
            raise FileNotFoundError(f"{repository} has no file {filename}")
        return folder / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    return files


def test_from_the_hub_config_tokenizer_and_one_file_of_weights_are_fetched(
    tiny_folder, folder, requested
):
    weights = (folder / WEIGHTS).read_bytes()
    shard(folder)  # a repository with shards and with one file
    (folder / WEIGHTS).write_bytes(weights)
    loaded = load_base("owner/tiny")
    assert sorted(requested) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS])
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint
    assert loaded.tokenizer.encode(" gene") == load_tokenizer(tiny_folder).encode(" gene")


def test_an_adapter_on_the_hub_is_no_base_and_its_base_is_named(folder, requested):
    (folder / "config.json").rename(folder / "adapter_config.json")
    change = {"base_model_name_or_path": "EleutherAI/gpt-neo-125m", "revision": "v1"}
    (folder / "adapter_config.json").write_text(json.dumps(change))
    assert_refused(
        "owner/tiny",
        "--model owner/tiny is an adapter, not a base model: download it into a folder, for "
        "train.py --adapter or evaluate.py; its base is EleutherAI/gpt-neo-125m@v1, which --model",
    )
    (folder / "adapter_config.json").unlink()
    assert_refused("owner/tiny", "owner/tiny has no file config.json, so it is no model")


def test_from_the_hub_each_shard_of_the_index_is_fetched_once(tiny_folder, folder, requested):
    shard(folder)
    (folder / "model-00003-of-00002.safetensors").write_text("in no index")
    loaded = load_base("owner/tiny")
    assert sorted(requested) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDS])
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint


def test_from_the_hub_every_file_is_fetched_from_the_given_revision(folder, monkeypatch):
    shard(folder)
    requests = []

    def hub_file(repository, filename, kind="model", revision=None):
        requests.append((repository, revision))
        if not (folder / filename).exists():
            raise FileNotFoundError
        return folder / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    load_base("owner/tiny@refs/pr/1")
    assert requests == [("owner/tiny", "refs/pr/1")] * len(
        ["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDS]
    )


def test_from_the_hub_pickled_weights_are_refused_with_a_command_that_converts_them(
    tiny_folder, folder, requested
):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        InputError, match=f"owner/tiny has neither {WEIGHTS} nor {INDEX}; pickled weights"
    ) as error:
        load_base("owner/tiny")
    assert sorted(requested) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX])
    command = re.search(r'python -c "(.*)"$', str(error.value)).group(1)
    exec(command.replace("owner/tiny", str(folder)), {})
    converted, tiny = load_base("converted"), load_base(str(tiny_folder))
    assert converted.fingerprint == tiny.fingerprint
    assert converted.tokenizer.encode(" gene") == tiny.tokenizer.encode(" gene")


def test_from_the_hub_no_weights_are_fetched_without_a_tokenizer(folder, requested):
    (folder / "tokenizer.json").unlink()
    assert_refused(
        "owner/tiny",
        f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt",
    )
    assert sorted(requested) == sorted(["config.json", *TOKENIZER_FILES])


def test_from_the_hub_only_the_config_of_another_model_is_fetched(folder, requested):
    change_config(folder, model_type="llama")
    assert_refused("owner/tiny", "model_type is 'llama'; only gpt_neo is supported")
    assert requested == ["config.json"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, f"{INDEX} has no weight_map"),
        ({"weight_map": {WTE: "../x"}}, f"{INDEX} lists ../x, which is not a file of"),
    ],
)
def test_a_hub_index_is_checked_before_it_is_followed(folder, requested, index, message):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused("owner/tiny", message)
    assert requested[-1] == INDEX


def test_bundled_and_local_models_make_no_request_to_the_hub(tiny_folder, monkeypatch):
    monkeypatch.setattr(hub, "hub_file", lambda *_: pytest.fail("a request to the hub"))
    assert (
        load_base("neo-mini").folder.name == "neo-mini"
        and load_base(str(tiny_folder)).folder == tiny_folder
    )
