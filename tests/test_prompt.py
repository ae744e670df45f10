"""The soft prompt against peft's prompt tuning and against transformers on embeddings, and what it
starts from."""

import copy

import peft
import pytest
import torch
from parity import LENGTHS, all_logits, assert_close, backward, batch_of, bits, moved, random_texts
from torch.amp import GradScaler
from torch.func import functional_call
from transformers import GPTNeoForTokenClassification

from neo_peft.errors import InputError
from neo_peft.loop import make_optimizer, take_step
from neo_peft.lora import add_lora
from neo_peft.methods import build_model
from neo_peft.model import TunedModel
from neo_peft.prompt import SoftPrompt, initial_embeddings
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

P = 13  # longer than the tiny model's window of 11, and as long as none of the texts


def random_prompt():
    return SoftPrompt(0.3 * torch.randn(P, 24))


def built(base, task="sentiment", method="prompt", **settings):
    settings = make_settings(task=task, method=method, **settings)
    return build_model(copy.deepcopy(base.trunk), base.tokenizer, TASKS[task], settings)


# ---- The same as peft's, exactly


def test_logits_and_the_prompts_gradient_are_pefts_one_text_at_a_time(base, oracle):
    assert P not in LENGTHS
    ours = TunedModel(base.trunk, prompt=random_prompt())
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="RANDOM"
    )
    theirs = peft.get_peft_model(copy.deepcopy(oracle), config)
    rows = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(ours.prompt.embeddings)

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    expected = torch.cat([theirs(input_ids=text[None]).logits[0, P:] for text in texts])
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert_close(ours.prompt.embeddings.grad, rows.grad, tolerance=1e-4)


def test_ner_reads_a_head_behind_a_prompt_as_transformers_does_on_embeddings(base, tiny_folder):
    ours = built(base, "ner", prompt_length=P, prompt_init="random", head_dropout=0)
    theirs = GPTNeoForTokenClassification.from_pretrained(
        tiny_folder, num_labels=11, classifier_dropout=0.0, dtype=torch.float32
    )
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    prompt = ours.prompt.embeddings.detach().clone().requires_grad_()

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    embedded = [torch.cat([prompt, theirs.transformer.wte(text)])[None] for text in texts]
    expected = torch.cat([theirs(inputs_embeds=rows).logits[0, P:] for rows in embedded])
    assert logits.shape == (sum(LENGTHS), 11)
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert_close(ours.prompt.embeddings.grad, prompt.grad, tolerance=1e-4)
    assert_close(ours.classifier.weight.grad, theirs.classifier.weight.grad, tolerance=1e-4)
    assert_close(ours.classifier.bias.grad, theirs.classifier.bias.grad, tolerance=1e-4)


def test_lora_beside_a_prompt_is_the_model_with_lora_in_its_weights_on_embeddings(base, oracle):
    ours = TunedModel(copy.deepcopy(base.trunk), prompt=random_prompt())
    names = add_lora(ours.transformer, ["all-linear"], rank=5, alpha=7)
    with torch.no_grad():
        for name in names:
            ours.transformer.get_submodule(name).lora_B.weight.normal_(0, 0.1)
    leaves = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in ours.trainable().items()
    }
    merged = {
        f"transformer.{name}.weight": base.trunk.get_submodule(name).weight
        + 7
        / 5
        * leaves[f"transformer.{name}.lora_B.weight"]
        @ leaves[f"transformer.{name}.lora_A.weight"]
        for name in names
    }
    prompt = leaves["prompt.embeddings"]

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    rows = [torch.cat([prompt, oracle.transformer.wte(text)])[None] for text in texts]
    expected = torch.cat(
        [functional_call(oracle, merged, (), {"inputs_embeds": x}).logits[0, P:] for x in rows]
    )
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert len(leaves) == 2 * 24 + 1
    for name, parameter in ours.trainable().items():
        assert_close(parameter.grad, leaves[name].grad, tolerance=1e-4)


# ---- What it starts from


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_rows_are_an_fp32_copy_with_a_length(dtype):
    start = torch.randn(P, 24).to(dtype)
    prompt = SoftPrompt(start)
    assert len(prompt) == P
    rows = prompt.embeddings
    assert rows.dtype == torch.float32 and rows.requires_grad
    expected = start.float().clone()
    start.zero_()
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("length", [4, 15, 37])
@pytest.mark.parametrize(
    ("task", "text"),
    [("ner", None), ("sentiment", None), ("similarity", None), ("sentiment", "Good or bad:")],
)
def test_a_text_is_tiled_and_cut(base, task, text, length):
    given = {"prompt_text": text} if text else {}
    model = built(base, task, prompt_length=length, **given)
    ids = base.tokenizer(text or TASKS[task].instruction, add_special_tokens=False)["input_ids"]
    assert 1 < len(ids) < 37
    assert torch.equal(
        model.prompt.embeddings,
        base.trunk.wte.weight[[ids[place % len(ids)] for place in range(length)]],
    )


