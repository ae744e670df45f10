"""The model card and the tokenizer of an exported run: other programs encode texts as in training,
with the card's own lines of code, and the hub reads the card's metadata."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from base_files import change_config
from huggingface_hub import ModelCard
from repeats import pairs
from trained import make_run
from transformers import AutoTokenizer

import train
from neo_peft.commands import export
from neo_peft.corpora.sources import load_splits
from neo_peft.encoding import collate
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.metrics import entities
from neo_peft.runs.folder import read_record
from neo_peft.runs.generation import generate, texts_without_labels
from neo_peft.runs.loading import load
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.runs.texts import predict
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS


@pytest.fixture
def base(tiny_folder, tmp_path) -> Path:
    """Return a copy of the tiny model's folder, without a padding token, as GPT-Neo's own."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    change_config(folder, removed=("pad_token_id",))
    return folder


def exported(*argv):
    assert exit_status(lambda: export.main([str(part) for part in argv])) == 0
    return Path(argv[-1])


def run_card(folder, monkeypatch) -> dict:
    """Run the Python code of a folder's card inside it. Return its variables."""
    text = (folder / "README.md").read_text()
    code, names = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "README.md", "exec"), names)
    return names


# ---- Tokenizers that put tokens around a text, cut it or pad it

END = "<|endoftext|>"
SPECIAL, TEXT = {"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}


def template(*single) -> dict:
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    token = {"id": END, "ids": [0], "tokens": [END]}
    return {
        "type": "TemplateProcessing",
        "single": list(single),
        "pair": pair,
        "special_tokens": {END: token},
    }


def change_tokenizer(folder, **entries):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def begin_flag(folder):
    """Replace tokenizer.json by vocab.json and merges.txt, with `add_bos_token`."""
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in content["merges"]))
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def cut_and_padded(folder):
    change_tokenizer(
        folder,
        truncation={"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 40},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": END,
        },
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 6}))


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
TOKENIZERS = {
    "a token in front": lambda folder: change_tokenizer(
        folder, post_processor=template(SPECIAL, TEXT)
    ),
    "tokens on both sides": lambda folder: change_tokenizer(
        folder,
        post_processor={
            "type": "Sequence",
            "processors": [BYTES, template(SPECIAL, TEXT, SPECIAL)],
        },
    ),
    "add_bos_token": begin_flag,
    "cut and padded": cut_and_padded,
}
HEADS = {
    "tags": ("ner", {"tag_decoding": "greedy", "bias": "all"}),
    "head": ("sentiment", {"readout": "head"}),
    "words": ("sentiment", {"target_modules": "all-linear"}),
}


def logits_of(tuned, row) -> torch.Tensor:
    """Return our logits at the target positions of one row."""
    with torch.no_grad():
        batch = collate(tuned.encoder([row]), [0])
        return tuned.model.logits(tuned.model(batch, tuned.model.prompt_past()))


