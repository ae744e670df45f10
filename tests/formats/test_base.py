"""Bases from folders and from the hub: what is read, what is refused with which words, and what
names the weights."""

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
)

from neo_peft.errors import InputError
from neo_peft.formats import base
from neo_peft.formats.base import (
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    load_base,
    load_tokenizer,
    read_config,
)
from neo_peft.system import hub

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
SHARDED = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def change_config(folder: Path, removed: tuple[str, ...] = (), **entries) -> None:
    config = json.loads((folder / "config.json").read_text()) | entries
    for name in removed:
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path) -> None:
    """Split a folder's weights into SHARDED and their index, by turns: their order over the files
    is another one."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {name: SHARDED[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in SHARDED:
        save_file(
            {name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file
        )
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_refused(model: str | Path, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        load_base(str(model))


# ---- What is loaded


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [torch.float32, torch.float16, torch.bfloat16])
def test_matrices_are_held_as_asked_norms_and_biases_in_fp32_and_all_is_frozen(
    folder, stored, asked
):
    change_tensors(
        folder, lambda t: t.update({name: tensor.to(stored) for name, tensor in t.items()})
    )
    loaded, expected = load_base(str(folder), asked).trunk, load_file(folder / WEIGHTS)
    parameters = dict(loaded.named_parameters(prefix="transformer"))
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        held = asked if expected[name].dim() == 2 else torch.float32
        assert parameter.dtype == held and torch.equal(parameter, expected[name].to(held)), name
        assert not parameter.requires_grad
    assert not loaded.training


@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_only_what_is_cast_is_copied_out_of_the_file(tiny_folder, asked):
    loaded = load_base(str(tiny_folder), asked).trunk
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        range(*(int(end, 16) for end in entry[0].split("-")))
        for entry in maps
        if entry[-1].endswith(WEIGHTS)
    ]
    for name, parameter in loaded.named_parameters():
        in_the_file = any(parameter.data_ptr() in addresses for addresses in mapped)
        assert in_the_file == (asked == torch.float32 or parameter.dim() == 1), name


def test_training_never_writes_the_file_and_a_new_file_never_changes_what_was_loaded(
    tiny_folder, folder
):
    content, plain = (folder / WEIGHTS).read_bytes(), load_file(tiny_folder / WEIGHTS)
    trunk = load_base(str(folder)).trunk
    for parameter in trunk.parameters():
        parameter.data += 1
    assert (folder / WEIGHTS).read_bytes() == content
    trunk = load_base(str(folder)).trunk
    save_file({name: torch.zeros(2) for name in plain}, folder / "new")
    (folder / "new").replace(folder / WEIGHTS)
    for name, parameter in trunk.named_parameters(prefix="transformer"):
        assert torch.equal(parameter, plain[name]), name


def test_neo_mini_has_its_published_sizes():
    loaded = load_base("neo-mini")
    config = loaded.trunk.config
    assert loaded.parameters == sum(p.numel() for p in loaded.trunk.parameters()) == 5_319_168
    assert (config.hidden_size, config.num_layers, config.num_heads, config.vocab_size) == (
        256,
        4,
        8,
        8192,
    )
    assert (config.max_position_embeddings, config.window_size, config.eos_token_id) == (256, 64, 0)
    assert config.intermediate_size == 4 * 256 and config.layer_norm_epsilon == 1e-5
    assert loaded.folder == base.BUNDLED["neo-mini"] and loaded.notes == []


@pytest.mark.parametrize("kept", ["attention_layers", "attention_types"])
def test_layers_are_read_from_either_entry(folder, kept):
    change_config(folder, removed=tuple({"attention_layers", "attention_types"} - {kept}))
    assert read_config(folder).attention_layers == ("global", "local", "global", "local")


def test_types_are_repeated_in_their_order(folder):
    change_config(
        folder,
        removed=("attention_layers", "num_layers"),
        attention_types=[[["local"], 2], [["global", "local"], 1]],
    )
    assert read_config(folder).attention_layers == ("local", "local", "global", "local")


def test_what_a_config_leaves_out_is_transformers_own_default(folder):
    from transformers import GPTNeoConfig

    (folder / "config.json").write_text(
        '{"model_type": "gpt_neo", "attention_types": [[["global", "local"], 12]]}'
    )
    ours, theirs = read_config(folder), GPTNeoConfig()
    for name in (
        "vocab_size",
        "hidden_size",
        "num_layers",
        "num_heads",
        "max_position_embeddings",
        "window_size",
        "layer_norm_epsilon",
        "initializer_range",
        "eos_token_id",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (
        ours.intermediate_size == 4 * theirs.hidden_size
        and list(ours.attention_layers) == theirs.attention_layers
    )


def test_of_several_end_tokens_the_first_counts(folder):
    change_config(folder, eos_token_id=[9, 4])
    assert read_config(folder).eos_token_id == 9


# ---- Variants that are known, and read


def unprefixed(folder):
    change_tensors(
        folder,
        lambda t: [t.update({name.removeprefix("transformer."): t.pop(name)}) for name in list(t)],
    )


def equal_lm_head(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t[WTE].clone()}))


def lm_head_alone(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop(WTE)}))


def old_masks(folder):
    causal = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
    for layer in range(4):
        name = f"transformer.h.{layer}.attn.attention."
        added = {name + "bias": causal.clone(), name + "masked_bias": torch.tensor(-1e9)}
        change_tensors(folder, lambda t, added=added: t.update(added))


@pytest.mark.parametrize("variant", [shard, unprefixed, equal_lm_head, lm_head_alone, old_masks])
def test_a_known_variant_is_the_same_model_with_the_same_fingerprint(tiny_folder, folder, variant):
    plain = load_base(str(tiny_folder))
    variant(folder)
    varied = load_base(str(folder))
    assert (
        varied.fingerprint == plain.fingerprint
        and varied.parameters == plain.parameters
        and varied.notes == []
    )
    for (name, ours), theirs in zip(
        varied.trunk.named_parameters(), plain.trunk.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("published", "names"),
    [
        (GPTNeoForTokenClassification, ["classifier.bias", "classifier.weight"]),
        (GPTNeoForSequenceClassification, ["score.weight"]),
    ],
)
def test_a_head_of_transformers_is_left_out_with_a_note(tiny_folder, folder, published, names):
    published.from_pretrained(tiny_folder, dtype=torch.float32, num_labels=5).save_pretrained(
        folder
    )
    loaded = load_base(str(folder))
    assert loaded.notes == [
        f"{folder}: its {name} was left out; a head of one's own starts anew" for name in names
    ]
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint


#
# ---- Refusals


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "gpt2"}, "config.json: model_type is 'gpt2'; only gpt_neo is known here"),
        ({"model_type": None}, "model_type is None; only gpt_neo"),
        (
            {"tie_word_embeddings": False},
            "untied embeddings (tie_word_embeddings) are not GPT-Neo's",
        ),
        (
            {"activation_function": "gelu"},
            "activation_function is 'gelu'; only gelu_new is known here",
        ),
        ({"embed_dropout": 0.1}, "embed_dropout is 0.1; only 0, GPT-Neo's own, is known here"),
        ({"attention_dropout": 0.2}, "attention_dropout is 0.2; only 0"),
        ({"resid_dropout": 1}, "resid_dropout is 1; only 0"),
        ({"num_layers": 5}, "num_layers is 5, but 4 attention layers are listed"),
        (
            {"attention_layers": ["global", "local", "sparse", "local"]},
            "only global and local are known",
        ),
        ({"attention_layers": []}, "attention layers are []; only global and local are known"),
        ({"attention_layers": 3}, "config.json is not a GPT-Neo's: TypeError"),
        (
            {"attention_layers": None, "attention_types": [["global"]]},
            "config.json is not a GPT-Neo's: ValueError",
        ),
        ({"num_heads": 5}, "num_heads 5, "),
        ({"window_size": 0}, "do not fit together"),
        ({"vocab_size": "many"}, "config.json: vocab_size is 'many'; expected a number"),
        (
            {"eos_token_id": None},
            "config.json: eos_token_id is None; expected a token below vocab_size, 8192",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_by_name(folder, entries, words):
    change_config(folder, **entries)
    assert_refused(folder, words)


def test_a_config_without_layers_is_refused(folder):
    change_config(folder, removed=("attention_layers", "attention_types"))
    assert_refused(folder, "config.json is not a GPT-Neo's: KeyError: 'attention_types'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json does not exist"),
        ("{", "config.json is not a JSON file"),
        ("[]", "holds no JSON object"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(folder, content, words):
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    assert_refused(folder, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("transformer.ln_f.bias"),
            "the weights lack 1 tensors, the first is transformer.ln_f.bias",
        ),
        (
            lambda t: t.update(extra=torch.ones(2)),
            "the weights also hold 1 tensors, the first is transformer.extra",
        ),
        (
            lambda t: t.update({"transformer.h.4.ln_1.bias": torch.ones(24)}),
            "the first is transformer.h.4.ln_1.bias",
        ),
        (
            lambda t: t.update({"lm_head.bias": torch.ones(8192)}),
            "the first is transformer.lm_head.bias",
        ),
        (
            lambda t: t.update({WPE: torch.ones(7, 24)}),
            "transformer.wpe.weight has the shape (7, 24); config.json asks for (128, 24)",
        ),
        (
            lambda t: t.update({"wte.weight": t[WTE].clone()}),
            "the weights hold transformer.wte.weight twice",
        ),
        (
            lambda t: t.update({"lm_head.weight": t[WTE] + 1}),
            "lm_head.weight differs from wte: untied embeddings",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(3, 24)}),
            "lm_head.weight differs from wte",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensors_name(folder, change, words):
    change_tensors(folder, change)
    assert_refused(folder, words)


def test_a_folder_without_weights_says_what_it_needs(folder):
    (folder / WEIGHTS).unlink()
    assert_refused(
        folder, f"{folder} holds no weights: it needs model.safetensors, or {INDEX} with its shards"
    )


def test_pickled_weights_are_refused_with_the_line_that_converts_them(tiny_folder, folder):
    (folder / WEIGHTS).unlink()
    torch.save(load_file(tiny_folder / WEIGHTS), folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match="holds only pickled weights, which are never read here; convert them"
    ) as error:
        load_base(str(folder))
    # the line does what it promises
    exec(re.search(r'python -c "(.*)"$', str(error.value)).group(1), {})
    assert load_base(str(folder)).fingerprint == load_base(str(tiny_folder)).fingerprint


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / SHARDED[1]).unlink()
    assert_refused(folder, f"{folder / SHARDED[1]} is missing; {INDEX} names it")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "deeper/x", ".."])
def test_an_index_may_name_no_file_outside_its_folder(folder, name):
    (folder / WEIGHTS).rename(folder.parent / "x")
    (folder / INDEX).write_text(json.dumps({"weight_map": {WTE: name}}))
    assert_refused(folder, f"{INDEX} names {name}, which is not a file of its own folder")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [WEIGHTS]}])
def test_an_index_without_a_weight_map_is_refused(folder, index):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, f"{INDEX} has no weight_map")


@pytest.mark.parametrize("keep", [0, 5, 3000, -1])
def test_a_broken_safetensors_file_is_refused(folder, keep):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:keep])
    assert_refused(folder, f"{folder / WEIGHTS} is not a readable safetensors file")


def test_a_folder_without_a_tokenizer_says_what_it_needs(folder):
    (folder / "tokenizer.json").unlink()
    assert_refused(
        folder, f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
    )


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(folder, f"{folder}: the tokenizer cannot be read: ")


@pytest.mark.parametrize(
    "model",
    ["a/b/c", "a/b/c@v1", "a/b@", "./nothing", "../nothing", "/nothing", "~/nothing", "a_file"],
)
def test_a_model_that_is_no_folder_is_refused_without_asking_the_hub(tmp_path, monkeypatch, model):
    monkeypatch.setattr(hub, "hub_file", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "a_file").touch()
    assert_refused(
        model,
        f"--model {model} is no folder; it may be neo-mini, a folder, or a hub id (owner/name",
    )


#
# ---- Tokenizers


@pytest.fixture
def vocabulary(tiny_folder, tmp_path) -> Path:
    """The tiny tokenizer as GPT-2's two files, which is how the larger GPT-Neos are published."""
    model = json.loads((tiny_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "vocabulary" / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n"
    )
    return tmp_path / "vocabulary"


def test_a_tokenizer_saved_with_a_prefix_space_adds_none_here(tiny_folder, vocabulary, tmp_path):
    GPT2Tokenizer.from_pretrained(vocabulary, add_prefix_space=True).save_pretrained(
        tmp_path / "spaced"
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path / "spaced")
    assert theirs.encode("a") == theirs.encode(" a")  # the trap is set
    ours, plain = load_tokenizer(tmp_path / "spaced"), load_tokenizer(tiny_folder)
    assert ours.encode("a") != ours.encode(" a")
    for text in ("a", " a", " IL-2 gene", "Profit rose.", "  two", "Zürich"):
        assert ours.encode(text) == plain.encode(text) and ours.decode(ours.encode(text)) == text


def test_a_tokenizer_is_read_from_vocab_and_merges(folder, vocabulary):
    plain = load_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, folder)
    text = " Expression of the IL-2 gene"
    assert load_base(str(folder)).tokenizer.encode(text) == plain.encode(text)


