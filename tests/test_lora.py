"""LoRA, compared with the formula and with peft for the same weights and seeds."""

import copy
import math

import peft
import pytest
import torch
from parity import (
    all_logits,
    assert_close,
    backward,
    batch_of,
    bits,
    moved,
    padded,
    random_texts,
    real_rows,
)
from torch import nn
from torch.amp import GradScaler
from transformers import GPTNeoForTokenClassification, get_linear_schedule_with_warmup

from neo_peft.errors import InputError
from neo_peft.kernels.dropout import drop
from neo_peft.loop import learning_rate_at, make_optimizer, take_step
from neo_peft.lora import LoRALinear, add_lora, match_targets, merge_lora
from neo_peft.methods import build_model
from neo_peft.model import TunedModel
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

IN, OUT, RANK, ALPHA, TOKENS = 7, 11, 3, 5.0, 4  # all different, and r < in

Q_V = ("q_proj", "v_proj")
ALL = ("all-linear",)
KINDS = ["k_proj", "v_proj", "q_proj", "out_proj", "c_fc", "c_proj"]


# ---- One layer, written out


def adapted_layer(bias=True, dropout=0.0, rslora=False, dtype=torch.float32):
    """Return one linear layer with LoRA, whose B is random instead of zero."""
    net = nn.ModuleDict({"fc": nn.Linear(IN, OUT, bias, dtype=dtype)})
    add_lora(net, ["fc"], RANK, ALPHA, dropout, rslora=rslora)
    nn.init.normal_(net["fc"].lora_B.weight)
    return net["fc"]


def formula(layer, x, scaling, dropped=None):
    """Return copies of the weights by name, and W x + b + scaling · B A x, in float64."""
    leaves = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    x = x.double()
    out = x @ leaves["base_layer.weight"].T + leaves.get("base_layer.bias", 0)
    low = (x if dropped is None else x * dropped) @ leaves["lora_A.weight"].T
    return leaves, out + scaling * low @ leaves["lora_B.weight"].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rslora", "scaling"), [(False, ALPHA / RANK), (True, ALPHA / math.sqrt(RANK))]
)
def test_the_layer_has_the_outputs_and_gradients_of_the_formula(bias, rslora, scaling):
    layer = adapted_layer(bias, rslora=rslora)
    x = torch.randn(TOKENS, IN, requires_grad=True)
    their_x = x.detach().double().requires_grad_()
    leaves, expected = formula(layer, their_x, scaling)
    out = layer(x)
    assert out.dtype == torch.float32
    assert_close(out, expected)
    backward(out)
    backward(expected)
    assert_close(x.grad, their_x.grad)
    assert_close(layer.lora_A.weight.grad, leaves["lora_A.weight"].grad)
    assert_close(layer.lora_B.weight.grad, leaves["lora_B.weight"].grad)
    base = layer.base_layer
    assert base.weight.grad is None and (not bias or base.bias.grad is None)


def test_a_is_uniform_within_one_over_the_root_of_its_inputs_and_b_is_zero():
    # kaiming_uniform_(a=sqrt(5)) is U(-1/sqrt(in), 1/sqrt(in)). With r instead of in, the bound
    # would be 4.5 times as large.
    net = nn.ModuleDict({"fc": nn.Linear(100, 30)})
    add_lora(net, ["fc"], rank=5, alpha=3)
    a, bound = net["fc"].lora_A.weight, 1 / math.sqrt(100)
    assert a.shape == (5, 100) and net["fc"].lora_B.weight.shape == (30, 5)
    assert 0.97 * bound < a.max() <= bound and -bound <= a.min() < -0.97 * bound
    assert a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not net["fc"].lora_B.weight.any()


