"""The tuned model: heads, target positions, loss, dtypes, and parameters of published sizes."""

import copy

import pytest
import torch
from parity import LENGTHS, all_logits, assert_close, backward, batch_of, random_texts
from torch import nn

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.lora import adapted_layers
from neo_peft.methods import base_dtype, build_model, head_kind
from neo_peft.model import TunedModel
from neo_peft.packing import Packing
from neo_peft.prompt import SoftPrompt
from neo_peft.settings import Settings, make_settings
from neo_peft.tasks import TASKS

HALVES = [torch.bfloat16, torch.float16]
METHODS = ("lora", "prompt", "prefix", "head", "full", "lora+prompt", "lora+prefix")


def built(base, task, method, compute_dtype=torch.float32, **settings):
    settings = make_settings(task=task, method=method, **settings)
    return build_model(
        copy.deepcopy(base.trunk), base.tokenizer, TASKS[task], settings, compute_dtype
    )


# ---- The heads


def test_tagging_uses_a_classifier_and_the_method_head_of_other_tasks_a_score():
    def kind_of(task, method, **more):
        return head_kind(TASKS[task], Settings(task=task, method=method, **more))

    kinds = {(task, method): kind_of(task, method) for task in TASKS for method in METHODS}
    tagging = {"ner", "tagging"}
    with_score = {(task, "head") for task in TASKS if task not in tagging}
    assert {pair for pair, kind in kinds.items() if kind == "score"} == with_score
    with_classifier = {(task, method) for task in tagging for method in METHODS}
    assert {pair for pair, kind in kinds.items() if kind == "classifier"} == with_classifier
    assert {kind_of("sentiment", method, readout="head") for method in METHODS} == {"score"}


@pytest.mark.parametrize("method", METHODS)
def test_the_classifier_has_the_models_initializer_range_and_a_zero_bias(base, method):
    model = (
        built(base, "ner", method, seed=4, bias="all")
        if method == "lora"
        else built(base, "ner", method, seed=4)
    )
    assert type(model.head) is nn.Linear and model.head is model.classifier
    torch.manual_seed(4)
    assert torch.equal(model.classifier.weight, nn.init.normal_(torch.empty(11, 24), 0, 0.3))
    assert model.classifier.bias.shape == (11,) and not model.classifier.bias.any()
    assert model.classifier.weight.requires_grad and model.classifier.bias.requires_grad


@pytest.mark.parametrize("task", ["sentiment", "similarity"])
def test_the_score_of_a_label_starts_as_the_mean_embedding_of_its_label_words(base, task):
    model = built(base, task, "head")
    assert type(model.head) is nn.Linear and model.head is model.score and model.score.bias is None
    tokens = [
        base.tokenizer(" " + label, add_special_tokens=False)["input_ids"]
        for label in TASKS[task].labels
    ]
    assert task != "similarity" or len(tokens[0]) == 2  # a mean of two embeddings
    means = [sum(base.trunk.wte.weight[token] for token in ids) / len(ids) for ids in tokens]
    assert_close(model.score.weight, torch.stack(means), tolerance=1e-5)
    assert model.trainable().keys() == {"score.weight"}
    assert model.score.weight.data_ptr() != model.transformer.wte.weight.data_ptr()


def test_head_dropout_applies_to_the_hidden_state_in_training_only(base):
    model = built(base, "ner", "lora", head_dropout=0.4)
    nn.init.normal_(model.classifier.bias)
    hidden = torch.randn(5, 24)
    torch.manual_seed(3)
    logits = model.train().logits(hidden)
    torch.manual_seed(3)
    dropped = hidden * torch.empty(5, 24).bernoulli_(0.6) / 0.6
    weight, bias = model.classifier.weight, model.classifier.bias
    assert_close(logits, dropped @ weight.T + bias, tolerance=1e-5)
    assert_close(model.eval().logits(hidden), hidden @ weight.T + bias, tolerance=1e-5)


# ---- Target positions and loss


# in all three texts, not in order, and one of them twice
TARGET_INDICES = torch.tensor([40, 3, 16, 17, 21, 47, 16])