#
# ---- Fingerprints


def file_parts(path: Path) -> dict[str, tuple[dict, bytes]]:
    """Read a safetensors file by its published layout: the header's length, the header, the
    bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    return {
        name: (entry, data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name[0] != "_"
    }


def test_the_fingerprint_is_its_definition_written_out(folder):
    change_tensors(folder, lambda t: t.update({WPE: t[WPE].half()}))
    parts, whole = file_parts(folder / WEIGHTS), hashlib.sha256()
    for name in sorted(parts):
        entry, data = parts[name]
        blocks = [data[start : start + 4096] for start in range(0, len(data), 4096)]
        chosen = sorted({i * (len(blocks) - 1) // 63 for i in range(64)})
        dtype = {"F32": "torch.float32", "F16": "torch.float16"}[entry["dtype"]]
        head = f"{name} {tuple(entry['shape'])} {dtype}".encode()
        whole.update(hashlib.sha256(head + b"".join(blocks[i] for i in chosen)).digest())
    assert load_base(str(folder)).fingerprint == whole.hexdigest()


def flip(tensor: Tensor, byte: int) -> None:
    tensor.view(-1).view(torch.uint8)[byte] ^= 1


def test_one_changed_byte_in_a_sampled_block_is_another_fingerprint(tiny_folder, folder):
    # wte holds 192 blocks, of which 64 are read: the first, the fourth, the last. A bias is read
    # whole.
    plain, size = load_base(str(tiny_folder)).fingerprint, 8192 * 24 * 4
    seen = {plain}
    for name, byte in [
        (WTE, 0),
        (WTE, 3 * 4096),
        (WTE, size - 1),
        ("transformer.h.3.mlp.c_fc.bias", 40 * 4 - 1),
    ]:
        change_tensors(folder, lambda t, name=name, byte=byte: flip(t[name], byte))
        seen.add(load_base(str(folder)).fingerprint)
        change_tensors(folder, lambda t, name=name, byte=byte: flip(t[name], byte))
    assert len(seen) == 5 and load_base(str(folder)).fingerprint == plain


def test_the_fingerprint_reads_64_blocks_of_a_large_tensor():
    # Quick at 5 GB: it finds mistakes, not attackers.
    large = torch.zeros(300 * 1024 + 5)  # 300 blocks of 4 KiB, and a part of one
    plain, seen = base._digest("x", large), 0
    for block in range(301):
        flip(large, block * 4096)
        seen += base._digest("x", large) != plain
        flip(large, block * 4096)
    assert seen == 64


@pytest.mark.parametrize("other", [(torch.float16, (6, 4)), (torch.bfloat16, (4, 6))])
def test_another_shape_or_dtype_of_the_same_bytes_is_another_fingerprint(other):
    # Zeros are the same bytes in each: only the name, the shape and the dtype can tell.
    dtype, shape = other
    zeros = torch.zeros(4, 6, dtype=torch.float16)
    assert base._digest("x", zeros) == base._digest("x", zeros.clone())
    assert base._digest("x", zeros) != base._digest("x", torch.zeros(shape, dtype=dtype))
    assert base._digest("x", zeros) != base._digest("y", zeros)


def test_another_stored_dtype_or_shape_is_another_fingerprint(tiny_folder, folder):
    plain = load_base(str(tiny_folder)).fingerprint
    change_tensors(folder, lambda t: t.update({WPE: t[WPE][:100].clone()}))
    change_config(folder, max_position_embeddings=100)
    shorter = load_base(str(folder)).fingerprint
    change_tensors(folder, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    halved = load_base(str(folder)).fingerprint
    assert len({plain, shorter, halved}) == 3
    # What it is held in is no matter: the file is the same.
    assert load_base(str(folder), torch.bfloat16).fingerprint == halved


#
# ---- The hub


@pytest.fixture
def asked(folder, monkeypatch) -> list[str]:
    """What the hub is asked for; it serves the folder, which also holds what nobody needs."""
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


def test_from_the_hub_come_config_tokenizer_and_one_file_of_weights(tiny_folder, folder, asked):
    weights = (folder / WEIGHTS).read_bytes()
    shard(folder)  # a repository that holds both
    (folder / WEIGHTS).write_bytes(weights)
    loaded = load_base("owner/tiny")
    assert sorted(asked) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS])
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint
    assert loaded.tokenizer.encode(" gene") == load_tokenizer(tiny_folder).encode(" gene")


def test_from_the_hub_shards_come_by_their_index_each_once(tiny_folder, folder, asked):
    shard(folder)
    (folder / "model-00003-of-00002.safetensors").write_text("in no index")
    loaded = load_base("owner/tiny")
    assert sorted(asked) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDED])
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint


def test_from_the_hub_every_file_is_of_the_named_revision(folder, monkeypatch):
    shard(folder)
    seen = []

    def hub_file(repository, filename, kind="model", revision=None):
        seen.append((repository, revision))
        if not (folder / filename).exists():
            raise FileNotFoundError
        return folder / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    load_base("owner/tiny@refs/pr/1")
    assert seen == [("owner/tiny", "refs/pr/1")] * len(
        ["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDED]
    )


def test_from_the_hub_pickled_weights_are_refused_with_the_line_that_converts_them(
    tiny_folder, folder, asked
):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        InputError, match=f"owner/tiny holds neither {WEIGHTS} nor {INDEX}; pickled weights"
    ) as error:
        load_base("owner/tiny")
    assert sorted(asked) == sorted(["config.json", *TOKENIZER_FILES, WEIGHTS, INDEX])
    line = re.search(r'python -c "(.*)"$', str(error.value)).group(1)
    exec(line.replace("owner/tiny", str(folder)), {})  # the line does what it promises
    converted, tiny = load_base("converted"), load_base(str(tiny_folder))
    assert converted.fingerprint == tiny.fingerprint
    assert converted.tokenizer.encode(" gene") == tiny.tokenizer.encode(" gene")


def test_from_the_hub_no_weights_are_fetched_without_a_tokenizer(folder, asked):
    (folder / "tokenizer.json").unlink()
    assert_refused(
        "owner/tiny",
        f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt",
    )
    assert sorted(asked) == sorted(["config.json", *TOKENIZER_FILES])


def test_a_folder_may_have_an_at_sign_in_its_name(folder):
    folder = folder.rename(folder.with_name("tiny@v1"))
    assert load_base(str(folder)).folder == folder
    assert base.split_revision(str(folder)) == (str(folder), None)


def test_of_another_model_on_the_hub_the_config_alone_is_fetched(folder, asked):
    change_config(folder, model_type="llama")
    assert_refused("owner/tiny", "model_type is 'llama'; only gpt_neo is known here")
    assert asked == ["config.json"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, f"{INDEX} has no weight_map"),
        ({"weight_map": {WTE: "../x"}}, f"{INDEX} names ../x, which is not a file of"),
    ],
)
def test_a_hub_index_is_checked_before_it_is_followed(folder, asked, index, words):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused("owner/tiny", words)
    assert asked[-1] == INDEX


def test_bundled_and_local_models_never_ask_the_hub(tiny_folder, monkeypatch):
    monkeypatch.setattr(hub, "hub_file", lambda *_: pytest.fail("the hub was asked"))
    assert (
        load_base("neo-mini").folder.name == "neo-mini"
        and load_base(str(tiny_folder)).folder == tiny_folder
    )
