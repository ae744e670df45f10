"""A model with a part switched off, compared with one that is made without the part."""

import copy

import pytest
import torch
from parity import all_logits, assert_close, batch_of, bits, moved, random_texts

from neo_peft.look.ablations import ablations, powers_of_two
from neo_peft.look.spectra import weight_changes
from neo_peft.lora import add_lora, lora_layers
from neo_peft.model import TunedModel
from neo_peft.prefix import Prefix
from neo_peft.prompt import SoftPrompt

P = 4


@pytest.fixture
def with_lora(base):
    """Return a model with LoRA in all linear layers, and with trained biases."""
    trunk = copy.deepcopy(base.trunk)
    add_lora(trunk, ["all-linear"], rank=3, alpha=7, bias="all")
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return TunedModel(trunk).eval()


@pytest.fixture
def with_prompt(base):
    return TunedModel(base.trunk, prompt=SoftPrompt(0.3 * torch.randn(P, 24))).eval()


@pytest.fixture
def with_prefix(base):
    prefix = Prefix(base.trunk.past_of(0.3 * torch.randn(P, 24)))
    with torch.no_grad():
        prefix.keys_values.add_(0.3 * torch.randn_like(prefix.keys_values))
    return TunedModel(base.trunk, prompt=prefix).eval()


def parts_of(model, base):
    """Return a model's ablations by name."""
    changes = weight_changes(model.transformer, base.trunk)
    return {part.name: part for part in ablations(model, base.trunk, changes)}


@torch.no_grad()
def logits_without(model, base, name, texts=None):
    """Return the logits with a part switched off, as evaluation computes them."""
    with parts_of(model, base)[name].switched_off():
        return model.logits(model(batch_of(texts or random_texts()), model.prompt_past()))


# ---- Weights


@torch.no_grad()
def test_a_layer_of_lora_off_is_the_model_with_its_b_zeroed_and_its_biases_of_the_base(
    base, with_lora
):
    by_hand, originals = copy.deepcopy(with_lora), dict(base.trunk.named_parameters())
    for name, layer in lora_layers(by_hand.transformer).items():
        if name.startswith("h.2."):
            layer.lora_B.weight.zero_()
    for name, parameter in by_hand.transformer.named_parameters():
        if name.startswith("h.2.") and name.endswith(".bias"):
            parameter.copy_(originals[name.replace(".base_layer", "")])
    off = logits_without(with_lora, base, "layer 2: weights of the base")
    assert torch.equal(off, all_logits(by_hand, batch_of(random_texts())))
    assert not torch.allclose(off, all_logits(with_lora, batch_of(random_texts())))


@torch.no_grad()
def test_all_weights_off_is_the_base(base, with_lora):
    off = logits_without(with_lora, base, "all changed weights off")
    assert torch.equal(off, all_logits(TunedModel(base.trunk), batch_of(random_texts())))


@torch.no_grad()
def test_a_layer_of_full_tuning_off_has_the_bases_block(base):
    trunk = copy.deepcopy(base.trunk).requires_grad_(True)
    for parameter in trunk.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model = TunedModel(trunk).eval()
    by_hand = copy.deepcopy(model)
    by_hand.transformer.h[1] = base.trunk.h[1]
    off = logits_without(model, base, "layer 1: weights of the base")
    assert torch.equal(off, all_logits(by_hand, batch_of(random_texts())))
    by_hand = copy.deepcopy(model)
    by_hand.transformer.wte = base.trunk.wte
    off = logits_without(model, base, "wte: weights of the base")
    assert torch.equal(off, all_logits(by_hand, batch_of(random_texts())))


@torch.no_grad()
def test_a_cut_is_the_best_approximation_of_each_change(base, with_lora):
    own = all_logits(with_lora, batch_of(random_texts()))
    assert_close(logits_without(with_lora, base, "k = 3"), own)
    by_hand = copy.deepcopy(with_lora)
    for name, layer in lora_layers(by_hand.transformer).items():
        delta = layer.scaling * layer.lora_B.weight @ layer.lora_A.weight
        left, values, right = torch.linalg.svd(delta)
        plain = copy.deepcopy(layer.base_layer)
        plain.weight.add_(values[0] * torch.outer(left[:, 0], right[0]))
        by_hand.transformer.set_submodule(name, plain)
    cut = logits_without(with_lora, base, "k = 1")
    assert_close(cut, all_logits(by_hand, batch_of(random_texts())), 1e-4)
    assert not torch.allclose(cut, own, atol=1e-2)


@torch.no_grad()
def test_full_tuning_cut_to_no_fewer_directions_than_there_are_is_itself(base):
    trunk = copy.deepcopy(base.trunk).requires_grad_(True)
    for parameter in trunk.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model = TunedModel(trunk).eval()
    own = all_logits(model, batch_of(random_texts()))
    assert_close(logits_without(model, base, "k = 24"), own)
    assert not torch.allclose(logits_without(model, base, "k = 8"), own, atol=1e-3)


def test_the_numbers_of_directions_are_the_powers_of_two_and_the_rank():
    assert powers_of_two(8) == [1, 2, 4, 8] and powers_of_two(5) == [1, 2, 4, 5]
    assert powers_of_two(1) == [1] and powers_of_two(0) == []


