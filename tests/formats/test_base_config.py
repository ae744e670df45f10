"""Read config.json: layers, defaults, and error messages."""

import pytest
from base_files import assert_refused, change_config

from neo_peft.formats.base_config import read_config


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
        ({"window_size": 0}, "wrong sizes"),
        ({"vocab_size": "many"}, "config.json: vocab_size is 'many'; expected a number"),
        (
            {"eos_token_id": None},
            "config.json: eos_token_id is None; expected a token id below vocab_size, 8192",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_with_the_entrys_name(folder, entries, message):
    change_config(folder, **entries)
    assert_refused(folder, message)


def test_a_config_without_layers_is_refused(folder):
    change_config(folder, removed=("attention_layers", "attention_types"))
    assert_refused(folder, "config.json is not a GPT-Neo config: KeyError: 'attention_types'")


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