@pytest.mark.parametrize(("kind", "head"), pairs(TOKENIZERS, HEADS))
def test_exports_encode_and_predict_as_we_do_whatever_the_tokenizer_adds(
    base, tmp_path, monkeypatch, kind, head
):
    TOKENIZERS[kind](base)
    task, flags = HEADS[head]
    run = make_run(tmp_path / "run", base, task, "lora", **flags)
    adapter = run_card(exported(run, tmp_path / "adapter"), monkeypatch)
    merged = run_card(exported(run, "--merge", tmp_path / "merged"), monkeypatch)["predict"]
    tuned, rows = load(run), load_splits(TASKS[task], "sample").test[:4]
    rows = [{name: row[name] for name in TASKS[task].fields[:-1]} for row in rows]
    predicted = predict(tuned.model, tuned.encoder, rows)
    examples = tuned.encoder(rows)
    generated = generate(tuned.model, tuned.encoder, texts_without_labels(examples, range(4)), None)
    for index, row in enumerate(rows):
        if head == "tags":
            text = " ".join(row["tokens"])
        else:
            text = f"Sentence : {row['sentence']} Label :"
        ids = tuned.encoder([row]).ids.tolist()
        if kind != "cut and padded":  # a call without options does neither, but pipelines cut
            assert AutoTokenizer.from_pretrained(base)(text)["input_ids"] != ids
        assert adapter["tokenizer"](text)["input_ids"] == ids
        assert merged.tokenizer(text)["input_ids"] == ids
        inputs = adapter["tokenizer"]([text], return_tensors="pt")
        if head == "words":
            assert merged(text, max_new_tokens=10, do_sample=False, return_full_text=False) == [
                {"generated_text": generated[index]}
            ]
            output = adapter["model"].generate(**inputs, max_new_tokens=10, do_sample=False)
            answer = adapter["tokenizer"].decode(output[0, len(ids) :], skip_special_tokens=True)
            assert answer == generated[index]
        elif head == "head":
            ours = logits_of(tuned, row)
            assert (adapter["model"](**inputs).logits - ours).abs().max() < 1e-4
            (answer,) = merged(text)
            assert answer["label"] == predicted[index]
            assert abs(answer["score"] - ours.softmax(-1).max().item()) < 1e-4
        else:
            kinds = [entity for entity, _, _ in entities(predicted[index])]
            assert [group["entity_group"] for group in merged(text)] == kinds
            firsts = adapter["model"](**inputs).logits[0, tuned.encoder([row]).target_indices]
            assert (firsts - logits_of(tuned, row)).abs().max() < 1e-4


@pytest.mark.parametrize("head", HEADS)
def test_the_card_of_an_adapter_serves_for_a_batch_on_a_base_without_a_padding_token(
    base, tmp_path, monkeypatch, capsys, head
):
    task, flags = HEADS[head]
    run = make_run(tmp_path / "run", base, task, "lora", **flags)
    names = run_card(exported(run, tmp_path / "out"), monkeypatch)
    assert capsys.readouterr().out.strip()  # the card's last line prints the prediction
    texts = [
        "Sentence : Profit rose . Label :",
        "Sentence : Sales of the unit fell by 3 % . Label :",
    ]
    inputs = names["tokenizer"](texts, padding=True, return_tensors="pt")
    assert not inputs["attention_mask"].all()
    for index, text in enumerate(texts):
        alone = names["tokenizer"]([text], return_tensors="pt")
        length = alone["input_ids"].shape[1]
        if head == "words":
            options = {"max_new_tokens": 10, "do_sample": False}
            both, one = (names["model"].generate(**each, **options) for each in (inputs, alone))
            width = inputs["input_ids"].shape[1]
            assert names["tokenizer"].decode(
                both[index, width:], skip_special_tokens=True
            ) == names["tokenizer"].decode(one[0, length:], skip_special_tokens=True)
        else:
            both, one = (names["model"](**each).logits for each in (inputs, alone))
            both = both[index] if head == "head" else both[index, :length]
            assert (both - one[0]).abs().max() < 1e-4


def test_a_tokenizer_that_encodes_whole_texts_differently_is_not_exported(base, tmp_path, capsys):
    """In a sequence, `add_prefix_space` would put a space in front of each part."""
    byte_level = BYTES | {"add_prefix_space": False}
    change_tokenizer(base, pre_tokenizer={"type": "Sequence", "pretokenizers": [byte_level]})
    run = make_run(tmp_path / "run", base, "ner", "lora")
    assert exit_status(lambda: export.main([str(run), "out"])) == 2
    error = capsys.readouterr().err
    assert "encodes 'The IL-2 gene" in error and error.count("\n") == 1
    assert not Path("out").exists()


