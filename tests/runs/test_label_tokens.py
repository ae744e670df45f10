"""Labels whose tokens the model could never tell apart are refused before training."""

import json
import random
import shutil
from pathlib import Path

import pytest
from own_files import write_rows
from refusals import refused, run
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from trained import make_run
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from neo_peft.decoding import evaluate
from neo_peft.encoding import Encoder
from neo_peft.errors import InputError
from neo_peft.runs import loading
from neo_peft.runs.label_tokens import first_prefix
from neo_peft.settings import make_settings, task_of

VOCABULARY = "<|endoftext|> <unk> sentence label : Sentence Label the service was good bad"
WORDS = VOCABULARY.split()
TRAIN = "train --task classification --model words --data rows --threads 1 --epochs 1 --method"


def write_word_base(folder: Path) -> None:
    """Write a tiny base whose tokenizer has twelve words. Every other word is the unknown token."""
    config = GPTNeoConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_layers=2,
        num_heads=3,
        attention_types=[[["global", "local"], 1]],
        initializer_range=0.3,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=0,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)
    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)


@pytest.fixture
def two_labels(tmp_path) -> None:
    """Write the base `words`, and rows with the labels positif and negatif, which it lacks."""
    write_word_base(tmp_path / "words")
    rows = [
        {"sentence": f"the service was {i}", "label": ("negatif", "positif")[i % 2]}
        for i in range(20)
    ]
    write_rows(tmp_path / "rows", train=rows)


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """Return a copy of the tiny model's folder, which a test can change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def normalised(folder: Path, pattern: str) -> None:
    """Let the tokenizer of a base remove a pattern from every text."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.Replace(pattern, "")
    tokenizer.save(str(path))


def settings(model: Path, *words: str, labels=("a", "b"), **flags):
    return make_settings(
        **{"task": "classification", "method": "lora", "threads": 1, "model": str(model)} | flags,
        labels=labels,
        label_words=words,
    )


def test_labels_that_are_the_same_unknown_token_are_refused_before_training(capfd, two_labels):
    refused(
        capfd,
        f"{TRAIN} lora",
        "the tokenizer of {here}/words makes of the labels negatif and positif the same tokens, "
        "<unk>: the model can never tell them apart; give each label another text with "
        "--label-words, of words in the vocabulary, or train with --readout head",
    )
    assert run(f"{TRAIN} lora --label-words bad,good --out run") == 0
    assert run("predict --run run 'the service was good'") == 0


def test_an_untuned_base_is_not_scored_with_labels_of_the_same_tokens(capfd, two_labels):
    refused(
        capfd,
        "evaluate --task classification --model words --data rows --out p.jsonl",
        "the tokenizer of {here}/words makes of the labels negatif and positif the same tokens, …",
    )


def test_a_head_can_learn_labels_of_the_same_tokens_which_a_note_names(capfd, two_labels):
    assert run(f"{TRAIN} head --out run") == 0
    note = (
        "the labels negatif and positif the same tokens, <unk>: the untuned model cannot tell them "
        "apart; a trained head can"
    )
    assert note in capfd.readouterr().out


def test_labels_that_a_normaliser_makes_equal_are_refused_when_a_run_is_loaded(folder):
    run_folder = make_run(
        Path("run"), folder, "sentiment", "lora", label_words=("resign", "re~sign", "stay")
    )
    loading.load(run_folder)
    normalised(folder, "~")
    with pytest.raises(
        InputError, match="of the labels negative and neutral the same tokens, Ġres"
    ):
        loading.load(run_folder)


def test_a_label_without_tokens_is_refused(folder):
    normalised(folder, " ~")
    for flags in ({}, {"readout": "head"}, {"method": "prompt"}):
        with pytest.raises(
            InputError, match="the label b has the text ' ~': the tokenizer of .* has no tokens for"
        ):
            loading.load_to_train(settings(folder, "good", "~", **flags))


def test_a_label_whose_token_the_model_lacks_is_refused(folder):
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["<bad>"])
    tokenizer.save(str(path))
    with pytest.raises(
        InputError, match="label b has the text ' <bad>': it has the token id 8192, but the model h"
    ):
        loading.load_to_train(settings(folder, "good", "<bad>"))


def test_a_label_that_begins_another_is_refused_only_where_its_end_token_is_there_too(folder):
    loading.load_to_train(settings(folder, "not", "not equivalent"))
    with pytest.raises(
        InputError, match="the labels a and b tokens that differ only after an end token: the model"
    ):
        loading.load_to_train(settings(folder, "good", "good<|endoftext|>bad"))


@pytest.mark.parametrize("words", [("good", "good<|endoftext|>bad"), ("re~sign", "resign")])
def test_the_second_of_two_refused_labels_is_never_predicted(folder, words):
    """Without the check, of random models and texts."""
    tuned = loading.load_untuned(settings(folder, "up", "down"))
    normalised(folder, "~")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    task = task_of(settings(folder, *words))
    encoder = Encoder(task, tokenizer, 0, False, 60, 8192)
    assert first_prefix(encoder.label_tokens) == ("a", "b")
    rows = [{"sentence": " ".join(random.choices(WORDS[6:], k=8))} for _ in range(30)]
    evaluation = evaluate(tuned.model, encoder, encoder(rows))
    assert evaluation.predicted == ["a"] * 30
    assert all(first >= second for first, second in evaluation.probabilities)


def test_the_first_pair_of_prefixes_is_found_as_by_comparing_all_pairs():
    for seed in range(300):
        rng = random.Random(seed)
        tokens = {
            str(label): [rng.randrange(3) for _ in range(rng.randint(1, 4))] for label in range(4)
        }
        pairs = {
            (a, b)
            for a in tokens
            for b in tokens
            if a != b and json.dumps(tokens[b])[:-1].startswith(json.dumps(tokens[a])[:-1])
        }
        assert first_prefix(tokens) in (pairs or {None})