def test_the_instruction_is_what_a_sentiment_prompt_starts_from_by_default(base):
    words = "Classify if the sentence is neutral, negative, positive:"
    ids = base.tokenizer(words, add_special_tokens=False)["input_ids"][:8]
    assert torch.equal(built(base, prompt_length=8).prompt.embeddings, base.trunk.wte.weight[ids])


def places_of(rows, wte):
    """Say which row of wte each row is; wte's rows are all different."""
    assert len(wte.unique(dim=0)) == len(wte)
    same = (rows[:, None] == wte[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


def test_a_vocabulary_start_draws_rows_without_repetition():
    wte = torch.randn(30, 7)
    all_of_them = places_of(initial_embeddings(wte, 30, "vocab", [1], [2]), wte)
    assert sorted(all_of_them) == list(range(30))  # any repetition would leave one out
    assert all_of_them != list(range(30))
    assert places_of(initial_embeddings(wte, 30, "vocab", [1], [2]), wte) != all_of_them


def test_a_vocabulary_start_longer_than_the_vocabulary_goes_round_it():
    wte = torch.randn(5, 7)
    places = places_of(initial_embeddings(wte, 13, "vocab", [1], [2]), wte)
    assert sorted(places[:5]) == list(range(5))
    assert places == (places[:5] * 3)[:13]


def test_a_label_start_says_the_labels_and_then_the_vocabulary():
    wte = torch.randn(30, 7)
    places = places_of(initial_embeddings(wte, 12, "labels", [1], [20, 4, 9]), wte)
    assert places[:3] == [20, 4, 9]
    assert len(set(places[3:])) == 9
    assert places_of(initial_embeddings(wte, 2, "labels", [1], [20, 4, 9]), wte) == [20, 4]


def test_build_model_hands_the_labels_words_to_a_label_start(base):
    model = built(base, "similarity", prompt_length=5, prompt_init="labels")
    ids = base.tokenizer(" not equivalent equivalent", add_special_tokens=False)["input_ids"]
    assert torch.equal(model.prompt.embeddings[:3], base.trunk.wte.weight[ids])


def test_a_random_start_has_wtes_own_mean_and_spread():
    wte = 0.7 + 0.05 * torch.randn(300, 40).double()
    rows = initial_embeddings(wte.half(), 200, "random", [1], [2])
    assert rows.shape == (200, 40)
    assert rows.mean().item() == pytest.approx(0.7, abs=0.003)  # 5 standard errors of 8,000 draws
    assert rows.std().item() == pytest.approx(0.05, rel=0.04)
    assert not torch.equal(rows, initial_embeddings(wte.half(), 200, "random", [1], [2]))


def test_an_unknown_start_is_refused():
    with pytest.raises(
        InputError, match="prompt_init must be one of text, vocab, labels, random, not 'sampled'"
    ):
        initial_embeddings(torch.randn(30, 7), 4, "sampled", [1], [2])


@pytest.mark.parametrize("init", ["vocab", "random", "labels"])
def test_one_seed_gives_one_start_and_another_seed_another(base, init):
    one, same, other = (
        built(base, prompt_length=P, prompt_init=init, seed=seed).prompt.embeddings
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# ---- What moves


def test_only_the_prompt_moves_in_a_step_and_all_of_its_rows_do(base):
    model = built(base, prompt_length=P, prompt_init="vocab").train()
    assert model.trainable().keys() == {"prompt.embeddings"}
    settings = make_settings(task="sentiment", method="prompt")
    batch = batch_of(random_texts(), torch.tensor([16, 21, 47]), torch.tensor([7, 300, 8000]))
    before = bits(model)
    take_step(
        model,
        make_optimizer(model, settings),
        GradScaler("cpu", enabled=False),
        [batch],
        batch.labelled,
        clip_norm=1.0,
    )
    assert moved(before, model) == {"prompt.embeddings"}
    assert (model.prompt.embeddings != before["prompt.embeddings"]).any(dim=1).all()


def test_a_prompt_of_ner_moves_with_its_head_alone(base):
    model = built(base, "ner", prompt_length=P, prompt_init="vocab").train()
    settings = make_settings(task="ner", method="prompt")
    batch = batch_of(random_texts(), torch.tensor([0, 9, 40]), torch.tensor([3, 0, 10]))
    before = bits(model)
    take_step(
        model,
        make_optimizer(model, settings),
        GradScaler("cpu", enabled=False),
        [batch],
        batch.labelled,
        clip_norm=1.0,
    )
    assert moved(before, model) == {"prompt.embeddings", "classifier.weight", "classifier.bias"}
