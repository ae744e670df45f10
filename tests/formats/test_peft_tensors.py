"""What peft's file of tensors has besides the adapter: embeddings, wrappers, empty weights."""

import re
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig
from peft_folders import write_adapter
from refusals import run, shown
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
)

from neo_peft.errors import InputError
from neo_peft.formats.adapter import ADAPTER_FILE
from neo_peft.formats.base import load_base
from neo_peft.model import Batch
from neo_peft.runs import loading

PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
KINDS = {  # the class of model, its labels, the task, the options of the adapter
    "LoRA": (GPTNeoForCausalLM, 0, "sentiment", {"task_type": "CAUSAL_LM"}),
    "LoRA and a head": (GPTNeoForTokenClassification, 11, "ner", {"task_type": "TOKEN_CLS"}),
    "a score head": (GPTNeoForSequenceClassification, 3, "sentiment", {"task_type": "SEQ_CLS"}),
    "a prompt": (GPTNeoForCausalLM, 0, "similarity", {"config": PROMPT}),
}
TEXT = torch.tensor([5, 900, 31, 7, 44, 60, 8000, 12, 13, 14, 15, 16, 17])  # longer than the window
FILE = Path("a", ADAPTER_FILE)


def pretrained(base, kind=GPTNeoForCausalLM, labels=0, **options):
    more = {"num_labels": labels} if labels else {}
    return kind.from_pretrained(base, **{"dtype": torch.float32} | more | options)


def load(base, task="sentiment"):
    return loading.load("a", loading.settings_in(Path("a"), str(base), task))


def notes_on(tuned, words):
    return [note for note in tuned.notes if words in note]


def logits(tuned):
    indices = torch.tensor([len(TEXT) - 1])
    batch = Batch(TEXT, torch.tensor([len(TEXT)]), indices, indices, torch.tensor([1]))
    with torch.no_grad():
        return tuned.model.logits(tuned.model(batch, tuned.model.prompt_past()))[0]


def change(edit):
    tensors = load_file(FILE)
    edit(tensors)
    save_file(tensors, FILE)


# ---- Embeddings


@pytest.mark.parametrize("case", KINDS)
def test_embeddings_of_a_resized_vocabulary_are_left_out_with_a_note(tiny_folder, case):
    """The common recipe: a token [PAD] is added, and the model resized. The logits are peft's."""
    kind, labels, task, options = KINDS[case]
    model = pretrained(tiny_folder, kind, labels)
    model.resize_token_embeddings(8193)
    theirs = write_adapter(Path("a"), model, **options)
    assert load_file(FILE).keys() & {
        "base_model.model.transformer.wte.weight",
        "base_model.transformer.wte.weight",
    }
    with torch.no_grad():
        expected = theirs(TEXT[None]).logits[0]
    expected = expected if expected.dim() == 1 else expected[-1]
    tuned = load(tiny_folder, task)
    ours = logits(tuned)
    largest = expected.abs().max().item()
    torch.testing.assert_close(ours, expected[: len(ours)], rtol=0, atol=1e-5 * max(1, largest))
    (note,) = notes_on(tuned, "left out a copy of the base's embeddings")
    assert (
        "transformer.wte.weight" in note
        and "; rows for added tokens, which no text has here: 1" in note
    )
    assert ("lm_head.weight" in note) == (kind is GPTNeoForCausalLM)


def test_an_adapter_with_embeddings_fits_the_resized_base_too(tiny_folder, capfd):
    model = pretrained(tiny_folder)
    model.resize_token_embeddings(8193)
    model.save_pretrained("resized")
    for file in tiny_folder.glob("tokenizer*"):
        Path("resized", file.name).write_bytes(file.read_bytes())
    write_adapter(Path("a"), model, task_type="CAUSAL_LM")
    given = "--task sentiment --threads 1 --eval-limit 2 --model"
    for base, more in (("resized", False), (tiny_folder, True)):
        for command in ("evaluate a", "train --adapter a --train-limit 4 --epochs 1"):
            assert run(f"{command} {given} {base}") == 0
            printed = capfd.readouterr().out
            assert "left out a copy of the base's embeddings" in printed
            assert ("for added tokens" in printed) == more


