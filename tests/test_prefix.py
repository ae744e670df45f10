"""Prefix tuning, compared with peft, and with transformers on a text in front; its start."""

import copy
from dataclasses import replace

import peft
import pytest
import torch
from parity import LENGTHS, all_logits, assert_close, backward, batch_of, bits, moved, random_texts
from torch.amp import GradScaler
from transformers import GPTNeoForTokenClassification

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.loop import make_optimizer, take_step
from neo_peft.methods import build_model
from neo_peft.model import TunedModel
from neo_peft.prefix import Prefix
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

P = 13  # longer than the tiny model's window of 11, and different from all text lengths


def built(base, task="sentiment", method="prefix", dtype=torch.float32, **settings):
    settings = make_settings(task=task, method=method, **settings)
    return build_model(copy.deepcopy(base.trunk), base.tokenizer, TASKS[task], settings, dtype)


def random_prefix(base):
    ids = torch.randint(1, 8192, (P,), generator=torch.Generator().manual_seed(2))
    prefix = Prefix(base.trunk.past_of(base.trunk.embed(ids)))
    with torch.no_grad():
        prefix.keys_values.add_(0.3 * torch.randn_like(prefix.keys_values))
    return prefix


# ---- Compared with peft and transformers


def peft_logits(theirs, text):
    return theirs(input_ids=text[None]).logits[0]


def test_logits_and_the_prefixs_gradient_equal_pefts_for_one_text_at_a_time(base, oracle):
    assert P not in LENGTHS
    ours = TunedModel(base.trunk, prompt=random_prefix(base))
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(copy.deepcopy(oracle), config)
    their_weights = theirs.prompt_encoder["default"].embedding.weight
    assert their_weights.shape == ours.prompt.keys_values.shape
    with torch.no_grad():
        their_weights.copy_(ours.prompt.keys_values)

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    expected = torch.cat([peft_logits(theirs, text) for text in texts])
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    assert_close(ours.prompt.keys_values.grad, their_weights.grad, tolerance=1e-4)


def test_a_start_from_a_text_answers_as_with_that_text_in_front(base, oracle):
    """Layers with a window of 11 tokens, a text of 13 in front."""
    words = "Classify if the sentence is neutral, negative, positive: up or down or flat?"
    ids = torch.tensor(base.tokenizer(words, add_special_tokens=False)["input_ids"][:P])
    assert len(ids) == P
    model = built(base, prompt_length=P, prompt_text=words)
    texts = random_texts()
    expected = [oracle(torch.cat([ids, text])[None]).logits[0, P:] for text in texts]
    assert_close(all_logits(model, batch_of(texts)), torch.cat(expected))


