"""The head that peft's adapter was trained with: used, named if it is missing, never guessed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft_folders import change_config, write_adapter
from refusals import refused, run
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)

from neo_peft.commands.train import parse_flags as parse_train_flags
from neo_peft.decoding import evaluate
from neo_peft.errors import InputError
from neo_peft.formats.adapter import ADAPTER_FILE
from neo_peft.formats.peft_config import peft_settings
from neo_peft.formats.peft_head import read_head
from neo_peft.model import HeadKind
from neo_peft.runs import loading
from neo_peft.tasks import TASKS

SEQUENCE, TOKEN = GPTNeoForSequenceClassification, GPTNeoForTokenClassification
TEXTS = {  # a row of each task
    "sentiment": {"sentence": "Sales fell by a third in May ."},
    "ner": {"tokens": ["The", "IL-2", "gene", "binds", "NF-kappa", "B", "."]},
}


@pytest.fixture
def written(tiny_folder, tmp_path):
    """Return a function that writes an adapter of a class of model into the folder `a`."""

    def write(kind, **lora):
        labels = {} if kind is GPTNeoForCausalLM else {"num_labels": 11 if kind is TOKEN else 3}
        model = kind.from_pretrained(tiny_folder, dtype=torch.float32, **labels)
        return write_adapter(Path("a"), model, **lora)

    return write


def load(tiny_folder, task, folder="a"):
    return loading.load(folder, loading.settings_in(Path(folder), str(tiny_folder), task))


def load_further(tiny_folder, task):
    flags = ["--adapter", "a", "--task", task, "--model", str(tiny_folder)]
    return loading.load_to_train(parse_train_flags(flags))


def expected_probabilities(theirs, tuned, row):
    """Return the probabilities (K,), or the best tags' (W,), of peft's model for a row."""
    examples = tuned.encoder([row])
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(examples.ids)[None].long()).logits[0]
    if logits.dim() == 1:
        return logits.softmax(0).tolist()
    return logits.softmax(1)[torch.from_numpy(examples.target_indices).long()]


@pytest.mark.parametrize("config", ["auto_mapping", "nothing"])
@pytest.mark.parametrize(
    ("kind", "task", "head"), [(SEQUENCE, "sentiment", "score"), (TOKEN, "ner", "classifier")]
)
def test_a_head_is_used_without_a_task_type(tiny_folder, written, kind, task, head, config):
    """`nothing`: the config has no auto_mapping either; the tensors in the file show the head."""
    theirs = written(kind, modules_to_save=[head])
    if config == "nothing":
        change_config(Path("a"), auto_mapping=None)
    tuned = load(tiny_folder, task)
    assert tuned.model.head_kind == head
    (got,) = evaluate(tuned.model, tuned.encoder, tuned.encoder([TEXTS[task]])).probabilities
    expected = expected_probabilities(theirs, tuned, TEXTS[task])
    if task == "ner":  # ours are those of the best sequence of tags
        tags = evaluate(tuned.model, tuned.encoder, tuned.encoder([TEXTS[task]])).predicted[0]
        expected = [row[TASKS["ner"].labels.index(tag)] for row, tag in zip(expected, tags)]
    assert got == pytest.approx([float(value) for value in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "task", "head"), [(SEQUENCE, "sentiment", "score"), (TOKEN, "ner", "classifier")]
)
def test_a_head_that_peft_did_not_save_is_named_and_starts_untrained(
    capfd, tiny_folder, written, kind, task, head
):
    """Without task_type and modules_to_save; with bias "all" the head's bias alone is there."""
    written(kind, bias="all")
    message = (
        f"a/adapter_model.safetensors: missing tensors: 1, the first is base_model.model.{head}."
        "weight: the adapter was saved without its head (peft saves it with a task_type, or if "
        "modules_to_save names it); train it further with --adapter, which starts with an "
        "untrained head"
    )
    given = f"a --task {task} --model {tiny_folder}"
    refused(capfd, f"evaluate {given} --eval-limit 2", message)
    refused(capfd, f"export --merge a out --task {task} --model {tiny_folder}", message)
    tuned = load_further(tiny_folder, task)
    assert any(f"a has no head: the {head} starts untrained" in note for note in tuned.notes)
    loading.start_from_adapter(tuned)
    assert not (tuned.model.head.bias is not None and tuned.model.head.bias.any())
    assert tuned.model.transformer.h[0].attn.attention.q_proj.lora_B.weight.any()


WRONG_TASKS = {  # the model, the task, the message
    "label words, for tags": (GPTNeoForCausalLM, "ner", "CAUSAL_LM, which predicts label words; n"),
    "tags, for label words": (TOKEN, "sentiment", "TOKEN_CLS, which predicts tags; sentiment pre"),
    "labels, for tags": (SEQUENCE, "ner", "SEQ_CLS, which predicts labels by a head; ner predicts"),
}


@pytest.mark.parametrize("case", WRONG_TASKS)
def test_an_adapter_without_a_head_in_its_file_is_not_read_as_one_for_another_task(
    tiny_folder, written, case
):
    kind, task, message = WRONG_TASKS[case]
    written(kind)
    with pytest.raises(InputError, match=f"a is an adapter for {message}.*further with --adapter"):
        load(tiny_folder, task)
    tuned = load_further(tiny_folder, task)
    assert tuned.start and tuned.model.head_kind != HeadKind.SCORE
    if kind is not GPTNeoForCausalLM:
        assert any("a was trained to predict" in note for note in tuned.notes)


