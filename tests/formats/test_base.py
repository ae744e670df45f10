"""Load a base model: its tensors, known variants, and error messages."""

from pathlib import Path

import pytest
import torch
from base_files import WPE, WTE, assert_refused, change_tensors, shard
from safetensors.torch import load_file, save_file
from transformers import GPTNeoForSequenceClassification, GPTNeoForTokenClassification

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED, WEIGHTS

# ---- What is loaded


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matrices_have_the_given_dtype_norms_and_biases_are_fp32_and_all_are_frozen(
    folder, stored, dtype
):
    change_tensors(
        folder, lambda t: t.update({name: tensor.to(stored) for name, tensor in t.items()})
    )
    loaded, expected = load_base(str(folder), dtype).trunk, load_file(folder / WEIGHTS)
    parameters = dict(loaded.named_parameters(prefix="transformer"))
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        wanted = dtype if expected[name].dim() == 2 else torch.float32
        assert parameter.dtype == wanted, name
        assert torch.equal(parameter, expected[name].to(wanted)), name
        assert not parameter.requires_grad
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_tensors_that_are_cast_are_copied_the_others_stay_mapped(tiny_folder, dtype):
    loaded = load_base(str(tiny_folder), dtype).trunk
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        range(*(int(end, 16) for end in entry[0].split("-")))
        for entry in maps
        if entry[-1].endswith(WEIGHTS)
    ]
    for name, parameter in loaded.named_parameters():
        is_mapped = any(parameter.data_ptr() in addresses for addresses in mapped)
        assert is_mapped == (dtype == torch.float32 or parameter.dim() == 1), name


def test_training_never_changes_the_file_and_a_new_file_never_changes_a_loaded_model(
    tiny_folder, folder
):
    content, plain = (folder / WEIGHTS).read_bytes(), load_file(tiny_folder / WEIGHTS)
    trunk = load_base(str(folder)).trunk
    for parameter in trunk.parameters():
        parameter.data += 1
    assert (folder / WEIGHTS).read_bytes() == content
    trunk = load_base(str(folder)).trunk
    save_file({name: torch.zeros(2) for name in plain}, folder / "new")
    (folder / "new").replace(folder / WEIGHTS)
    for name, parameter in trunk.named_parameters(prefix="transformer"):
        assert torch.equal(parameter, plain[name]), name


def test_neo_mini_has_its_published_sizes():
    loaded = load_base("neo-mini")
    config = loaded.trunk.config
    assert loaded.parameters == sum(p.numel() for p in loaded.trunk.parameters()) == 6_897_152
    assert (config.hidden_size, config.num_layers, config.num_heads, config.vocab_size) == (
        256,
        6,
        8,
        8192,
    )
    assert (config.max_position_embeddings, config.window_size, config.eos_token_id) == (256, 64, 0)
    assert config.intermediate_size == 4 * 256 and config.layer_norm_epsilon == 1e-5
    assert loaded.folder == BUNDLED["neo-mini"] and loaded.notes == []


# ---- Known variants of the file


def unprefixed(folder):
    change_tensors(
        folder,
        lambda t: [t.update({name.removeprefix("transformer."): t.pop(name)}) for name in list(t)],
    )


def equal_lm_head(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t[WTE].clone()}))


def lm_head_alone(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop(WTE)}))


def old_masks(folder):
    causal = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
    for layer in range(4):
        name = f"transformer.h.{layer}.attn.attention."
        added = {name + "bias": causal.clone(), name + "masked_bias": torch.tensor(-1e9)}
        change_tensors(folder, lambda t, added=added: t.update(added))


@pytest.mark.parametrize("variant", [shard, unprefixed, equal_lm_head, lm_head_alone, old_masks])
def test_a_known_variant_is_the_same_model_with_the_same_fingerprint(tiny_folder, folder, variant):
    plain = load_base(str(tiny_folder))
    variant(folder)
    varied = load_base(str(folder))
    assert (
        varied.fingerprint == plain.fingerprint
        and varied.parameters == plain.parameters
        and varied.notes == []
    )
    for (name, ours), theirs in zip(
        varied.trunk.named_parameters(), plain.trunk.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("published", "names"),
    [
        (GPTNeoForTokenClassification, ["classifier.bias", "classifier.weight"]),
        (GPTNeoForSequenceClassification, ["score.weight"]),
    ],
)
def test_a_head_of_transformers_is_not_loaded_and_a_note_names_it(
    tiny_folder, folder, published, names
):
    published.from_pretrained(tiny_folder, dtype=torch.float32, num_labels=5).save_pretrained(
        folder
    )
    loaded = load_base(str(folder))
    assert loaded.notes == [
        f"{folder}: {name} was not loaded; a run makes its own new head" for name in names
    ]
    assert loaded.fingerprint == load_base(str(tiny_folder)).fingerprint


# ---- Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("transformer.ln_f.bias"),
            "missing tensors: 1, the first is transformer.ln_f.bias",
        ),
        (
            lambda t: t.update(extra=torch.ones(2)),
            "unexpected tensors: 1, the first is transformer.extra",
        ),
        (
            lambda t: t.update({"transformer.h.4.ln_1.bias": torch.ones(24)}),
            "the first is transformer.h.4.ln_1.bias",
        ),
        (
            lambda t: t.update({"lm_head.bias": torch.ones(8192)}),
            "the first is transformer.lm_head.bias",
        ),
        (
            lambda t: t.update({WPE: torch.ones(7, 24)}),
            "transformer.wpe.weight has the shape (7, 24); expected (128, 24), by config.json",
        ),
        (
            lambda t: t.update({"wte.weight": t[WTE].clone()}),
            "the weights have transformer.wte.weight twice",
        ),
        (
            lambda t: t.update({"lm_head.weight": t[WTE] + 1}),
            "lm_head.weight differs from wte: untied embeddings",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(3, 24)}),
            "lm_head.weight differs from wte",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensors_name(folder, change, message):
    change_tensors(folder, change)
    assert_refused(folder, message)


@pytest.mark.parametrize("end", [0, 5, 3000, -1])
def test_a_safetensors_file_that_was_cut_short_is_refused(folder, end):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:end])
    assert_refused(folder, f"{folder / WEIGHTS} is not a readable safetensors file")
