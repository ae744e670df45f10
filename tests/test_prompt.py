"""The soft prompt, compared with peft and with transformers on embeddings; its initial values."""

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

P = 13  # longer than the tiny model's window of 11, and different from all text lengths


def random_prompt():
    return SoftPrompt(0.3 * torch.randn(P, 24))


def built(base, task="sentiment", method="prompt", **settings):
    settings = make_settings(task=task, method=method, **settings)
    return build_model(copy.deepcopy(base.trunk), base.tokenizer, TASKS[task], settings)


# ---- Compared with peft and transformers


def test_logits_and_the_prompts_gradient_equal_pefts_for_one_text_at_a_time(base, oracle):
    assert P not in LENGTHS
    ours = TunedModel(base.trunk, prompt=random_prompt())
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="RANDOM"
    )
    theirs = peft.get_peft_model(copy.deepcopy(oracle), config)
    their_embeddings = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        their_embeddings.copy_(ours.prompt.embeddings)

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    expected = torch.cat([theirs(input_ids=text[None]).logits[0, P:] for text in texts])
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert_close(ours.prompt.embeddings.grad, their_embeddings.grad, tolerance=1e-4)


def test_a_head_after_a_prompt_has_the_logits_of_transformers_on_embeddings(base, tiny_folder):
    ours = built(base, "ner", prompt_length=P, prompt_init="random", head_dropout=0)
    theirs = GPTNeoForTokenClassification.from_pretrained(
        tiny_folder, num_labels=11, classifier_dropout=0.0, dtype=torch.float32
    )
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    prompt = ours.prompt.embeddings.detach().clone().requires_grad_()

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    embedded = [torch.cat([prompt, theirs.transformer.wte(text)])[None] for text in texts]
    expected = torch.cat([theirs(inputs_embeds=x).logits[0, P:] for x in embedded])
    assert logits.shape == (sum(LENGTHS), 11)
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert_close(ours.prompt.embeddings.grad, prompt.grad, tolerance=1e-4)
    assert_close(ours.classifier.weight.grad, theirs.classifier.weight.grad, tolerance=1e-4)
    assert_close(ours.classifier.bias.grad, theirs.classifier.bias.grad, tolerance=1e-4)


def test_lora_with_a_prompt_equals_merged_weights_on_embeddings(base, oracle):
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
    embedded = [torch.cat([prompt, oracle.transformer.wte(text)])[None] for text in texts]
    expected = torch.cat(
        [functional_call(oracle, merged, (), {"inputs_embeds": x}).logits[0, P:] for x in embedded]
    )
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert len(leaves) == 2 * 24 + 1
    for name, parameter in ours.trainable().items():
        assert_close(parameter.grad, leaves[name].grad, tolerance=1e-4)


# ---- The initial embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_embeddings_are_an_fp32_copy_and_the_prompt_has_a_length(dtype):
    start = torch.randn(P, 24).to(dtype)
    prompt = SoftPrompt(start)
    assert len(prompt) == P
    embeddings = prompt.embeddings
    assert embeddings.dtype == torch.float32 and embeddings.requires_grad
    expected = start.float().clone()
    start.zero_()
    assert torch.equal(embeddings, expected)


@pytest.mark.parametrize("length", [4, 15, 37])
@pytest.mark.parametrize(
    ("task", "text"),
    [("ner", None), ("sentiment", None), ("similarity", None), ("sentiment", "Good or bad:")],
)
def test_a_text_is_repeated_or_cut_to_the_prompt_length(base, task, text, length):
    flags = {"prompt_text": text} if text else {}
    model = built(base, task, prompt_length=length, **flags)
    ids = base.tokenizer(text or TASKS[task].instruction, add_special_tokens=False)["input_ids"]
    assert 1 < len(ids) < 37
    assert torch.equal(
        model.prompt.embeddings,
        base.trunk.wte.weight[[ids[index % len(ids)] for index in range(length)]],
    )


def test_a_sentiment_prompt_starts_as_the_instruction_by_default(base):
    words = "Classify if the sentence is neutral, negative, positive:"
    ids = base.tokenizer(words, add_special_tokens=False)["input_ids"][:8]
    assert torch.equal(built(base, prompt_length=8).prompt.embeddings, base.trunk.wte.weight[ids])


def token_ids(embeddings, wte):
    """Return the token id of each embedding; the embeddings of wte must all be different."""
    assert len(wte.unique(dim=0)) == len(wte)
    same = (embeddings[:, None] == wte[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


def test_init_vocab_draws_different_tokens():
    wte = torch.randn(30, 7)
    ids = token_ids(initial_embeddings(wte, 30, "vocab", [1], [2]), wte)
    assert sorted(ids) == list(range(30))  # with a repetition one would be missing
    assert ids != list(range(30))
    assert token_ids(initial_embeddings(wte, 30, "vocab", [1], [2]), wte) != ids


def test_init_vocab_repeats_its_tokens_if_the_prompt_is_longer_than_the_vocabulary():
    wte = torch.randn(5, 7)
    ids = token_ids(initial_embeddings(wte, 13, "vocab", [1], [2]), wte)
    assert sorted(ids[:5]) == list(range(5))
    assert ids == (ids[:5] * 3)[:13]


def test_init_labels_uses_the_label_words_and_then_other_tokens():
    wte = torch.randn(30, 7)
    ids = token_ids(initial_embeddings(wte, 12, "labels", [1], [20, 4, 9]), wte)
    assert ids[:3] == [20, 4, 9]
    assert len(set(ids[3:])) == 9
    assert token_ids(initial_embeddings(wte, 2, "labels", [1], [20, 4, 9]), wte) == [20, 4]


def test_build_model_uses_the_label_words_for_init_labels(base):
    model = built(base, "similarity", prompt_length=5, prompt_init="labels")
    ids = base.tokenizer(" not equivalent equivalent", add_special_tokens=False)["input_ids"]
    assert torch.equal(model.prompt.embeddings[:3], base.trunk.wte.weight[ids])


def test_init_random_has_the_mean_and_standard_deviation_of_wte():
    wte = 0.7 + 0.05 * torch.randn(300, 40).double()
    embeddings = initial_embeddings(wte.half(), 200, "random", [1], [2])
    assert embeddings.shape == (200, 40)
    assert embeddings.mean().item() == pytest.approx(
        0.7, abs=0.003
    )  # 5 standard errors of 8,000 draws
    assert embeddings.std().item() == pytest.approx(0.05, rel=0.04)
    assert not torch.equal(embeddings, initial_embeddings(wte.half(), 200, "random", [1], [2]))


def test_an_unknown_init_is_refused():
    with pytest.raises(
        InputError, match="prompt_init must be one of text, vocab, labels, random, not 'sampled'"
    ):
        initial_embeddings(torch.randn(30, 7), 4, "sampled", [1], [2])


@pytest.mark.parametrize("init", ["vocab", "random", "labels"])
def test_the_initial_embeddings_depend_on_the_seed(base, init):
    first, same, other = (
        built(base, prompt_length=P, prompt_init=init, seed=seed).prompt.embeddings
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# ---- What a step changes


def test_a_step_changes_only_the_prompt_and_all_of_its_embeddings(base):
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


def test_in_a_tagging_task_a_step_changes_only_the_prompt_and_the_head(base):
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
