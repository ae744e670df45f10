"""Read config.json: layers, defaults, and error messages."""

import json
import random

import pytest
from base_files import assert_refused, change_config

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.formats.base_config import NOT_SHOWN, read_config


@pytest.mark.parametrize("removed", ["attention_types", "attention_layers"])
def test_layers_are_read_from_either_entry(folder, removed):
    change_config(folder, removed=(removed,))
    assert read_config(folder).attention_layers == ("global", "local", "global", "local")


def test_attention_types_are_repeated_in_their_order(folder):
    change_config(
        folder,
        removed=("attention_layers", "num_layers"),
        attention_types=[[["local"], 2], [["global", "local"], 1]],
    )
    assert read_config(folder).attention_layers == ("local", "local", "global", "local")


@pytest.mark.parametrize("both", [False, True])
def test_an_alias_is_read_as_transformers_reads_it(folder, both):
    """Three heads of 16 or six of 8 have the same tensors: no shape tells them apart."""
    from transformers import GPTNeoConfig

    change_config(
        folder,
        removed=() if both else ("num_heads", "num_layers"),
        num_attention_heads=6,
        num_hidden_layers=4,
    )
    ours, theirs = read_config(folder), GPTNeoConfig.from_pretrained(folder)
    assert (ours.num_heads, ours.num_layers) == (theirs.num_heads, theirs.num_layers) == (6, 4)


def test_a_missing_entry_has_the_default_of_transformers(folder):
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


