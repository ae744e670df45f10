"""The attention to a prompt and to a prefix, compared with transformers' `output_attentions`."""

import copy

import numpy as np
import pytest
import torch
from parity import assert_close, batch_of, random_texts
from transformers import GPTNeoForCausalLM

from neo_peft.encoding import Examples
from neo_peft.look.attention import attention_of_text, attention_to_prompt
from neo_peft.lora import add_lora, lora_layers
from neo_peft.model import TunedModel
from neo_peft.prefix import Prefix
from neo_peft.prompt import SoftPrompt

P = 5


@pytest.fixture(scope="module")
def eager(tiny_folder):
    """Return the tiny model in transformers, with the attention that returns probabilities."""
    return GPTNeoForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def expected(eager, embeddings, text):
    """Return transformers' probabilities (layers, heads, T, P + T) of a text's tokens."""
    inputs = torch.cat([embeddings, eager.transformer.wte(text)])[None]
    with torch.no_grad():
        found = eager(inputs_embeds=inputs, output_attentions=True).attentions
    return torch.stack(found)[:, 0, :, len(embeddings) :]


def prompted(base):
    return TunedModel(base.trunk, prompt=SoftPrompt(0.3 * torch.randn(P, 24))).eval()


def test_the_probabilities_of_each_text_are_those_of_transformers(base, eager):
    model = prompted(base)
    for text in random_texts():  # the texts are longer and shorter than the window of 11
        with torch.no_grad():
            found = attention_of_text(model, batch_of([text]))
        assert found.shape == (4, 3, len(text), P + len(text))
        assert_close(found, expected(eager, model.prompt.embeddings, text))


def test_a_prefix_from_a_text_gets_the_attention_that_the_text_gets_in_front(base, eager):
    ids = torch.arange(100, 100 + P)
    model = TunedModel(base.trunk, prompt=Prefix(base.trunk.past_of(base.trunk.embed(ids)))).eval()
    for text in random_texts():
        with torch.no_grad():
            found = attention_of_text(model, batch_of([text]))
        assert_close(found, expected(eager, base.trunk.wte(ids), text))


def test_the_shares_are_means_over_all_tokens_of_all_chosen_texts(base, eager):
    texts, model = random_texts(), prompted(base)
    lengths = [len(text) for text in texts]
    starts = np.cumsum([0, *lengths])
    targets = np.zeros(len(texts), int)  # one target position for each text
    examples = Examples(
        torch.cat(texts).numpy(), starts, targets, targets, np.arange(len(texts) + 1)
    )
    tokens = [expected(eager, model.prompt.embeddings, texts[index])[..., :P] for index in (0, 2)]
    shares = attention_to_prompt(model, examples, [0, 2])
    assert_close(shares.float(), torch.cat(tokens, dim=2).mean(2))


def test_lora_in_the_queries_changes_them(base):
    model = TunedModel(copy.deepcopy(base.trunk), prompt=prompted(base).prompt).eval()
    batch = batch_of(random_texts()[:1])
    with torch.no_grad():
        before = attention_of_text(model, batch)
        add_lora(model.transformer, ["q_proj"], rank=2)
        for layer in lora_layers(model).values():
            layer.lora_B.weight.normal_()
        assert not torch.allclose(before[0], attention_of_text(model, batch)[0])