def test_a_head_in_the_file_is_not_used_for_another_task(tiny_folder, written):
    written(TOKEN, task_type="TOKEN_CLS")
    for read in (load, load_further):
        with pytest.raises(InputError, match="a is an adapter for TOKEN_CLS.*name another --task$"):
            read(tiny_folder, "sentiment")


def test_a_task_type_that_the_head_in_the_file_contradicts_is_refused(capfd, tiny_folder, written):
    written(TOKEN, task_type="SEQ_CLS")  # peft accepts it for a model that tags
    refused(
        capfd,
        f"evaluate a --task ner --model {tiny_folder}",
        "a/adapter_config.json: the adapter is for SEQ_CLS, but adapter_model.safetensors has the "
        "head classifier of GPTNeoForTokenClassification; if that was its model, set "
        '"task_type": "TOKEN_CLS" in adapter_config.json',
    )
    change_config(Path("a"), task_type="TOKEN_CLS")
    assert load(tiny_folder, "ner").model.head_kind == HeadKind.CLASSIFIER


def test_modules_to_save_with_a_head_that_the_model_did_not_have_are_named(tiny_folder, written):
    """peft passes over a name that matches no module."""
    written(GPTNeoForCausalLM, task_type="CAUSAL_LM", modules_to_save=["score"])
    notes = load(tiny_folder, "sentiment").notes
    assert any("modules_to_save of adapter_config.json has score, but" in note for note in notes)
    change_config(Path("a"), task_type=None)
    with pytest.raises(
        InputError, match=r"modules_to_save is \['score'\], but adapter_model.safetensors has no su"
    ):
        load(tiny_folder, "sentiment")


def test_modules_to_save_can_be_one_name(tiny_folder, written):
    written(GPTNeoForCausalLM, task_type="CAUSAL_LM", modules_to_save=["score"])
    config = json.loads(Path("a", "adapter_config.json").read_text())
    assert read_head(config | {"modules_to_save": "score"}, Path("a", "adapter_config.json")) == (
        "lm_head",
        None,
        ("score",),
    )


def test_a_head_with_its_bias_alone_in_the_file_is_a_head(tiny_folder, written):
    written(TOKEN, bias="all")
    config = {"task_type": None, "auto_mapping": None}
    assert read_head(config, Path("a", "adapter_config.json")).stored == "classifier"


def test_an_adapter_that_tells_nothing_of_its_head_is_read_as_label_words_with_a_note(
    tiny_folder, written
):
    written(GPTNeoForCausalLM, task_type="CAUSAL_LM")
    assert not any("task_type" in note for note in load(tiny_folder, "sentiment").notes)
    change_config(Path("a"), task_type=None)
    notes = load(tiny_folder, "sentiment").notes
    assert any("adapter_config.json has no task_type, and there is no head" in n for n in notes)
    with pytest.raises(InputError, match="saved without its head"):
        load(tiny_folder, "ner")


@pytest.mark.parametrize("kind", [GPTNeoModel, GPTNeoForQuestionAnswering])
def test_an_adapter_of_a_model_that_predicts_something_else_is_refused(tiny_folder, kind):
    write_adapter(Path("a"), kind.from_pretrained(tiny_folder, dtype=torch.float32))
    with pytest.raises(
        InputError,
        match=f"auto_mapping has the model '{kind.__name__}'; expected GPTNeoForCausalLM, GPTNeoFor"
        ".* set its task_type in adapter_config.json: CAUSAL_LM, TOKEN_CLS, SEQ_CLS",
    ):
        load(tiny_folder, "sentiment")
    other = "FEATURE_EXTRACTION" if kind is GPTNeoModel else "QUESTION_ANS"
    change_config(Path("a"), task_type=other)
    with pytest.raises(InputError, match=f"task_type is '{other}'; expected TOKEN_CLS"):
        load(tiny_folder, "sentiment")


def test_lora_on_the_head_itself_is_refused(tiny_folder, written):
    """Without a task_type peft's all-linear includes the head."""
    written(SEQUENCE, target_modules="all-linear")
    with pytest.raises(InputError, match="target_modules has the head score; use peft for such"):
        load(tiny_folder, "sentiment")


@pytest.mark.parametrize(
    "mapping", [5, "GPTNeoForCausalLM", {"base_model_class": ["x"]}, {"parent_library": "x"}]
)
def test_a_damaged_auto_mapping_is_read_or_refused_in_one_line(mapping, tmp_path):
    config = {"peft_type": "LORA", "auto_mapping": mapping}
    if mapping == "GPTNeoForCausalLM":
        assert peft_settings(config, tmp_path / "x")["readout"] == "words"
    else:
        with pytest.raises(InputError, match="auto_mapping has the model"):
            peft_settings(config, tmp_path / "x")


def test_an_exported_head_without_a_task_type_is_the_head_of_the_adapter(tiny_folder, written):
    theirs = written(SEQUENCE, modules_to_save=["score"])
    assert run(f"export --merge a out --task sentiment --model {tiny_folder}") == 0
    merged = SEQUENCE.from_pretrained("out").eval()
    ids = torch.tensor([[5, 900, 31, 7]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_a_broken_file_of_tensors_is_named_when_the_tensors_are_read(tiny_folder, written):
    written(GPTNeoForCausalLM, task_type="CAUSAL_LM")
    shutil.copytree("a", "b")
    tensors = load_file(Path("b", ADAPTER_FILE))
    save_file({"x": next(iter(tensors.values()))}, Path("b", ADAPTER_FILE))
    with pytest.raises(InputError, match="missing tensors: 16, the first is base_model"):
        load(tiny_folder, "sentiment", "b")
    Path("b", ADAPTER_FILE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        load(tiny_folder, "sentiment", "b")