def test_a_head_after_a_prefix_has_the_logits_of_transformers_with_these_keys_and_values(
    base, tiny_folder
):
    ours = built(base, "ner", prompt_length=P, prompt_init="random", head_dropout=0)
    theirs = GPTNeoForTokenClassification.from_pretrained(
        tiny_folder, num_labels=11, classifier_dropout=0.0, dtype=torch.float32
    )
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    config = peft.PrefixTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=P)
    theirs = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(ours.prompt.keys_values)
    texts = random_texts()
    logits = all_logits(ours.eval(), batch_of(texts))
    expected = torch.cat([peft_logits(theirs, text) for text in texts])
    assert logits.shape == (sum(LENGTHS), 11)
    assert_close(logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_prefix_has_the_dtype_of_the_texts_keys(tiny_folder, dtype):
    base = load_base(str(tiny_folder), dtype)
    model = built(base, dtype=dtype, prompt_length=P)
    assert {tensor.dtype for tensor in model.prompt_past().keys + model.prompt_past().values} == {
        dtype
    }
    assert model.prompt.keys_values.dtype == torch.float32
    logits = all_logits(model, batch_of(random_texts()))
    fp32 = all_logits(built(load_base(str(tiny_folder)), prompt_length=P), batch_of(random_texts()))
    assert_close(logits.float(), fp32, tolerance=0.1)


# ---- The initial keys and values


def layers_of(model):
    """Return the keys and the values (layers, P, H), from the file's order, by hand."""
    by_position = model.prompt.keys_values.detach().view(P, -1, 2, 24)  # (P, layers, 2, H)
    return by_position[:, :, 0].transpose(0, 1), by_position[:, :, 1].transpose(0, 1)


def test_the_order_is_keys_then_values_of_each_layer(base):
    model = built(base, prompt_length=P, prompt_init="labels", seed=3)
    embeddings = built(base, method="prompt", prompt_length=P, prompt_init="labels", seed=3)
    past = base.trunk.past_of(embeddings.prompt.embeddings.detach())
    keys, values = layers_of(model)
    for layer, (key, value) in enumerate(zip(past.keys, past.values, strict=True)):
        assert torch.equal(keys[layer], key[0].transpose(0, 1).flatten(1))
        assert torch.equal(values[layer], value[0].transpose(0, 1).flatten(1))


def test_zeros_are_zeros_and_every_token_sees_them(base):
    """A token's attention is divided as if P more keys had the score 0 and the value 0."""
    model = built(base, prompt_length=P, prompt_init="zeros")
    assert not model.prompt.keys_values.any()
    text = random_texts((5,))
    with_prefix = all_logits(model, batch_of(text))
    assert not torch.allclose(with_prefix, all_logits(TunedModel(base.trunk), batch_of(text)))


def test_random_has_the_spread_of_each_layers_keys_and_values(base):
    base = replace(base, trunk=copy.deepcopy(base.trunk))
    base.trunk.h[1].ln_1.weight.data *= 4  # so that the layers differ
    long = {"prompt_length": 100, "max_length": 10}
    random = built(base, prompt_init="random", **long).prompt.keys_values.detach()
    tokens = built(base, prompt_init="vocab", **long).prompt.keys_values.detach()
    spreads = [
        part.view(100, -1, 24).permute(1, 0, 2).flatten(1).std(1) for part in (random, tokens)
    ]
    assert torch.allclose(*spreads, rtol=0.1)  # each from 2,400 numbers
    assert spreads[1].max() > 3 * spreads[1].min()
    means = [part.view(100, -1, 24).mean((0, 2)) for part in (random, tokens)]
    assert ((means[0] - means[1]).abs() < 0.1 * spreads[1]).all()
    assert not torch.equal(random, tokens)


@pytest.mark.parametrize("init", ["vocab", "random", "labels"])
def test_the_initial_values_depend_on_the_seed(base, init):
    first, same, other = (
        built(base, prompt_length=P, prompt_init=init, seed=seed).prompt.keys_values
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_zeros_are_refused_for_a_prompt():
    with pytest.raises(
        InputError, match="--prompt-init is zeros; the method prompt has text, vocab"
    ):
        make_settings(task="sentiment", method="prompt", prompt_init="zeros")


# ---- What a step changes


@pytest.mark.parametrize("init", ["vocab", "zeros"])
@pytest.mark.parametrize("task", ["sentiment", "ner"])
def test_a_step_changes_only_the_prefix_and_a_head(base, task, init):
    model = built(base, task, prompt_length=P, prompt_init=init).train()
    head = {"classifier.weight", "classifier.bias"} if task == "ner" else set()
    assert model.trainable().keys() == {"prompt.keys_values"} | head
    indices, targets = torch.tensor([0, 16, 21, 47]), torch.tensor([3, 0, 10, 5])
    batch, before = batch_of(random_texts(), indices, targets), bits(model)
    settings = make_settings(task=task, method="prefix")
    scaler = GradScaler("cpu", enabled=False)
    take_step(model, make_optimizer(model, settings), scaler, [batch], batch.labelled, 1.0)
    assert moved(before, model) == {"prompt.keys_values"} | head
    assert (model.prompt.keys_values != before["prompt.keys_values"]).any(dim=1).all()
