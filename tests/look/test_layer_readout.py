"""The probabilities after each layer, compared with transformers' hidden states."""

import pytest
import torch
from parity import assert_close

from neo_peft.decoding import evaluate
from neo_peft.look.layer_readout import layer_probabilities
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings

WORDS = {"tokens": ["The", "IL-2", "receptor", "is", "phosphorylated"]}
SENTENCE = {"sentence": "Profit rose to EUR 12 mn ."}


@pytest.fixture
def loaded(tiny_folder):
    """Return a function that loads the tiny model for a task."""

    def load(task, **flags):
        settings = make_settings(task=task, model=str(tiny_folder), threads=1, **flags)
        return load_untuned(settings, with_method=True)

    return load


@torch.no_grad()
def hidden_states(oracle, ids, embeddings=None):
    """Return transformers' hidden states (layers + 1, T, H), each with the final norm."""
    inputs = oracle.transformer.wte(torch.tensor(ids))
    if embeddings is not None:
        inputs = torch.cat([embeddings, inputs])
    found = oracle(inputs_embeds=inputs[None], output_hidden_states=True).hidden_states
    states = torch.stack([state[0] for state in found])
    return torch.cat([oracle.transformer.ln_f(states[:-1]), states[-1:]])  # the last one has it


@torch.no_grad()
def test_a_taggers_probabilities_are_those_of_its_head_on_each_hidden_state(loaded, oracle):
    tuned = loaded("ner", method="lora")
    model, encoder = tuned.model, tuned.encoder
    found = layer_probabilities(model, model.head, encoder, WORDS, None)
    tokens = encoder.tokenize([f" {word}" for word in WORDS["tokens"]])
    firsts = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
    states = hidden_states(oracle, sum(tokens, []))[:, firsts]
    assert found.shape == (5, 5, 11) and max(map(len, tokens)) > 1
    assert_close(found, model.head(states).softmax(-1))


@torch.no_grad()
def test_a_label_has_the_share_of_its_first_token(loaded, oracle):
    tuned = loaded("sentiment", method="prompt", prompt_length=3)
    model, encoder = tuned.model, tuned.encoder
    found = layer_probabilities(model, None, encoder, SENTENCE, model.prompt_past())
    tokens = encoder.tokenize(encoder.task.texts(SENTENCE))
    last = hidden_states(oracle, sum(tokens, []), model.prompt.embeddings)[:, -1]
    first = [ids[0] for ids in encoder.tokenize([" negative", " neutral", " positive"])]
    logits = last @ oracle.transformer.wte.weight[first].T
    assert found.shape == (5, 1, 3)
    assert_close(found[:, 0], logits.softmax(-1))


@torch.no_grad()
def test_the_last_layer_is_what_the_model_predicts(loaded):
    tuned = loaded("sentiment", method="lora", readout="head")
    found = layer_probabilities(tuned.model, tuned.model.head, tuned.encoder, SENTENCE, None)
    (probabilities,) = evaluate(tuned.model, tuned.encoder, tuned.encoder([SENTENCE])).probabilities
    assert_close(found[-1, 0], torch.tensor(probabilities))


@torch.no_grad()
def test_labels_that_share_their_first_token_have_its_probability(loaded):
    words = ("up and away", "up and down", "flat")
    tuned = loaded("sentiment", method="lora", label_words=words)
    found = layer_probabilities(tuned.model, None, tuned.encoder, SENTENCE, None)[:, 0]
    assert torch.equal(found[:, 0], found[:, 1])
    assert_close(found[:, 1] + found[:, 2], torch.ones(5))
