"""Settings: a flag overrides the preset, which overrides the method's defaults."""

import dataclasses

import pytest
from corpus_files import CORPORA

from neo_peft.methods import METHODS
from neo_peft.settings import make_settings


@pytest.mark.parametrize("preset", [None, "paper", "best"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", CORPORA)
def test_recorded_settings_make_the_same_settings_again(task, method, preset):
    settings = make_settings(task=task, method=method, preset=preset)
    assert make_settings(**dataclasses.asdict(settings)) == settings


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"method": "prompt"}, (20, 20, 0.1, 0.02)),
        ({"method": "prompt", "model": "EleutherAI/gpt-neo-125m"}, (8, 10, 0.0, 0.03)),
        (
            {"method": "prompt", "prompt_length": 5, "epochs": 1, "learning_rate": 2},
            (5, 1, 0.1, 2.0),
        ),
        ({"preset": "paper"}, (8, 5, 0.0, 0.03)),
        # The preset overrides the model's defaults.
        ({"preset": "paper", "model": "neo-mini"}, (8, 5, 0.0, 0.03)),
        ({"preset": "paper", "epochs": 3}, (8, 3, 0.0, 0.03)),
        ({"method": "lora"}, (8, 10, 0.0, 0.005)),
        # The preset's learning rate is for another method.
        ({"method": "lora", "preset": "paper"}, (8, 5, 0.0, 0.001)),
    ],
)
def test_a_flag_overrides_the_preset_and_the_preset_overrides_the_defaults(given, expected):
    settings = make_settings(task="sentiment", **given)
    names = ("prompt_length", "epochs", "warmup_ratio", "learning_rate")
    assert tuple(getattr(settings, name) for name in names) == expected


def test_the_best_preset_has_a_learning_rate_for_the_bundled_model():
    best = make_settings(task="ner", preset="best")
    assert (best.method, best.echo, best.tag_decoding, best.learning_rate) == (
        "lora",
        True,
        "viterbi",
        1e-3,
    )
    assert (
        make_settings(task="ner", preset="best", model="EleutherAI/gpt-neo-125m").learning_rate
        == 1e-3
    )
    # the default of full on neo-mini
    assert make_settings(task="ner", preset="best", method="full").learning_rate == 1e-3
    assert make_settings(task="ner", preset="best", learning_rate=2).learning_rate == 2
    assert make_settings(task="pairs", preset="best").readout == "head"