def test_gaussian_a_has_the_standard_deviation_one_over_r():
    net = nn.ModuleDict({"fc": nn.Linear(400, 30)})
    add_lora(net, ["fc"], rank=5, alpha=3, init="gaussian")
    assert net["fc"].lora_A.weight.std().item() == pytest.approx(1 / 5, rel=0.1)
    assert net["fc"].lora_A.weight.mean().item() == pytest.approx(0, abs=0.02)
    assert not net["fc"].lora_B.weight.any()


def dropped_ones(*shape):
    """Return ones after dropout of 0.4, which kernels/test_dropout.py tests."""
    ones, share = drop(torch.ones(shape), 0.4)
    assert share == pytest.approx(0.6, abs=1e-5)
    return ones / share


def test_dropout_applies_to_the_input_of_a_only_and_scales_it_up():
    layer, x = adapted_layer(dropout=0.4).train(), torch.randn(TOKENS, IN)
    torch.manual_seed(3)
    out = layer(x)
    torch.manual_seed(3)
    dropped = dropped_ones(TOKENS, IN)
    assert 0 < (dropped == 0).sum() < TOKENS * IN
    assert_close(out, formula(layer, x, ALPHA / RANK, dropped)[1])


def test_there_is_no_dropout_in_eval_mode():
    layer, x = adapted_layer(dropout=0.4).eval(), torch.randn(TOKENS, IN)
    assert_close(layer(x), formula(layer, x, ALPHA / RANK)[1])


def test_two_steps_of_sgd_change_first_b_then_a_and_never_w():
    net = nn.ModuleDict({"fc": nn.Linear(IN, OUT)})
    add_lora(net, ["fc"], RANK, ALPHA)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    x, y = torch.randn(TOKENS, IN), torch.randn(TOKENS, OUT)
    for expected in ({"fc.lora_B.weight"}, {"fc.lora_A.weight", "fc.lora_B.weight"}):
        before = bits(net)
        optimizer.zero_grad()
        (net["fc"](x) - y).square().mean().backward()
        optimizer.step()
        assert moved(before, net) == expected


# ---- Merging


@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_layer_is_plain_and_computes_what_the_unmerged_does(rslora):
    layer, x = adapted_layer(rslora=rslora, dropout=0.4).eval(), torch.randn(TOKENS, IN)
    merged, bias = layer.merged(), layer.bias.detach().clone()
    assert type(merged) is nn.Linear and (merged.in_features, merged.out_features) == (IN, OUT)
    assert not merged.weight.requires_grad
    assert torch.equal(merged.bias, bias)
    assert_close(merged(x), layer(x))
    scaling = ALPHA / (math.sqrt(RANK) if rslora else RANK)
    correction = scaling * layer.lora_B.weight @ layer.lora_A.weight
    assert_close(merged.weight, layer.base_layer.weight + correction)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_sums_in_fp32_and_rounds_once(dtype):
    layer = adapted_layer(bias=False, dtype=dtype)
    correction = ALPHA / RANK * layer.lora_B.weight @ layer.lora_A.weight
    merged = layer.merged()
    assert merged.weight.dtype == dtype and merged.bias is None
    assert torch.equal(merged.weight, (layer.base_layer.weight.float() + correction).to(dtype))
    # rounding the correction first gives other numbers
    assert not torch.equal(merged.weight, layer.base_layer.weight + correction.to(dtype))


def test_a_merge_that_is_not_finite_is_refused():
    broken = adapted_layer()
    with torch.no_grad():
        broken.lora_B.weight[2, 1] = math.nan
    overflowing = adapted_layer(dtype=torch.float16)  # finite in fp32, beyond 65504 in fp16
    with torch.no_grad():
        overflowing.lora_A.weight.fill_(100)
        overflowing.lora_B.weight.fill_(1000)
    for layer in (broken, overflowing):
        net = nn.ModuleDict({"fc": layer})
        with pytest.raises(InputError, match="merging LoRA gives weights that are not finite"):
            merge_lora(net)


# ---- A model, compared with peft


def trunk_of(base):
    return copy.deepcopy(base.trunk)