def test_the_first_of_several_end_tokens_is_used(folder):
    change_config(folder, eos_token_id=[9, 4])
    assert read_config(folder).eos_token_id == 9


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "gpt2"}, "config.json: model_type is 'gpt2'; only gpt_neo is supported"),
        ({"model_type": None}, "model_type is None; only gpt_neo"),
        (
            {"tie_word_embeddings": False},
            "config.json: tie_word_embeddings is False; only True is supported",
        ),
        (
            {"activation_function": "gelu"},
            "activation_function is 'gelu'; only gelu_new is supported",
        ),
        ({"embed_dropout": 0.1}, "embed_dropout is 0.1; only 0, as in GPT-Neo, is supported"),
        ({"attention_dropout": 0.2}, "attention_dropout is 0.2; only 0"),
        ({"resid_dropout": 1}, "resid_dropout is 1; only 0"),
        ({"num_layers": 5}, "num_layers is 5, but 4 attention layers are listed"),
        (
            {"attention_layers": ["global", "local", "sparse", "local"]},
            "only global and local are supported",
        ),
        ({"attention_layers": []}, "attention layers are []; only global and local are supported"),
        ({"attention_layers": 3}, "config.json is not a GPT-Neo config: TypeError"),
        (
            {"attention_layers": None, "attention_types": [["global"]]},
            "config.json is not a GPT-Neo config: ValueError",
        ),
        ({"num_heads": 5}, "num_heads 5, "),
        ({"num_heads": 3.0}, "num_heads is 3.0; expected a whole number"),
        ({"num_heads": None}, "num_heads is None; expected a whole number"),
        ({"num_attention_heads": None}, "num_heads is None; expected a whole number"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5'; expected a number"),
        ({"activation_function": None}, "activation_function is None; only gelu_new is supported"),
        (
            {"configuration_files": ["config.4.0.0.json"]},
            "config.json has the entry configuration_files, which is not supported",
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "config.json has the entry quantization_config, which is not supported",
        ),
        ({"window_size": 0}, "wrong sizes"),
        ({"vocab_size": "many"}, "config.json: vocab_size is 'many'; expected a whole number"),
        (
            {"eos_token_id": None},
            "config.json: eos_token_id is None; expected a token id below vocab_size, 8192",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_with_the_entrys_name(folder, entries, message):
    change_config(folder, **entries)
    assert_refused(folder, message)


def test_a_config_without_layers_has_the_24_of_transformers(folder):
    from transformers import GPTNeoConfig

    change_config(folder, removed=("attention_layers", "attention_types"))
    assert_refused(folder, "num_layers is 4, but 24 attention layers are the default")
    change_config(folder, removed=("num_layers",))
    theirs = GPTNeoConfig.from_pretrained(folder)
    assert list(read_config(folder).attention_layers) == theirs.attention_layers
    assert_refused(folder, "missing tensors")


# ---- Values that no tensor's shape shows

COMPUTED = ("num_heads", "num_layers", "window_size", "layer_norm_epsilon", "initializer_range")
SHAPES = ("vocab_size", "hidden_size", "max_position_embeddings")


def random_config(draw: random.Random) -> dict:
    """Return a config.json with a random choice of entries. Most of the values are good."""
    count = draw.choice([1, 2, 3, 24])
    kinds = draw.choice([["global", "local"], ["local"], ["global", "global", "local"]])
    repeats = draw.choice([1, 2, 12])
    heads = [1, 2, 3, 4, 6, 12, 16] * 4 + [16.0, "4", True, None, 5]
    entries = {
        "num_heads": draw.choice(heads),
        "num_attention_heads": draw.choice(heads),
        "num_layers": draw.choice([count, len(kinds) * repeats]),
        "num_hidden_layers": draw.choice([count, len(kinds) * repeats]),
        "attention_types": draw.choice([[[kinds, repeats]]] * 4 + [None]),
        "attention_layers": [draw.choice(["global", "local"]) for _ in range(count)],
        "window_size": draw.choice([1, 7, 64, 256, 300, 7, 64, "7", 7.5]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-6, 1e-12, 0.1, "1e-5", None]),
        "initializer_range": draw.choice([0.02, 0.3]),
        "activation_function": draw.choice(["gelu_new"] * 6 + ["gelu", None]),
        "hidden_size": draw.choice([48, 96, 144]),
        "intermediate_size": draw.choice([None, 40, 192]),
        "eos_token_id": draw.choice([0, 9, 50256, [4, 2]]),
        "vocab_size": draw.choice([50257, 60000]),
        "max_position_embeddings": draw.choice([128, 2048]),
        "tie_word_embeddings": draw.choice([True, True, True, False]),
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    kept = {name: value for name, value in entries.items() if draw.random() < 0.6}
    if "num_attention_heads" in kept and type(kept.get("num_heads")) is not int:
        kept.pop("num_heads", None)  # it is not used, but transformers refuses its type
    return {"model_type": "gpt_neo", **kept}


def test_many_random_configs_are_read_as_transformers_reads_them_or_refused(tmp_path):
    from transformers import GPTNeoConfig

    read = {True: 0, False: 0}
    for seed in range(600):
        entries = random_config(random.Random(seed))
        (tmp_path / "config.json").write_text(json.dumps(entries))
        try:
            ours = read_config(tmp_path)
        except InputError:
            read[False] += 1
            continue
        if "num_layers" not in entries and "num_hidden_layers" not in entries:
            entries["num_layers"] = len(ours.attention_layers)  # theirs is 24, and then refused
        theirs = GPTNeoConfig(**entries)
        for name in COMPUTED + SHAPES:
            assert getattr(ours, name) == getattr(theirs, name), (name, entries)
        assert list(ours.attention_layers) == theirs.attention_layers, entries
        assert theirs.activation_function == "gelu_new" and theirs.tie_word_embeddings is True
        assert ours.intermediate_size == (theirs.intermediate_size or 4 * theirs.hidden_size)
        ends = theirs.eos_token_id
        assert ours.eos_token_id == (ends[0] if isinstance(ends, list) else ends), entries
        read[True] += 1
    assert min(read.values()) > 60, read


@pytest.mark.parametrize("name", NOT_SHOWN)
def test_a_default_that_no_shape_shows_is_noted_with_its_value(folder, name):
    from transformers import GPTNeoConfig

    notes = []
    read_config(folder, notes)
    assert not notes
    layers = ("attention_layers",) if name == "attention_types" else ()
    change_config(folder, removed=(name, *layers), vocab_size=60_000, hidden_size=48)
    if layers:
        change_config(folder, num_layers=24)
    read_config(folder, notes)
    value = getattr(GPTNeoConfig(), name)
    assert notes == [
        f"{folder / 'config.json'} lacks entries; as in transformers this is assumed: "
        f"{name} {value}"
    ]


def test_the_notes_of_a_config_are_those_of_the_base(folder):
    change_config(folder, removed=("window_size",), num_attention_heads=6)
    heads, window = load_base(str(folder)).notes
    assert "num_heads is 3, but num_attention_heads is 6: the second is used" in heads
    assert window.endswith("this is assumed: window_size 256")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json does not exist"),
        ("{", "config.json is not a JSON file"),
        ("[]", "is not a JSON object"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(folder, content, message):
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    assert_refused(folder, message)