def test_target_positions_have_the_logits_and_gradients_of_the_full_model(base, oracle):
    ours, texts = TunedModel(copy.deepcopy(base.trunk).requires_grad_(True)), random_texts()
    theirs = copy.deepcopy(oracle)
    logits = all_logits(ours, batch_of(texts, TARGET_INDICES))
    expected = torch.cat([theirs(input_ids=text[None]).logits[0] for text in texts])[TARGET_INDICES]
    assert logits.shape == (len(TARGET_INDICES), 8192)
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], tolerance=1e-4)


@pytest.mark.parametrize("with_head", [False, True])
def test_logits_are_computed_at_the_target_positions_only(base, with_head):
    model = built(base, "ner", "lora") if with_head else TunedModel(base.trunk)
    hidden = model(batch_of(random_texts(), TARGET_INDICES), None)
    assert hidden.shape == (7, 24)
    assert model.logits(hidden).shape == (7, 11 if with_head else 8192)


def test_the_loss_is_the_summed_cross_entropy_of_the_known_targets(base):
    model, texts = TunedModel(base.trunk).eval(), random_texts()
    targets = torch.tensor([5, -1, 8191, 0, -1, 77, 4000])
    loss = model.loss(batch_of(texts, TARGET_INDICES, targets), None)
    logits = all_logits(model, batch_of(texts, TARGET_INDICES)).double()
    expected = sum(
        logits[i].exp().sum().log() - logits[i, target]
        for i, target in enumerate(targets)
        if target >= 0
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_head_has_its_loss_over_classes(base):
    model, texts = built(base, "ner", "lora").eval(), random_texts()
    targets = torch.tensor([0, 10, -1, 3, 3, -1, 1])
    loss = model.loss(batch_of(texts, TARGET_INDICES, targets), None)
    hidden = model(batch_of(texts, TARGET_INDICES), None).double()
    logits = hidden @ model.classifier.weight.double().T
    expected = -sum(
        logits.log_softmax(1)[i, target] for i, target in enumerate(targets) if target >= 0
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_known_targets_has_loss_zero_and_gradient_zero(base):
    model = built(base, "ner", "lora")
    loss = model.loss(batch_of(random_texts(), TARGET_INDICES), None)
    loss.backward()
    assert loss.item() == 0
    assert not model.classifier.weight.grad.any()


def test_an_instructions_past_equals_its_tokens_in_front_of_every_text(base, oracle):
    model, texts, first = TunedModel(base.trunk), random_texts(), random_texts((13,), seed=5)[0]
    prefix = model.instruction_past(first.tolist())
    assert prefix.length == 13
    logits = model.logits(model(batch_of(texts), prefix))
    expected = torch.cat([oracle(torch.cat([first, text])[None]).logits[0, 13:] for text in texts])
    assert_close(logits, expected)


def test_a_stored_prefix_can_be_used_for_several_batches(base):
    model = TunedModel(base.trunk, prompt=SoftPrompt(torch.randn(13, 24)))
    prefix, texts = model.prompt_past(), random_texts()
    together = model(batch_of(texts), prefix)
    alone = torch.cat([model(batch_of([text]), prefix) for text in texts])
    assert_close(alone, together)
    assert TunedModel(base.trunk).prompt_past() is None


@pytest.mark.parametrize("length", [4, 13])  # shorter and longer than the window
def test_a_prompt_in_the_batch_gives_the_logits_and_gradients_of_the_stored_prefix(base, length):
    model = TunedModel(base.trunk, prompt=SoftPrompt(torch.randn(length, 24)))
    batch, results = batch_of(random_texts(), TARGET_INDICES), []
    for prefix in (None, model.prompt_past()):
        logits = model.logits(model(batch, prefix))
        backward(logits)
        results.append((logits.detach(), model.prompt.embeddings.grad.clone()))
        model.prompt.embeddings.grad = None
    for in_batch, stored in zip(*results, strict=True):
        assert_close(in_batch, stored)


@pytest.mark.parametrize("in_training", [True, False])
def test_on_a_cpu_attention_has_no_padding(base, monkeypatch, in_training):
    model = TunedModel(base.trunk, prompt=SoftPrompt(torch.randn(3, 24)))
    of_texts, packings = Packing.of_texts, []
    monkeypatch.setattr(
        Packing,
        "of_texts",
        lambda *args, **more: packings.append(of_texts(*args, **more)) or packings[-1],
    )
    model(batch_of(random_texts(LENGTHS)), None if in_training else model.prompt_past())
    assert all(grid.indices is None for grid in packings[-1].grids) and len(packings[-1].grids) > 1


def test_the_lengths_of_a_batch_stay_on_the_cpu(base):
    batch = batch_of(random_texts(), TARGET_INDICES).to(torch.device("meta"))
    assert {batch.ids.device.type, batch.target_indices.device.type, batch.targets.device.type} == {
        "meta"
    }
    assert batch.lengths.device.type == "cpu" and batch.lengths.tolist() == list(LENGTHS)
    assert batch.target_counts.tolist() == [3, 2, 2]


# ---- Trainable parameters and dtypes


@pytest.mark.parametrize(
    ("task", "method", "options", "kinds"),
    [
        ("sentiment", "lora", {}, {"lora_A", "lora_B"}),
        ("ner", "lora", {"bias": "all"}, {"lora_A", "lora_B", "bias", "classifier"}),
        ("sentiment", "prompt", {}, {"prompt"}),
        ("ner", "prompt", {}, {"prompt", "classifier"}),
        ("similarity", "lora+prompt", {}, {"lora_A", "lora_B", "prompt"}),
        ("ner", "prefix", {}, {"prompt", "classifier"}),
        ("sentiment", "lora+prefix", {}, {"lora_A", "lora_B", "prompt"}),
        ("ner", "head", {}, {"classifier"}),
        ("similarity", "head", {}, {"score"}),
        ("sentiment", "lora", {"readout": "head"}, {"lora_A", "lora_B", "score"}),
        ("similarity", "prompt", {"readout": "head"}, {"prompt", "score"}),
    ],
)
def test_a_method_trains_its_own_parts_and_no_others(base, task, method, options, kinds):
    def kind(name):
        parts = name.split(".")
        return (
            parts[0]
            if parts[0] != "transformer"
            else (parts[-2] if parts[-2] in ("lora_A", "lora_B") else parts[-1])
        )

    model = built(base, task, method, **options)
    trainable = model.trainable()
    assert {kind(name) for name in trainable} == kinds
    assert trainable.keys() == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert all(parameter is model.get_parameter(name) for name, parameter in trainable.items())


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_full_trains_all_parameters(base, task):
    model = built(base, task, "full")
    names = {f"transformer.{name}" for name, _ in base.trunk.named_parameters()}
    head = {"classifier.weight", "classifier.bias"} if task == "ner" else set()
    assert model.trainable().keys() == names | head
    assert sum(p.numel() for p in model.trainable().values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_trainable_follows_requires_grad_at_any_time(base):
    model = built(base, "sentiment", "lora")
    model.transformer.ln_f.weight.requires_grad_(True)
    model.transformer.h[0].attn.attention.q_proj.lora_A.weight.requires_grad_(False)
    assert "transformer.ln_f.weight" in model.trainable()
    assert "transformer.h.0.attn.attention.q_proj.lora_A.weight" not in model.trainable()


@pytest.mark.parametrize("dtype", HALVES)
def test_frozen_matrices_have_the_compute_dtype_and_full_training_has_fp32(dtype):
    def dtype_of(method, dtype):
        return base_dtype(make_settings(task="ner", method=method), dtype)

    assert {dtype_of(method, dtype) for method in METHODS if method != "full"} == {dtype}
    assert dtype_of("full", dtype) == torch.float32
    assert dtype_of("lora", torch.float32) == torch.float32


@pytest.mark.parametrize(
    ("task", "method"),
    [("ner", "lora"), ("ner", "lora+prompt"), ("similarity", "head"), ("sentiment", "prompt")],
)
@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_precision_trainable_parameters_and_the_residual_stream_are_fp32(
    base, tiny_folder, task, method, dtype
):
    half = load_base(str(tiny_folder), dtype)
    options = {"bias": "all", "target_modules": "all-linear"} if "lora" in method else {}
    model = built(half, task, method, dtype, **options)
    for name, parameter in model.named_parameters():
        frozen_matrix = not parameter.requires_grad and parameter.dim() > 1
        assert parameter.dtype == (dtype if frozen_matrix else torch.float32), name

    dtypes_of = {}  # module: dtype of its input and output
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(
                lambda _, inputs, out, name=name: dtypes_of.update(
                    {name: (inputs[0].dtype, out.dtype)}
                )
            )
    batch = batch_of(random_texts(), TARGET_INDICES, torch.tensor([1, 0, -1, 1, 0, 1, 1]))
    hidden = model(batch, model.prompt_past())
    assert hidden.dtype == torch.float32
    logits = model.logits(hidden)
    assert logits.dtype == dtype
    assert model.loss(batch, model.prompt_past()).dtype == torch.float32
    norms = [pair for name, pair in dtypes_of.items() if name.split(".")[-1].startswith("ln_")]
    # their input is the residual stream
    assert len(norms) == 9 and all(of_input == torch.float32 for of_input, _ in norms)
    lora = [pair for name, pair in dtypes_of.items() if name.endswith(("lora_A", "lora_B"))]
    assert len(lora) == (2 * 24 if "lora" in method else 0)
    # their weights are fp32, but the products have the compute dtype
    assert all(of_output == dtype for _, of_output in lora)

    # The same as in fp32, except for rounding: bfloat16 has 8 bits of precision, float16 has 11.
    fp32_model = built(base, task, method, **options)
    fp32_model.load_state_dict(
        {name: tensor.float() for name, tensor in model.state_dict().items()}
    )
    expected = fp32_model.logits(fp32_model(batch, fp32_model.prompt_past()))
    error = (logits.float() - expected).norm() / expected.norm()
    assert 0 < error < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_in_half_precision_are_fp32_and_near_those_of_fp32(base, tiny_folder, dtype):
    half = built(load_base(str(tiny_folder), dtype), "ner", "lora+prompt", dtype, head_dropout=0)
    with torch.no_grad():
        for name, parameter in half.trainable().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    fp32_model = built(base, "ner", "lora+prompt", head_dropout=0)
    fp32_model.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    batch = batch_of(random_texts(), TARGET_INDICES, torch.tensor([1, 0, -1, 10, 0, 5, 1]))
    for model in (half, fp32_model):
        model.loss(batch).backward()
    for name, parameter in half.trainable().items():
        expected = fp32_model.trainable()[name].grad
        assert parameter.grad.dtype == torch.float32
        assert torch.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0) > 0.9, (
            name
        )


# ---- The published sizes, without weights


def published(hidden_size, layers, num_heads):
    """Return a trunk of a published size, on the device meta: without values."""
    config = Config(
        vocab_size=50257,
        hidden_size=hidden_size,
        num_heads=num_heads,
        max_position_embeddings=2048,
        window_size=256,
        intermediate_size=4 * hidden_size,
        attention_layers=("global", "local") * (layers // 2),
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        eos_token_id=50256,
    )
    with torch.device("meta"):
        return GPTNeo(config)


SMALL, LARGE = (768, 12, 12), (2048, 24, 16)  # gpt-neo-125m and gpt-neo-1.3B


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def on_meta(shape, task, method, **settings):
    settings = make_settings(task=task, method=method, model="EleutherAI/gpt-neo", **settings)
    model = build_model(
        published(*shape), load_tokenizer(BUNDLED["neo-mini"]), TASKS[task], settings
    )
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    return model


@pytest.mark.parametrize(
    ("shape", "total"),
    [(SMALL, 125_198_592), (LARGE, 1_315_575_808), ((2560, 32, 20), 2_651_307_520)],
)
def test_the_trunk_has_the_published_number_of_parameters(shape, total):
    assert count(published(*shape).parameters()) == total


def test_the_studys_prompt_has_the_published_share_of_parameters():
    model = on_meta(LARGE, "sentiment", "prompt", prompt_length=8)
    trainable, total = count(model.trainable().values()), count(model.parameters())
    assert (trainable, total) == (16_384, 1_315_592_192)
    assert 100 * trainable / total == 0.001245370723513689


def test_the_studys_ner_recipe_trains_lora_biases_and_a_head():
    model = on_meta(LARGE, "ner", "lora", preset="paper")
    parts = {"lora": 0, "head": 0, "biases": 0}
    for name, parameter in model.trainable().items():
        parts["lora" if "lora_" in name else "head" if "classifier" in name else "biases"] += (
            parameter.numel()
        )
    assert parts == {"lora": 3_145_728, "biases": 395_264, "head": 22_539}
    assert count(model.trainable().values()) == 3_563_531


@pytest.mark.parametrize(
    ("task", "method", "settings", "trainable"),
    [
        ("sentiment", "lora", {"rank": 8}, 294_912),
        ("ner", "lora", {"rank": 8}, 303_371),
        ("sentiment", "lora", {"rank": 8, "target_modules": "all-linear"}, 1_327_104),
        ("sentiment", "prompt", {"prompt_length": 20}, 15_360),
    ],
)
def test_the_number_of_trainable_parameters_of_the_small_model(task, method, settings, trainable):
    assert count(on_meta(SMALL, task, method, **settings).trainable().values()) == trainable


def test_adapted_modules_are_grouped_by_kind_shape_and_rank(base):
    model = built(base, "sentiment", "lora", rank=5, target_modules=("v_proj", "c_fc"))
    blocks = [f"transformer.h.{layer}" for layer in range(4)]
    assert adapted_layers(model) == {
        "v_proj (24 → 24), rank 5": [f"{block}.attn.attention.v_proj" for block in blocks],
        "c_fc (24 → 40), rank 5": [f"{block}.mlp.c_fc" for block in blocks],
    }
    assert adapted_layers(TunedModel(base.trunk)) == {}


# ---- Activation checkpointing


def stored_bytes(model, batch) -> int:
    """Return the bytes that a forward pass stores for the backward pass, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stored = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(batch)
    del hidden
    return sum(stored.values())


@pytest.mark.parametrize(
    ("task", "method"), [("ner", "lora"), ("sentiment", "prompt"), ("ner", "lora+prefix")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_no_bit_of_loss_and_gradients(
    tiny_folder, task, method, dtype
):
    batch, results = (
        batch_of(random_texts(), TARGET_INDICES, torch.tensor([1, 0, -1, 10, 0, 5, 1])),
        [],
    )
    for checkpoint in (False, True):
        options = {"dropout": 0.3, "target_modules": "all-linear"} if "lora" in method else {}
        base = load_base(str(tiny_folder), dtype)
        model = built(
            base, task, method, dtype, checkpoint_activations=checkpoint, **options
        ).train()
        with torch.no_grad():
            for name, parameter in model.trainable().items():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
        torch.manual_seed(7)  # for dropout
        loss = model.loss(batch)
        loss.backward()
        after = torch.rand(1)  # the next random number must be the same too
        results.append(
            [loss.detach(), after, *(parameter.grad for parameter in model.trainable().values())]
        )
        results[-1].append(stored_bytes(model, batch))
    *plain, plain_bytes = results[0]
    *recomputed, recomputed_bytes = results[1]
    assert len(plain) == len(recomputed) > 2
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert recomputed_bytes < 0.5 * plain_bytes


def test_evaluation_uses_no_activation_checkpointing(base, monkeypatch):
    model = built(base, "ner", "lora", checkpoint_activations=True)
    monkeypatch.setattr("neo_peft.gptneo.checkpoint", None)
    with torch.inference_mode():
        model(batch_of(random_texts()))
    with pytest.raises(TypeError):
        model(batch_of(random_texts()))