def peft_lora(oracle, targets=Q_V, rank=5, alpha=7, task_type="CAUSAL_LM", seed=5, **options):
    """Return a copy of transformers' model with LoRA by peft."""
    targets = targets[0] if targets == ALL else list(targets)
    config = peft.LoraConfig(task_type, target_modules=targets, r=rank, lora_alpha=alpha, **options)
    torch.manual_seed(seed)
    return peft.get_peft_model(copy.deepcopy(oracle), config)


def our_name(name):
    """Return our name of a parameter or module from peft's."""
    for theirs in ("base_model.model.", ".default", ".modules_to_save"):
        name = name.replace(theirs, "")
    return name


def trainable_of(theirs):
    """Return the trainable parameters of peft's model by our names."""
    return {our_name(name): p for name, p in theirs.named_parameters() if p.requires_grad}


def our_lora(base, **options):
    """Return our model with LoRA, and the names of its layers."""
    trunk = trunk_of(base)
    names = add_lora(trunk, **{"rank": 5, "alpha": 7, **options})
    return TunedModel(trunk), names


def change_both(ours, theirs):
    """Add the same random values to the trainable parameters of both models: B is then not zero."""
    with torch.no_grad():
        for name, parameter in trainable_of(theirs).items():
            parameter.copy_(ours.trainable()[name].add_(0.1 * torch.randn(parameter.shape)))


@pytest.mark.parametrize(
    ("targets", "init"),
    [
        (Q_V, "kaiming"),
        (ALL, "kaiming"),
        (("c_fc", "v_proj", "out_proj"), "kaiming"),
        (Q_V, "gaussian"),
    ],
)
def test_one_seed_draws_the_same_matrices_as_peft(base, oracle, targets, init):
    theirs = peft_lora(oracle, targets, init_lora_weights=True if init == "kaiming" else "gaussian")
    after = torch.rand(1)
    torch.manual_seed(5)
    ours, _ = our_lora(base, target_modules=targets, init=init)
    assert torch.equal(torch.rand(1), after)  # the same number of draws
    trainable = trainable_of(theirs)
    assert ours.trainable().keys() == trainable.keys()
    assert all(
        torch.equal(parameter, trainable[name]) for name, parameter in ours.trainable().items()
    )


@pytest.mark.parametrize("targets", [Q_V, ALL])
def test_a_model_with_a_fresh_adapter_has_the_logits_of_its_base(base, targets):
    batch = batch_of(random_texts())
    with torch.no_grad():
        expected = all_logits(TunedModel(trunk_of(base)), batch)
        ours, _ = our_lora(base, target_modules=targets)
        assert torch.equal(all_logits(ours, batch), expected)
        for parameter in ours.trainable().values():
            parameter.fill_(0.1)
        assert not torch.equal(all_logits(ours, batch), expected)


def test_build_model_draws_head_and_adapter_each_from_the_seed(base, oracle):
    settings = make_settings(task="ner", method="lora", rank=5, alpha=7, seed=9, target_modules=ALL)
    ours = build_model(trunk_of(base), base.tokenizer, TASKS["ner"], settings)
    torch.manual_seed(9)
    head = nn.init.normal_(torch.empty(11, 24), 0, 0.3)  # the tiny model's initializer_range
    assert torch.equal(ours.classifier.weight, head)
    assert not ours.classifier.bias.any()
    theirs = trainable_of(peft_lora(oracle, ALL, seed=9))
    assert ours.trainable().keys() - theirs.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(ours.trainable()[name], parameter) for name, parameter in theirs.items())