# ---- A prompt or a prefix


@torch.no_grad()
@pytest.mark.parametrize("position", range(P))
def test_a_position_of_a_prompt_left_out_is_transformers_without_its_embedding(
    base, oracle, with_prompt, position
):
    # In transformers the window counts tokens, not positions, so the texts end inside the window.
    texts = random_texts((7, 2))
    kept = [index for index in range(P) if index != position]
    expected = []
    for text in texts:
        inputs = [with_prompt.prompt.embeddings[kept], oracle.transformer.wte(text)]
        places = torch.tensor([*kept, *range(P, P + len(text))])
        logits = oracle(inputs_embeds=torch.cat(inputs)[None], position_ids=places[None]).logits
        expected.append(logits[0, P - 1 :])
    off = logits_without(with_prompt, base, f"position {position} left out", texts)
    assert_close(off, torch.cat(expected))


def plain_logits(model, text, kept_in):
    """Return the logits of a text, computed layer by layer. `kept_in(layer)` are the positions of
    the prompt that its tokens attend to there."""
    trunk, past, count = model.transformer, model.prompt_past(), len(text)
    places = torch.arange(P, P + count)
    x = trunk.wte(text) + trunk.wpe(places)
    for index, block in enumerate(trunk.h):
        attention, kept, y = block.attn.attention, torch.tensor(kept_in(index)).long(), None
        y = block.ln_1(x)
        q, k, v = (
            project(y).view(count, 3, 8).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k = torch.cat([past.keys[index][0][:, kept], k], 1)
        v = torch.cat([past.values[index][0][:, kept], v], 1)
        distance = places[:, None] - torch.cat([kept, places])
        seen = (distance >= 0) & (distance < (block.window_size or 1000))
        weights = (q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf).softmax(-1)
        x = x + attention.out_proj((weights @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp(block.ln_2(x))
    return trunk.ln_f(x) @ trunk.wte.weight.T


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 2, P - 1])
def test_a_position_of_a_prefix_left_out_is_hidden_in_all_layers(base, with_prefix, position):
    kept = [index for index in range(P) if index != position]
    expected = [plain_logits(with_prefix, text, lambda layer: kept) for text in random_texts()]
    off = logits_without(with_prefix, base, f"position {position} left out")
    assert_close(off, torch.cat(expected))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_without_attention_to_the_prompt_attends_to_the_text_alone(
    base, with_prompt, with_prefix, layer
):
    for model, name in ((with_prompt, "the prompt"), (with_prefix, "the prefix")):
        expected = [
            plain_logits(model, text, lambda index: [] if index == layer else range(P))
            for text in random_texts()
        ]
        off = logits_without(model, base, f"layer {layer}: no attention to {name}")
        assert_close(off, torch.cat(expected))


@torch.no_grad()
def test_without_the_prompt_the_text_starts_at_position_0(base, with_prompt):
    off = logits_without(with_prompt, base, "the prompt left out")
    assert torch.equal(off, all_logits(TunedModel(base.trunk), batch_of(random_texts())))


@torch.no_grad()
def test_the_only_position_of_a_prompt_can_be_left_out(base):
    model = TunedModel(base.trunk, prompt=SoftPrompt(0.3 * torch.randn(1, 24))).eval()
    off = logits_without(model, base, "position 0 left out")
    hidden = logits_without(model, base, "position 0 left out", random_texts((3,)))
    assert off.isfinite().all() and hidden.isfinite().all()
    # The text's positions still start at 1.
    trunk = copy.deepcopy(base.trunk)
    trunk.wpe.weight.copy_(trunk.wpe.weight.roll(-1, 0))
    assert_close(off, all_logits(TunedModel(trunk), batch_of(random_texts())))


# ---- All parts


def test_every_part_leaves_the_model_as_it_was(base, with_lora, with_prompt):
    model = with_lora
    model.prompt = with_prompt.prompt
    before, own, names = bits(model), model.prompt, parts_of(model, base)
    for name in names:
        logits_without(model, base, name)
        assert moved(before, model) == set() and model.prompt is own, name
    assert all(layer.scaling == 7 / 3 for layer in lora_layers(model).values())
    assert not any(block._forward_pre_hooks for block in model.transformer.h)


def test_the_parts_of_two_adapters_are_those_of_both(base, with_lora, with_prompt):
    with_lora.prompt = with_prompt.prompt
    found = list(parts_of(with_lora, base))
    assert found[:3] == ["all changed weights off", "the prompt left out", "both"]
    assert sum("weights of the base" in name for name in found) == 5  # four layers and ln_f
    assert sum("no attention to the prompt" in name for name in found) == 4
    assert sum("k = " in name for name in found) == 3 and len(found) == 3 + 5 + 4 + 3 + P


@torch.no_grad()
def test_both_off_is_the_base(base, with_lora, with_prompt):
    with_lora.prompt = with_prompt.prompt
    off = logits_without(with_lora, base, "both")
    assert torch.equal(off, all_logits(TunedModel(base.trunk), batch_of(random_texts())))
