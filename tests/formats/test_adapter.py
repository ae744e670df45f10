"""Adapter files: peft loads ours, we load peft's, the logits are equal; bad files are refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from corpus_files import CORPORA
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
)

from neo_peft.errors import InputError
from neo_peft.formats import adapter
from neo_peft.formats.base import load_base
from neo_peft.formats.peft_config import peft_settings
from neo_peft.lora import merge_lora
from neo_peft.methods import build_model
from neo_peft.model import Batch, HeadKind
from neo_peft.runs import folder as runs
from neo_peft.runs import loading
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

TEXTS = [
    torch.tensor(ids)
    for ids in ([5, 900, 31, 7, 44, 60, 8000, 12, 13, 14, 15, 16, 17], [77], [9, 8, 7])
]

CASES = {
    "a head and all biases": dict(
        task="ner", method="lora", rank=5, alpha=7, bias="all", target_modules=("q_proj", "v_proj")
    ),
    "every linear layer": dict(
        task="sentiment", method="lora", rank=3, alpha=8, target_modules=("all-linear",)
    ),
    "biases of the adapted layers": dict(
        task="sentiment",
        method="lora",
        rank=3,
        rslora=True,
        bias="lora_only",
        target_modules=("out_proj", "c_fc"),
    ),
    "one layer by its name": dict(
        task="sentiment", method="lora", target_modules=(r".*h\.2.*q_proj",)
    ),
    "LoRA with a score head": dict(
        task="sentiment", method="lora", rank=3, alpha=5, readout="head"
    ),
    "a prompt with a score head": dict(
        task="similarity", method="prompt", prompt_length=6, readout="head"
    ),
    "a prefix with a score head": dict(
        task="similarity", method="prefix", prompt_length=6, readout="head"
    ),
    "a prefix and a head for tags": dict(task="ner", method="prefix", prompt_length=13),
    "a prefix": dict(task="sentiment", method="prefix", prompt_length=6, prompt_init="zeros"),
    "a prompt": dict(task="sentiment", method="prompt", prompt_length=6, prompt_init="vocab"),
}


def build(folder, **flags):
    """Return a model whose adapter has random changes, as if trained, its settings and its base."""
    settings = make_settings(model=str(folder), head_dropout=0, **flags)
    base = load_base(str(folder))
    model = build_model(base.trunk, base.tokenizer, TASKS[settings.task], settings).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, settings, base


def logits(model):
    """Return the logits of TEXTS at all tokens (N, K or V); for a score head at the last (B, K)."""
    lengths = torch.tensor([len(text) for text in TEXTS])
    last_only = model.head_kind == HeadKind.SCORE
    indices = lengths.cumsum(0) - 1 if last_only else torch.arange(int(lengths.sum()))
    batch = Batch(torch.cat(TEXTS), lengths, indices, torch.zeros(len(indices)), lengths)
    with torch.no_grad():
        return model.logits(model(batch, model.prompt_past()))


def peft_logits(model):
    """Return the same logits from peft, one text at a time, without those of the prompt."""
    with torch.no_grad():
        outputs = [model(input_ids=text[None]).logits for text in TEXTS]
    return torch.cat(
        [out[0, -len(text) :] if out.dim() == 3 else out for out, text in zip(outputs, TEXTS)]
    )


def oracle(folder, task, readout="words"):
    """Return the untuned model of transformers, with the head of the task."""
    kind = GPTNeoForTokenClassification if task == "ner" else GPTNeoForCausalLM
    kind = GPTNeoForSequenceClassification if readout == "head" else kind
    extra = {"num_labels": len(TASKS[task].labels)} if kind is not GPTNeoForCausalLM else {}
    return kind.from_pretrained(folder, dtype=torch.float32, **extra)


def agree(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1, theirs.abs().max().item()))


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_we_save(tiny_folder, tmp_path, case):
    model, settings, _ = build(tiny_folder, **CASES[case])
    adapter.save_adapter(tmp_path, model, settings)
    theirs = PeftModel.from_pretrained(
        oracle(tiny_folder, settings.task, settings.readout), tmp_path
    ).eval()
    agree(logits(model), peft_logits(theirs))
    theirs.save_pretrained(tmp_path / "again")
    ours, again = (
        load_file(tmp_path / adapter.ADAPTER_FILE),
        load_file(tmp_path / "again" / adapter.ADAPTER_FILE),
    )
    wrapped = {name for name in again if "modules_to_save" in name or "original_module" in name}
    assert ours.keys() == again.keys() - wrapped
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("case", CASES)
def test_we_load_what_peft_saves(tiny_folder, tmp_path, case):
    flags = dict(CASES[case])
    task, kind = flags.pop("task"), flags.pop("method")
    readout = flags.pop("readout", "words")
    theirs = oracle(tiny_folder, task, readout)
    task_type = "SEQ_CLS" if readout == "head" else "TOKEN_CLS" if task == "ner" else "CAUSAL_LM"
    if kind in ("prompt", "prefix"):
        of_kind = PromptTuningConfig if kind == "prompt" else PrefixTuningConfig
        config = of_kind(task_type=task_type, num_virtual_tokens=flags["prompt_length"])
    else:
        targets = flags.get("target_modules", ("q_proj", "v_proj"))
        config = LoraConfig(
            task_type=task_type,
            r=flags.get("rank", 8),
            lora_alpha=flags.get("alpha", 16),
            bias=flags.get("bias", "none"),
            use_rslora=flags.get("rslora", False),
            target_modules=targets[0] if len(targets) == 1 else list(targets),
        )
    theirs = get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for _, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    tuned = loading.load(tmp_path, loading.settings_in(tmp_path, str(tiny_folder), task))
    agree(logits(tuned.model), peft_logits(theirs))
    assert any("was not checked" in note for note in tuned.notes)


@pytest.mark.parametrize(
    "method", ["lora", "prompt", "prefix", "full", "head", "lora+prompt", "lora+prefix"]
)
@pytest.mark.parametrize("task", CORPORA)
def test_what_is_saved_is_loaded_bit_for_bit(tiny_folder, tmp_path, task, method):
    model, settings, base = build(tiny_folder, task=task, method=method)
    adapter.save_adapter(tmp_path, model, settings, base.tokenizer)
    again = build_model(
        load_base(str(tiny_folder)).trunk, base.tokenizer, TASKS[task], settings
    ).eval()
    assert not all(
        torch.equal(tensor, again.trainable()[name]) for name, tensor in model.trainable().items()
    )
    adapter.copy_into(again, adapter.read_adapter(tmp_path, again, settings.parts))
    assert model.trainable().keys() == again.trainable().keys()
    assert all(
        torch.equal(tensor, again.trainable()[name]) for name, tensor in model.trainable().items()
    )


def test_the_adapter_file_has_all_trainable_tensors_and_no_others(tiny_folder, tmp_path):
    model, settings, _ = build(tiny_folder, **CASES["a head and all biases"])
    adapter.save_adapter(tmp_path, model, settings)
    stored = load_file(tmp_path / adapter.ADAPTER_FILE)
    layer = "base_model.model.transformer.h.0"
    assert {name for name in stored if name.startswith(layer)} == {
        f"{layer}.{name}"
        for name in (
            "attn.attention.q_proj.lora_A.weight",
            "attn.attention.q_proj.lora_B.weight",
            "attn.attention.v_proj.lora_A.weight",
            "attn.attention.v_proj.lora_B.weight",
            "attn.attention.out_proj.bias",
            "ln_1.bias",
            "ln_2.bias",
            "mlp.c_fc.bias",
            "mlp.c_proj.bias",
        )
    }
    heads = {name for name in stored if "classifier" in name}
    assert heads == {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert sum(tensor.numel() for tensor in stored.values()) == sum(
        p.numel() for p in model.trainable().values()
    )


def test_a_prompt_with_a_head_is_saved_under_pefts_two_names(tiny_folder, tmp_path):
    model, settings, _ = build(tiny_folder, task="ner", method="prompt")
    adapter.save_adapter(tmp_path, model, settings)
    assert set(load_file(tmp_path / adapter.ADAPTER_FILE)) == {
        "prompt_embeddings",
        "base_model.classifier.weight",
        "base_model.classifier.bias",
    }


@pytest.mark.parametrize("second", ["prompt", "prefix"])
def test_lora_and_prompt_are_saved_as_two_folders_that_peft_loads(tiny_folder, tmp_path, second):
    flags = {"task": "sentiment", "method": f"lora+{second}", "prompt_length": 6}
    model, settings, _ = build(tiny_folder, **flags)
    adapter.save_adapter(tmp_path, model, settings)
    theirs = PeftModel.from_pretrained(
        oracle(tiny_folder, "sentiment"), tmp_path / "lora"
    ).merge_and_unload()
    agree(logits(model), peft_logits(PeftModel.from_pretrained(theirs, tmp_path / second).eval()))


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_transformers_loads_a_fully_tuned_model(tiny_folder, tmp_path, task):
    model, settings, base = build(tiny_folder, task=task, method="full")
    adapter.save_adapter(tmp_path, model, settings, base.tokenizer)
    kind = GPTNeoForTokenClassification if task == "ner" else GPTNeoForCausalLM
    theirs = kind.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    agree(logits(model), peft_logits(theirs))
    if task == "ner":
        assert theirs.config.id2label[1] == "B-DNA"


def test_a_merged_adapter_has_the_logits_of_the_adapter(tiny_folder):
    model, _, _ = build(tiny_folder, **CASES["a head and all biases"])
    before = logits(model)
    merge_lora(model)
    agree(logits(model), before)


# ---- Refusals


@pytest.fixture
def saved(tiny_folder, tmp_path):
    """Return the folder of a finished run with LoRA, a head and all biases."""
    model, settings, base = build(tiny_folder, **CASES["a head and all biases"])
    folder = tmp_path / "run"
    adapter.save_adapter(folder, model, settings)
    flags = {
        **{name: value for name, value in vars(settings).items() if name not in ("out", "json")}
    }
    record = {
        "labels": list(TASKS["ner"].labels),
        "flags": flags,
        "base": {"fingerprint": base.fingerprint},
        "files": {},
    }
    runs.write_record(folder, record)
    return folder


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


WEIGHT = "base_model.model.classifier.weight"
TENSORS = {
    "missing tensors: 1, the first is base_model.model.classifier.weight": lambda t: t.pop(WEIGHT),
    "unexpected tensors: 1, the first is more": lambda t: t.update(more=torch.ones(2)),
    r"classifier.weight has the shape \(3, 24\); expected \(11, 24\)": lambda t: t.update(
        {WEIGHT: torch.ones(3, 24)}
    ),
    "classifier.weight has values that are not finite": lambda t: t[WEIGHT].fill_(float("nan")),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_do_not_fit_are_refused(saved, message):
    change(saved / adapter.ADAPTER_FILE, TENSORS[message])
    with pytest.raises(InputError, match=message):
        loading.load(saved)


def test_another_base_is_refused(saved, tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    change(other / "model.safetensors", lambda tensors: tensors["transformer.ln_f.bias"].add_(1))
    with pytest.raises(
        InputError,
        match="was trained on another base than .*other: the fingerprint of its base is ",
    ):
        loading.load(saved, loading.settings_in(saved, str(other)))


def test_a_changed_record_is_refused(saved):
    path = saved / runs.RUN
    path.write_text(path.read_text().replace('"rank": 5', '"rank": 4'))
    with pytest.raises(
        InputError, match=r"run.json was changed since it was written, or cut short"
    ):
        loading.load(saved)


def test_another_order_of_labels_is_refused(saved):
    record = runs.read_record(saved)
    record["labels"] = record["labels"][::-1]
    runs.write_record(saved, record)
    with pytest.raises(InputError, match=r"run.json lists other labels than the task ner has"):
        loading.load(saved)


def test_settings_that_differ_from_the_adapters_are_refused(saved, tiny_folder):
    (saved / runs.RUN).unlink()
    settings = make_settings(
        model=str(tiny_folder), **{**CASES["a head and all biases"], "alpha": 9}
    )
    with pytest.raises(
        InputError, match=r"adapter_config.json: alpha is 7.0, but 9.0 in the settings"
    ):
        loading.load(saved, settings)


def test_tensors_that_changed_since_the_run_are_refused(saved):
    record = runs.read_record(saved)
    record["files"] = {adapter.ADAPTER_FILE: "0" * 64}
    runs.write_record(saved, record)
    for problem in ("was changed since the run", "is missing, or the run's record"):
        with pytest.raises(InputError, match=f"adapter_model.safetensors {problem}"):
            loading.load(saved)
        (saved / adapter.ADAPTER_FILE).unlink(missing_ok=True)


def test_a_folder_that_is_no_run_is_refused(tmp_path, saved, tiny_folder):
    with pytest.raises(InputError, match="there is no run folder nowhere"):
        loading.load("nowhere")
    with pytest.raises(InputError, match=r"holds neither run.json nor adapter_config.json"):
        loading.load(tmp_path)
    (saved / runs.RUN).unlink()
    with pytest.raises(
        InputError, match="is an adapter without a run.json: name its --task and its --model"
    ):
        loading.load(saved)
    (saved / adapter.ADAPTER_FILE).write_bytes(b"no tensors")
    with pytest.raises(
        InputError, match="adapter_model.safetensors is not a readable safetensors file"
    ):
        loading.load(saved, loading.settings_in(saved, str(tiny_folder), "ner"))


# Options of peft with values that are not supported.
OPTIONS = {
    "use_dora": True,
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4},
    "layers_to_transform": [0],
    "layers_pattern": "h",
    "exclude_modules": ["v_proj"],
    "lora_bias": True,
    "fan_in_fan_out": True,
    "trainable_token_indices": [1],
    "modules_to_save": ["classifier", "wte"],
    "init_lora_weights": "pissa",
    "layer_replication": [[0, 2]],
    "target_parameters": ["weight"],
    "alora_invocation_tokens": [3],
    "use_qalora": True,
    "an_option_of_tomorrow": 1,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_changes_the_computation_is_refused_by_name(saved, option):
    config = json.loads((saved / adapter.CONFIG).read_text())
    path = saved / adapter.CONFIG
    neutral = {"init_lora_weights": True, "modules_to_save": ["classifier"]}.get(option)
    assert peft_settings({**config, option: neutral}, path)["rank"] == 5
    with pytest.raises(InputError, match=f"adapter_config.json: {option} is "):
        peft_settings({**config, option: OPTIONS[option]}, path)


def test_all_defaults_of_peft_are_accepted(tmp_path):
    """Files of old versions too: keys that were removed since, null for a value, or few keys."""
    path = tmp_path / "adapter_config.json"
    LoraConfig(task_type="TOKEN_CLS", target_modules=["v_proj"]).save_pretrained(tmp_path)
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6).save_pretrained(
        tmp_path / "prompt"
    )
    written = json.loads(path.read_text())
    expected = {
        "readout": "words",
        "method": "lora",
        "rank": 8,
        "alpha": 8,
        "dropout": 0.0,
        "target_modules": ("v_proj",),
        "bias": "none",
        "rslora": False,
        "lora_init": "kaiming",
    }
    assert len(written) > 30 and peft_settings(written, path) == expected
    old = {"enable_lora": None, "merge_weights": True, "lora_dropout": None, "use_rslora": None}
    assert peft_settings({**written, **old}, path) == expected
    assert peft_settings({"peft_type": "LORA", "target_modules": ["v_proj"]}, path) == expected
    prompt = json.loads((tmp_path / "prompt" / "adapter_config.json").read_text())
    for submodules in (None, 1):
        prompt["num_transformer_submodules"] = submodules
        assert peft_settings(prompt, path) == {
            "readout": "words",
            "method": "prompt",
            "prompt_length": 6,
        }
    with pytest.raises(InputError, match="num_transformer_submodules is 2"):
        peft_settings({**prompt, "num_transformer_submodules": 2}, path)
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT

    assert peft_settings({"peft_type": "LORA"}, path)["target_modules"] == tuple(DEFAULT["gpt_neo"])


def test_every_option_of_peft_is_used_or_harmless_or_refused_by_name(tmp_path):
    """Each option outside the two lists is refused if its value is not the default."""
    used = {
        "LORA": "r lora_alpha lora_dropout bias target_modules use_rslora",
        "PROMPT_TUNING": "num_virtual_tokens token_dim num_layers num_attention_heads "
        "prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs "
        "modules_to_save",
    }
    harmless = (
        "base_model_name_or_path inference_mode auto_mapping peft_version revision megatron_core "
        "qalora_group_size runtime_config ensure_weight_tying eva_config"
    )
    for kind, config in (("LORA", LoraConfig), ("PROMPT_TUNING", PromptTuningConfig)):
        for field in dataclasses.fields(config):
            if field.name in ("peft_type", *used[kind].split(), *harmless.split()):
                continue
            with pytest.raises(InputError, match=f": {field.name} is "):
                peft_settings({"peft_type": kind, field.name: ["something"]}, tmp_path)


def test_another_kind_of_adapter_is_refused(tmp_path):
    for kind in ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"):
        with pytest.raises(InputError, match=f"task_type is '{kind}'; expected TOKEN_CLS"):
            peft_settings({"peft_type": "LORA", "task_type": kind}, tmp_path)
    with pytest.raises(InputError, match="peft_type is 'IA3'; expected LORA or PROMPT_TUNING"):
        peft_settings({"peft_type": "IA3"}, tmp_path)