def test_build_model_uses_every_setting_in_every_layer(base, oracle):
    settings = make_settings(
        task="sentiment",
        method="lora",
        rank=5,
        alpha=7,
        seed=9,
        dropout=0.4,
        rslora=True,
        lora_init="gaussian",
        bias="all",
    )
    ours = build_model(trunk_of(base), base.tokenizer, TASKS["sentiment"], settings)
    theirs = trainable_of(peft_lora(oracle, seed=9, init_lora_weights="gaussian", bias="all"))
    assert ours.trainable().keys() == theirs.keys()
    assert all(torch.equal(ours.trainable()[name], parameter) for name, parameter in theirs.items())
    layers = [module for module in ours.modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 8
    for layer in layers:
        nn.init.normal_(layer.lora_B.weight)
        x = torch.randn(TOKENS, 24)
        torch.manual_seed(3)
        out = layer(x)
        torch.manual_seed(3)
        dropped = dropped_ones(TOKENS, 24)
        assert_close(out, formula(layer, x, 7 / math.sqrt(5), dropped)[1])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("targets", [Q_V, ALL])
def test_trainable_tensors_logits_and_gradients_are_pefts(base, oracle, targets, bias, rslora):
    theirs = peft_lora(oracle, targets, bias=bias, use_rslora=rslora)
    ours, _ = our_lora(base, target_modules=targets, bias=bias, rslora=rslora)
    trainable = trainable_of(theirs)
    assert ours.trainable().keys() == trainable.keys()
    change_both(ours, theirs)

    texts = random_texts()
    logits = all_logits(ours, batch_of(texts))
    expected = real_rows(theirs(input_ids=padded(texts)).logits, texts)
    with torch.no_grad():
        assert (
            expected - real_rows(oracle(padded(texts)).logits, texts)
        ).abs().max() > 1  # the adapter changes the logits
    assert_close(logits, expected)
    backward(logits)
    backward(expected)
    for name, parameter in ours.trainable().items():
        assert_close(parameter.grad, trainable[name].grad, tolerance=1e-4)


def test_the_option_bias_selects_the_trainable_biases(base):
    trainable = {
        bias: our_lora(base, bias=bias)[0].trainable() for bias in ("none", "all", "lora_only")
    }
    all_biases = {
        f"transformer.{name}" for name, _ in base.trunk.named_parameters() if name.endswith(".bias")
    }
    # out_proj, c_fc, c_proj and two norms in each layer, and the last norm
    assert len(all_biases) == 4 * 5 + 1
    assert trainable["all"].keys() - trainable["none"].keys() == all_biases
    assert trainable["lora_only"].keys() == trainable["none"].keys()  # q and v have no bias


def test_a_merged_model_has_the_names_of_the_base_and_the_logits_of_the_unmerged_model(base):
    ours, _ = our_lora(base, target_modules=ALL, bias="all", dropout=0.3)
    with torch.no_grad():
        for parameter in ours.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    biases = {
        name.replace("base_layer.", ""): p.clone()
        for name, p in ours.transformer.named_parameters()
        if name.endswith("bias")
    }
    batch = batch_of(random_texts())
    ours.eval()
    with torch.no_grad():
        expected = all_logits(ours, batch)
        merge_lora(ours)
        assert_close(all_logits(ours, batch), expected)
    assert [name for name, _ in ours.transformer.named_parameters()] == [
        name for name, _ in base.trunk.named_parameters()
    ]
    assert not any(isinstance(module, LoRALinear) for module in ours.modules())
    merged = dict(ours.transformer.named_parameters())
    assert all(torch.equal(merged[name], bias) for name, bias in biases.items())


def optimizer_of_trainer(model, rate, decay):
    """Return AdamW as transformers' Trainer makes it: no weight decay for biases and norms."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in trainable if name.endswith("bias") or "ln_" in name]
    others = [p for name, p in trainable if not (name.endswith("bias") or "ln_" in name)]
    return torch.optim.AdamW(
        [{"params": others, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}], rate
    )


def test_twenty_steps_on_packed_batches_have_pefts_losses_on_padded_batches(base, tiny_folder):
    steps, rate, decay = 20, 1e-2, 0.1
    settings = make_settings(
        task="ner",
        method="lora",
        rank=5,
        alpha=7,
        bias="all",
        learning_rate=rate,
        weight_decay=decay,
        warmup_ratio=0.15,
        head_dropout=0,
        seed=9,
    )
    ours = build_model(trunk_of(base), base.tokenizer, TASKS["ner"], settings)
    classifier = GPTNeoForTokenClassification.from_pretrained(
        tiny_folder, num_labels=11, classifier_dropout=0.0, dtype=torch.float32
    )
    classifier.classifier.load_state_dict(ours.classifier.state_dict())
    theirs = peft_lora(classifier, bias="all", task_type="TOKEN_CLS", seed=9)
    optimizer, their_optimizer = (
        make_optimizer(ours, settings),
        optimizer_of_trainer(theirs, rate, decay),
    )
    schedule = get_linear_schedule_with_warmup(their_optimizer, 3, steps)

    losses = []
    for step in range(steps):
        # Four batches, again and again, so that the loss falls and a wrong step is detected. One
        # token in three is a target position.
        texts = random_texts([(17, 5, 26), (9, 30), (3, 21, 12), (14, 14)][step % 4], seed=step % 4)
        labels = [torch.where(text % 3 == 0, text % 11, -100) for text in texts]
        flat = torch.cat(labels)
        indices = (flat != -100).nonzero().squeeze(1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, settings)
        batch = batch_of(texts, indices, flat[indices])
        scaler = GradScaler("cpu", enabled=False)
        loss, norm = take_step(ours, optimizer, scaler, [batch], batch.labelled, clip_norm=1.0)

        mask = padded([torch.ones_like(text) for text in texts])
        expected = theirs(
            input_ids=padded(texts), attention_mask=mask, labels=padded(labels, -100)
        ).loss
        expected.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_optimizer.step()
        schedule.step()
        their_optimizer.zero_grad()
        losses.append(loss)
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        assert norm == pytest.approx(their_norm.item(), rel=1e-3)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


# ---- The targets


@pytest.mark.parametrize(
    "target",
    [
        "q_proj",
        "attention.v_proj",
        "mlp.c_fc",
        "attn.attention.out_proj",
        "1.mlp.c_proj",
        "transformer.h.2.attn.attention.k_proj",
        r"transformer\.h\.[13]\..*_proj",
        r".*\.(q_proj|c_fc)",
        r".*h\.0\.attn.*proj",
    ],
)
def test_a_target_matches_the_same_layers_as_in_peft(base, oracle, target):
    config = peft.LoraConfig(target_modules=target if "*" in target else [target])
    expected = peft.get_peft_model(copy.deepcopy(oracle), config).targeted_module_names
    names = match_targets(base.trunk, [target])
    assert {f"transformer.{name}" for name in names} == set(expected)


def test_all_linear_means_the_layers_of_the_trunk_without_the_head(base):
    settings = make_settings(task="ner", method="lora", target_modules=ALL)
    model = build_model(trunk_of(base), base.tokenizer, TASKS["ner"], settings)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert len(adapted) == 4 * 6 and {name.rsplit(".", 1)[-1] for name in adapted} == set(KINDS)
    assert type(model.classifier) is nn.Linear
    assert type(model.transformer.wte) is nn.Embedding


def test_layers_are_adapted_in_the_order_of_the_trunk_not_of_the_targets(base):
    expected = [
        f"h.{layer}.attn.attention.{kind}" for layer in range(4) for kind in ("v_proj", "q_proj")
    ]
    model, names = our_lora(base, target_modules=("q_proj", "v_proj", r"h\.0\..*q_proj"))
    assert names == expected
    adapted = [
        name for name, module in model.transformer.named_modules() if isinstance(module, LoRALinear)
    ]
    assert adapted == expected


@pytest.mark.parametrize(
    ("targets", "unmatched"),
    [
        (("q_proj", "qproj"), "'qproj'"),
        (("query", "q_proj", "h.7.mlp.c_fc"), "'query', 'h.7.mlp.c_fc'"),
        (("_proj",), "'_proj'"),  # a suffix starts after a dot
        ((r"h\.0",), r"'h\\.0'"),  # a regular expression must match the whole name
        (
            ("wte",),
            "'wte'",
        ),  # an embedding: merging would change the language model head, which shares it
        (("attn.attention",), "'attn.attention'"),
        ((), "an empty list"),
    ],
)
def test_each_target_must_match_and_the_error_lists_the_choices(base, targets, unmatched):
    trunk = trunk_of(base)
    before = [name for name, _ in trunk.named_modules()]
    with pytest.raises(InputError) as error:
        add_lora(trunk, targets)
    assert str(error.value) == (
        f"no linear layer matches {unmatched}; give the end of a name (c_fc, c_proj, k_proj, "
        "out_proj, q_proj, v_proj), a full name such as h.0.attn.attention.k_proj, or all-linear"
    )
    assert [name for name, _ in trunk.named_modules()] == before


def test_a_target_that_is_no_valid_regular_expression_is_refused_with_the_reason(base):
    with pytest.raises(
        InputError,
        match=r"the target 'q_proj\(' is neither a module's name nor a regular expression: miss",
    ):
        match_targets(base.trunk, ["v_proj", "q_proj("])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "al"}, "bias must be one of none, all, lora_only, not 'al'"),
        ({"init": "pissa"}, "lora_init must be one of kaiming, gaussian, not 'pissa'"),
        (
            {"rank": 0},
            "LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1, not rank 0, alpha 7, dropout 0.0",
        ),
        (
            {"alpha": -7},
            "LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1, not rank 5, alpha -7, dropout 0.0",
        ),
        (
            {"dropout": 1},
            "LoRA needs rank >= 1, alpha > 0, 0 <= dropout < 1, not rank 5, alpha 7, dropout 1",
        ),
    ],
)
def test_invalid_options_are_refused_before_anything_is_changed(base, options, message):
    trunk = trunk_of(base).requires_grad_(True)
    with pytest.raises(InputError) as error:
        add_lora(trunk, **{"rank": 5, "alpha": 7, **options})
    assert str(error.value) == message
    assert not any(isinstance(module, LoRALinear) for module in trunk.modules())
    assert all(parameter.requires_grad for parameter in trunk.parameters())


def test_a_second_lora_on_the_same_trunk_is_refused_until_the_first_is_merged(base):
    model, names = our_lora(base)
    with pytest.raises(
        InputError, match="the trunk already has LoRA; call merge_lora before you add another one"
    ):
        add_lora(model.transformer, ["all-linear"])
    merge_lora(model)
    assert add_lora(model.transformer) == names


# ---- What is frozen


def test_steps_change_all_trainable_parameters_and_no_others(base):
    settings = make_settings(task="ner", method="lora", bias="all", dropout=0.2)
    model = build_model(trunk_of(base), base.tokenizer, TASKS["ner"], settings).train()
    optimizer = make_optimizer(model, settings)
    before = bits(model)
    texts = random_texts()
    for _ in range(2):  # A changes from the second step on
        batch = batch_of(texts, torch.tensor([0, 9, 16, 20, 40]), torch.tensor([3, 0, 10, 5, 1]))
        scaler = GradScaler("cpu", enabled=False)
        take_step(model, optimizer, scaler, [batch], batch.labelled, clip_norm=0.0)
    assert moved(before, model) == model.trainable().keys()
    assert len(model.trainable()) == 2 * 8 + 21 + 2


def test_switching_train_and_eval_mode_changes_no_weight(base):
    model, _ = our_lora(base, target_modules=ALL, dropout=0.3)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_()
    before, parameters = bits(model), list(model.parameters())
    for mode in (True, False, False, True, True):
        model.train(mode)
    assert moved(before, model) == set()
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
