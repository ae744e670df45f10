"""The counted bytes are those that autograd keeps: every method, precision and kind of base."""

from dataclasses import replace

import pytest
import torch

from neo_peft.commands.train import parse_flags
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.published import trunk_without_data
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.kernels.linear import Linear
from neo_peft.kernels.quantized import QuantizedLinear
from neo_peft.methods import build_model
from neo_peft.model import Batch
from neo_peft.runs.activations import kept_in_step
from neo_peft.runs.cost import Peaks
from neo_peft.settings import task_of

CONFIG = Config(
    vocab_size=8192,
    hidden_size=24,
    num_heads=3,
    max_position_embeddings=128,
    window_size=11,
    intermediate_size=40,
    attention_layers=("global", "local") * 2,
    layer_norm_epsilon=1e-5,
    initializer_range=0.3,
    eos_token_id=0,
)
# Two texts of the same length share a grid. The third is longer than the window of local layers.
LENGTHS, TARGETS, TARGET_COUNTS = [9, 9, 14, 5], [2, 5, 10, 20, 33], [1, 1, 1, 2]
OUT_AND_MLP = "out_proj,c_fc,c_proj"
METHODS = {
    "lora": "--task ner --method lora --rank 5",
    "lora, dropout": "--task ner --method lora --rank 5 --dropout 0.1",
    "lora, all": "--task ner --method lora --rank 5 --dropout 0.1 --target-modules all-linear "
    "--bias all",
    "lora, MLP": f"--task ner --method lora --rank 5 --target-modules {OUT_AND_MLP}",
    "lora, biases": f"--task ner --method lora --rank 5 --dropout 0.2 --target-modules "
    f"{OUT_AND_MLP} --bias lora_only --head-dropout 0",
    "prompt": "--task sentiment --method prompt --prompt-length 7",
    "prompt, long": "--task sentiment --method prompt --prompt-length 13",
    "prefix": "--task sentiment --method prefix --prompt-length 7",
    "prefix, tags": "--task ner --method prefix --prompt-length 7",
    "full": "--task sentiment --method full",
    "full, tags": "--task ner --method full",
    "head": "--task ner --method head",
    "head, classes": "--task sentiment --method head",
    "lora+prompt": "--task sentiment --method lora+prompt --rank 5 --prompt-length 7",
    "lora+prefix": "--task sentiment --method lora+prefix --rank 5 --prompt-length 7 "
    "--readout head",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def settings_of(name, **changes):
    return replace(parse_flags(METHODS[name].split()), **changes)


def quantized(trunk: GPTNeo, kind: str, dtype: torch.dtype) -> None:
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, Linear):
            packed = QuantizedLinear(layer.weight.detach().float(), kind, dtype)
            packed.bias = layer.bias
            trunk.set_submodule(name, packed)


def make_model(settings, dtype, quantize="none"):
    """Return a tiny model whose frozen matrices are in `dtype`, in training mode."""
    torch.manual_seed(0)
    trunk = GPTNeo(CONFIG).requires_grad_(False)
    for parameter in trunk.parameters():
        parameter.data.normal_(std=0.05)
        if parameter.dim() > 1 and not settings.trains_base:
            parameter.data = parameter.data.to(dtype)
    if quantize != "none":
        quantized(trunk, quantize, dtype)
    tokenizer = load_tokenizer(BUNDLED["neo-mini"])
    return build_model(trunk, tokenizer, task_of(settings), settings, dtype).train()


def make_batch(model):
    classes = CONFIG.vocab_size if model.head is None else model.head.out_features
    return Batch(
        torch.randint(0, 8000, (sum(LENGTHS),)),
        torch.tensor(LENGTHS),
        torch.tensor(TARGETS),
        torch.randint(0, classes, (len(TARGETS),)),
        torch.tensor(TARGET_COUNTS),
    )


def kept_bytes(model, compute) -> int:
    """Return the bytes of the tensors that autograd keeps in `compute`, without the weights."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = compute()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del result
    return sum(size for address, size in storages.items() if address not in weights)


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_the_counted_bytes_are_those_that_autograd_keeps(name, precision, quantize):
    settings = settings_of(name)
    if quantize != "none" and settings.trains_base:
        return  # refused
    model = make_model(settings, DTYPES[precision], quantize)
    batch = make_batch(model)
    counted = kept_in_step(model, LENGTHS, len(TARGETS))
    assert counted.total == kept_bytes(model, lambda: model.loss(batch))


def test_a_first_text_that_is_as_long_as_the_prompt_is_counted_like_a_later_one():
    settings = settings_of("prompt", prompt_length=14)
    model = make_model(settings, torch.float32)
    first, later = (kept_in_step(model, lengths, 5) for lengths in ([14, 9, 5], [9, 14, 5]))
    assert first == later


@pytest.mark.parametrize("name", ["lora", "prompt", "full"])
def test_class_weights_are_counted(name):
    model = make_model(settings_of(name), torch.float32)
    model.target_weights = lambda batch: torch.ones(len(batch.targets))
    batch = make_batch(model)
    counted = kept_in_step(model, LENGTHS, len(TARGETS)).total
    assert counted == kept_bytes(model, lambda: model.loss(batch))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_with_checkpointed_activations_the_inputs_of_the_layers_are_kept(name, precision, quantize):
    settings = settings_of(name, checkpoint_activations=True)
    if quantize != "none" and settings.trains_base:
        return  # refused
    model = make_model(settings, DTYPES[precision], quantize)
    batch, is_prompt = make_batch(model), bool(model.prompt and model.prompt.embeddings is not None)
    tokens = sum(LENGTHS) + (len(model.prompt) if is_prompt else 0)
    peaks = Peaks(model, settings, tokens, len(TARGETS))
    counted = peaks.kept_after_forward(kept_in_step(model, LENGTHS, len(TARGETS)))
    assert counted == kept_bytes(model, lambda: model.loss(batch))


@pytest.mark.parametrize("name", METHODS)
def test_a_model_without_data_has_the_same_counts(name):
    settings = settings_of(name)
    model = make_model(settings, torch.float32)
    tokenizer = load_tokenizer(BUNDLED["neo-mini"])
    empty = build_model(trunk_without_data(CONFIG), tokenizer, task_of(settings), settings)
    assert kept_in_step(empty, LENGTHS, 5) == kept_in_step(model, LENGTHS, 5)
