"""Bits per byte of free text are those of transformers' own loss, before and after tuning."""

import math

import pytest
import torch
from trained import make_run
from transformers import GPTNeoForCausalLM

from neo_peft.encoding import tokenize
from neo_peft.runs.loading import load, load_base_for, load_untuned, settings_in
from neo_peft.studies import forgetting
from neo_peft.studies.forgetting import FREE_TEXT, bits_of_free_text, window_length

LINES = ["The wolves went on, and it was cold; nobody spoke.", "“Yes,” said he.", "A bit of text."]


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Let the page be three short lines."""
    path = tmp_path / "page.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    monkeypatch.setattr(forgetting, "FREE_TEXT", path)


def plain_bits(model, tokenizer, length: int, in_front=None) -> float:
    """Return the bits per byte by transformers' loss, one window at a time. `in_front` (P, H) are
    embeddings in front of each window."""
    nats = 0.0
    for line in LINES:
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), length):
            window = torch.tensor([[0, *ids[start : start + length]]])
            embeddings, labels = model.transformer.wte(window), window
            if in_front is not None:
                embeddings = torch.cat([in_front[None], embeddings], 1)
                ignored = torch.full((1, len(in_front)), -100)
                labels = torch.cat([ignored, window], 1)
            labels = torch.where(labels == 0, -100, labels)  # the end token is not predicted
            mean = model(inputs_embeds=embeddings, labels=labels).loss
            nats += float(mean) * (window.shape[1] - 1)
    return nats / math.log(2) / sum(len(line.encode()) for line in LINES)


@torch.no_grad()
@pytest.mark.parametrize("length", [7, 100])
def test_an_untuned_model_has_the_bits_of_transformers_loss(short, tiny_folder, tmp_path, length):
    run = make_run(tmp_path / "run", tiny_folder, "ner", "head")
    settings = settings_in(run)
    base = load_untuned(settings, base=load_base_for(settings))
    published = GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    expected = plain_bits(published, base.base.tokenizer, length)
    assert bits_of_free_text(base, length) == pytest.approx(expected, rel=1e-5)
    # a head alone changes nothing, not even a bit
    assert bits_of_free_text(load(run), length) == bits_of_free_text(base, length)


@torch.no_grad()
def test_a_tuned_model_has_the_bits_of_transformers_loss_with_its_adapter(
    short, tiny_folder, tmp_path
):
    published = GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    tuned = load(make_run(tmp_path / "prompt", tiny_folder, "ner", "prompt", prompt_length=5))
    tokenizer, prompt = tuned.base.tokenizer, tuned.model.prompt.embeddings
    expected = plain_bits(published, tokenizer, 7, prompt)
    assert bits_of_free_text(tuned, 7) == pytest.approx(expected, rel=1e-5)
    assert bits_of_free_text(tuned, 7) != pytest.approx(plain_bits(published, tokenizer, 7))

    tuned = load(make_run(tmp_path / "lora", tiny_folder, "ner", "lora", rank=2, alpha=6))
    found = bits_of_free_text(tuned, 7)
    assert found != pytest.approx(plain_bits(published, tokenizer, 7))
    layers = [module for module in tuned.model.modules() if hasattr(module, "lora_A")]
    for (name, module), layer in zip(adapted(published), layers, strict=True):
        assert module.weight.shape == layer.base_layer.weight.shape, name
        module.weight += 6 / 2 * layer.lora_B.weight @ layer.lora_A.weight
    assert found == pytest.approx(plain_bits(published, tokenizer, 7), rel=1e-5)


def adapted(model) -> list:
    """Return the layers with LoRA by default, in the order of the model."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "v_proj"))
    ]


def test_windows_are_shorter_where_a_prompt_leaves_fewer_positions(tiny_folder, tmp_path):
    """The tiny model has 128 positions, and the end token needs none: a window's last token is
    predicted only."""
    tuned = load(make_run(tmp_path / "run", tiny_folder, "ner", "prompt", prompt_length=28))
    assert window_length(tuned) == 100
    assert window_length(load(make_run(tmp_path / "head", tiny_folder, "ner", "head"))) == 128


def test_the_bundled_page_has_50_kb_of_lines_that_any_tokenizer_knows(tiny_folder, tmp_path):
    text = FREE_TEXT.read_text(encoding="utf-8")
    assert 45_000 < len(text.encode()) <= 50_000 and "\n\n" not in text
    tokenizer = load(make_run(tmp_path / "run", tiny_folder, "ner", "head")).base.tokenizer
    lines = text.splitlines()
    assert tokenizer.batch_decode(tokenize(tokenizer, lines)) == lines