# ---- Metadata


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory) -> Path:
    """Return the folder of a run that was trained and scored."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = ["--task", "sentiment", "--method", "lora", "--model", str(tiny_folder)]
    limits = ["--train-limit", "8", "--eval-limit", "60", "--epochs", "1", "--threads", "1"]
    assert exit_status(lambda: train.main([*flags, *limits, "--out", str(folder)])) == 0
    return folder


def test_scores_of_two_labels_have_the_hubs_names_and_the_label_of_f1(tiny_folder, tmp_path):
    flags = ["--task", "similarity", "--method", "lora", "--model", str(tiny_folder), "--threads"]
    limits = ["1", "--train-limit", "8", "--eval-limit", "60", "--epochs", "1"]
    train.main([*flags, *limits, "--out", str(tmp_path / "run")])
    card = ModelCard.load(exported(tmp_path / "run", tmp_path / "out") / "README.md")
    names = {result.metric_type: result.metric_name for result in card.data.eval_results}
    assert names.keys() == {"accuracy", "macro_f1", "f1", "matthews_correlation"}
    assert names["f1"].startswith("f1 of equivalent (95 % interval")
    assert ", f1 of equivalent 0." in card.text


@pytest.mark.parametrize("argv", [[], ["--merge"]])
def test_the_hub_reads_the_scores_and_their_intervals_from_the_card(finished, tmp_path, argv):
    folder = exported(finished, *argv, tmp_path / "out")
    data = ModelCard.load(folder / "README.md").data
    assert data.library_name == ("transformers" if argv else "peft")
    assert data.pipeline_tag == "text-generation" and data.base_model is None
    scores = read_record(finished)["scores"]["after"]["test"]
    results = {result.metric_type: result for result in data.eval_results}
    assert {"accuracy", "macro_f1"} <= results.keys()
    for name, result in results.items():
        assert result.dataset_split == "test" and result.dataset_name == "sentiment, sample"
        assert result.metric_value == pytest.approx(scores[name], abs=1e-4)
    rows = read_predictions(finished, PredictionKind("after"), "test")
    right = np.array([row["predicted"] == row["label"] for row in rows])
    random = np.random.default_rng(5)
    means = [random.choice(right, len(right)).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    args = results["accuracy"].metric_args
    assert abs(args["low"] - low) < 0.03 and abs(args["high"] - high) < 0.03 and low < high
    assert (
        f"accuracy {scores['accuracy']:.3f} ({args['low']:.3f} to"
        in (folder / "README.md").read_text()
    )


def test_a_run_without_predictions_has_a_card_without_scores(base, tmp_path):
    folder = exported(make_run(tmp_path / "run", base, "ner", "lora"), tmp_path / "out")
    data = ModelCard.load(folder / "README.md").data
    assert data.eval_results is None and data.pipeline_tag == "token-classification"
    assert data.license is None


def test_a_base_of_the_hubs_cache_is_named_by_its_hub_id(base, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "wherever-it-lies" / "models--owner--tiny" / "snapshots" / commit
    shutil.copytree(base, cached)
    (cached / "README.md").write_text(
        '---\nbase_license: mit\nlicense: "apache-2.0"\n---\n# Tiny\nlicense: mit\n'
    )
    for model, flags in ((str(cached), []), (str(cached), ["--merge"])):
        run = make_run(tmp_path / f"run{len(flags)}", model, "ner", "lora")
        folder = exported(run, *flags, tmp_path / f"out{len(flags)}")
        card = ModelCard.load(folder / "README.md")
        assert (card.data.base_model, card.data.license) == ("owner/tiny", "apache-2.0")
        assert "# ner, lora on owner/tiny" in card.text
        for path in folder.iterdir():
            assert b"wherever-it-lies" not in path.read_bytes(), path
    config = json.loads((tmp_path / "out0" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", commit)


def test_the_code_of_a_card_finds_a_base_that_was_named_by_a_relative_path(
    base, tmp_path, monkeypatch
):
    run = make_run(tmp_path / "run", base.name, "ner", "lora")
    names = run_card(exported(run, tmp_path / "a folder" / "out"), monkeypatch)
    assert names["logits"].shape[-1] == len(TASKS["ner"].labels)


def test_the_bundled_model_is_no_model_of_the_hub(tmp_path):
    folder = exported(make_run(tmp_path / "run", "neo-mini", "ner", "lora"), tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None and "on neo-mini" in card.text
    assert str(BUNDLED["neo-mini"]) not in card.text