@pytest.mark.parametrize("name", ["transformer.wte", "lm_head"])
def test_a_trained_row_of_the_embeddings_is_refused_with_its_token(tiny_folder, name):
    model = pretrained(tiny_folder)
    model.resize_token_embeddings(8193)
    write_adapter(Path("a"), model, task_type="CAUSAL_LM")
    change(lambda tensors: tensors[f"base_model.model.{name}.weight"][900:902, 3].add_(0.5))
    token = load_base(str(tiny_folder)).tokenizer.decode([900])
    with pytest.raises(
        InputError,
        match=rf"{name}.weight differs from the base's embeddings in 2 of 8192 rows; the first is "
        rf"that of token 900 \({re.escape(repr(token))}\). Trained embeddings are not supported: ",
    ):
        load(tiny_folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_that_peft_saved_in_half_precision_equal_the_bases_up_to_rounding(
    tiny_folder, dtype
):
    model = pretrained(tiny_folder, dtype=dtype)
    model.resize_token_embeddings(8193)
    write_adapter(Path("a"), model, task_type="CAUSAL_LM")
    key = "base_model.model.transformer.wte.weight"
    assert load_file(FILE)[key].dtype == dtype
    assert notes_on(load(tiny_folder), "left out a copy")
    change(lambda tensors: tensors[key][7].mul_(1.05))
    with pytest.raises(InputError, match="in 1 of 8192 rows; the first is that of token 7 "):
        load(tiny_folder)


WRONG = {
    "of another width": torch.ones(8193, 25),
    "of whole numbers": torch.ones(8193, 24, dtype=torch.int64),
    "of one dimension": torch.ones(24),
}


@pytest.mark.parametrize("case", WRONG)
def test_embeddings_that_do_not_fit_are_refused(tiny_folder, case):
    write_adapter(Path("a"), pretrained(tiny_folder), task_type="CAUSAL_LM")
    change(lambda tensors: tensors.update({"base_model.model.lm_head.weight": WRONG[case]}))
    with pytest.raises(InputError, match=r"lm_head.weight is torch.*floats of the shape \(8192, 2"):
        load(tiny_folder)


# ---- Wrapped names


def test_the_names_of_a_compiled_model_are_read(tiny_folder):
    """torch.compile wraps the model, and peft writes its wrapper's name into every key."""
    compiled = torch.compile(pretrained(tiny_folder))
    write_adapter(Path("a"), compiled, task_type="CAUSAL_LM")
    wrapped = load_file(FILE)
    assert all(key.startswith("base_model.model._orig_mod.") for key in wrapped)
    ours = load(tiny_folder).model.trainable()
    assert len(ours) == len(wrapped) == 16
    for key, tensor in wrapped.items():
        assert torch.equal(ours[key.removeprefix("base_model.model._orig_mod.")], tensor)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod.module", "_fsdp_wrapped_module"])
def test_names_inside_other_wrappers_are_read(tiny_folder, wrapper):
    model = pretrained(tiny_folder, GPTNeoForTokenClassification, 11)
    write_adapter(Path("a"), model, task_type="TOKEN_CLS", bias="all")
    before = logits(load(tiny_folder, "ner"))
    tensors = {f"{wrapper}.{key}": tensor for key, tensor in load_file(FILE).items()}
    save_file(tensors, FILE)
    assert torch.equal(logits(load(tiny_folder, "ner")), before)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_keys_of_a_state_dict_have_the_adapters_name_which_is_left_out(tiny_folder, bias):
    """Programs that gather the weights themselves, such as DeepSpeed's, save these keys."""
    model = pretrained(tiny_folder, GPTNeoForTokenClassification, 11)
    theirs = write_adapter(Path("a"), model, task_type="TOKEN_CLS", bias=bias, name="mine")
    for file in Path("a/mine").iterdir():  # peft's folder for an adapter with a name
        file.rename(Path("a", file.name))
    trained = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    state = {name: theirs.state_dict()[name].clone() for name in trained}
    assert sum(".mine." in name for name in state) == 18
    save_file(state, FILE)
    with torch.no_grad():
        expected = theirs(TEXT[None]).logits[0, -1]
    assert torch.allclose(logits(load(tiny_folder, "ner")), expected, atol=1e-5)


def test_names_that_are_not_pefts_are_shown_with_the_way_on(tiny_folder):
    write_adapter(Path("a"), pretrained(tiny_folder), task_type="CAUSAL_LM")
    tensors = {k.removeprefix("base_model.model."): v for k, v in load_file(FILE).items()}
    save_file(tensors, FILE)
    with pytest.raises(
        InputError,
        match=r"missing tensors: 16, the first is base_model\.model\.transformer\.h\.0\S+; the "
        r"file has transformer\.h\.0\S+ instead: save the adapter with peft's save_pretrained",
    ):
        load(tiny_folder)


# ---- Dtypes


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_numbers_that_need_a_scale_are_refused(tiny_folder, capfd, dtype):
    write_adapter(Path("a"), pretrained(tiny_folder), task_type="CAUSAL_LM")
    save_file({key: tensor.to(dtype) for key, tensor in load_file(FILE).items()}, FILE)
    capfd.readouterr()  # transformers' own progress bars
    assert run(f"predict --run a --task sentiment --model {tiny_folder} 'Sales fell .'") == 2
    name = str(dtype).removeprefix("torch.")
    assert re.fullmatch(
        rf"error: a/{ADAPTER_FILE}: \S+ is stored as {name}, without the scale that its values "
        "need; only floats of 16 to 64 bits are supported: save the adapter in fp32\n",
        shown(capfd.readouterr().err),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_16_bits_and_more_are_read_with_their_values(tiny_folder, dtype):
    write_adapter(Path("a"), pretrained(tiny_folder), task_type="CAUSAL_LM")
    stored = {key: tensor.to(dtype) for key, tensor in load_file(FILE).items()}
    save_file(stored, FILE)
    ours = load(tiny_folder).model.trainable()
    for key, tensor in stored.items():
        assert torch.equal(ours[key.removeprefix("base_model.model.")], tensor.float())


def test_a_tensor_under_two_names_is_refused(tiny_folder):
    write_adapter(Path("a"), pretrained(tiny_folder), task_type="CAUSAL_LM")
    key = "base_model.model.transformer.h.0.attn.attention.q_proj.lora_A.weight"
    change(lambda tensors: tensors.update({f"module.{key}": tensors[key] + 1}))
    with pytest.raises(InputError, match=f"has {key} twice; one of them is module.{key}"):
        load(tiny_folder)


# ---- Weights that are still zero


def is_named_by_all_commands(capfd, given: str, message: str) -> None:
    """Assert that each command that loads the adapter `a` prints a note with the message."""
    for command in (
        f"evaluate a {given} --eval-limit 2",
        f"predict --run a {given} 'Sales fell .\tSales rose .'",
        f"export a out {given}",
        f"train --adapter a {given} --train-limit 4 --eval-limit 2 --epochs 1 --out run",
    ):
        command = command if command.startswith("export") else f"{command} --threads 1"
        assert run(command) == 0
        out, err = capfd.readouterr()
        assert re.search(rf"^note    (\S*/)?a: {message}$", out + shown(err), re.MULTILINE), command


def test_an_adapter_whose_every_b_is_zero_is_named_when_it_is_loaded(capfd, tiny_folder):
    model = pretrained(tiny_folder)
    write_adapter(Path("a"), model, task_type="CAUSAL_LM")
    assert not notes_on(load(tiny_folder), "learned nothing")
    change(lambda t: [tensor.zero_() for key, tensor in t.items() if "lora_B" in key])
    is_named_by_all_commands(
        capfd,
        f"--task sentiment --model {tiny_folder}",
        r"LoRA's B is still zero in 8 layers; the first is transformer\.h\.0\.attn\.attention\."
        r"v_proj\.lora_B\.weight\. These layers learned nothing",
    )


def test_a_prompt_that_is_all_zero_is_named_when_it_is_loaded(capfd, tiny_folder):
    write_adapter(Path("a"), pretrained(tiny_folder), PROMPT)
    assert not notes_on(load(tiny_folder, "similarity"), "learned nothing")
    change(lambda tensors: tensors["prompt_embeddings"].zero_())
    is_named_by_all_commands(
        capfd,
        f"--task similarity --model {tiny_folder}",
        r"prompt\.embeddings is all zero\. It learned nothing",
    )
    change(lambda tensors: tensors["prompt_embeddings"][1, 2].fill_(float("inf")))
    with pytest.raises(InputError, match="prompt_embeddings has values that are not finite"):
        load(tiny_folder, "similarity")


def test_a_head_that_is_all_zero_is_named_when_it_is_loaded(tiny_folder):
    model = pretrained(tiny_folder, GPTNeoForSequenceClassification, 3)
    write_adapter(Path("a"), model, task_type="SEQ_CLS")
    change(lambda tensors: tensors["base_model.model.score.weight"].zero_())
    assert notes_on(load(tiny_folder), "a: score.weight is all zero. It learned nothing")
