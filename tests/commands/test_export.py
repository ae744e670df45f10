"""Export: peft and transformers load the folders with the code of their model cards, and compute
our logits. Some runs are refused."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from parity import all_logits, batch_of, padded, real_rows
from safetensors.torch import load_file
from trained import make_run
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Tokenizer,
    pipeline,
)

import evaluate
from neo_peft.commands import export
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.encoding import collate
from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.lora import merge_lora
from neo_peft.metrics import entities
from neo_peft.runs.generation import generate, texts_without_labels
from neo_peft.runs.loading import load, settings_in
from neo_peft.runs.texts import predict
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import write_folder
from neo_peft.tasks import TASKS

AUTO = {
    "classifier": AutoModelForTokenClassification,
    "score": AutoModelForSequenceClassification,
    None: AutoModelForCausalLM,
}


def exported(*argv):
    """Run the command. Return its last argument, the folder."""
    assert exit_status(lambda: export.main([str(part) for part in argv])) == 0
    return Path(argv[-1])


def rows_of(task, count=5):
    return limit_rows(load_splits(TASKS[task], "sample").test, count)


def loaded_by_its_card(folder, monkeypatch):
    """Run the Python code of a folder's model card inside it. Return its variables."""
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(
        1
    )
    names = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(compile(block, "README.md", "exec"), names)
    return names


def our_logits(run, task, merged=False):
    """Return a run's logits at every token of some rows of different lengths, and the rows' token
    ids."""
    tuned = load(run)
    if merged:
        merge_lora(tuned.model)
    unlabelled = [{field: row[field] for field in TASKS[task].fields[:-1]} for row in rows_of(task)]
    examples = tuned.encoder(unlabelled)
    batch = collate(examples, range(len(examples)))
    assert len(set(batch.lengths.tolist())) > 2
    batch = dataclasses.replace(batch, target_indices=torch.arange(len(batch.ids)))
    with torch.no_grad():
        return tuned.model.logits(tuned.model(batch, tuned.model.prompt_past())), batch.ids.split(
            batch.lengths.tolist()
        )


def their_logits(model, texts, prompt=0):
    """Return the logits of another model, which computes them in one right-padded batch."""
    ids, mask = padded(texts), padded([torch.ones_like(text) for text in texts])
    with torch.no_grad():
        return real_rows(model(input_ids=ids, attention_mask=mask).logits[:, prompt:], texts)


def agree(ours, theirs):
    """Check that logits differ by at most 1e-5 of the largest one, and are not all the same."""
    difference = (ours - theirs).abs().max().item() / max(1, theirs.abs().max().item())
    print(f"largest difference of logits: {difference:.2e}")
    assert ours.shape == theirs.shape and difference <= 1e-5
    assert ours.std(0).max() > 0.1


# ---- For peft

ADAPTERS = [
    ("ner", "lora", {"rank": 5, "alpha": 7, "bias": "all"}),
    ("sentiment", "lora", {"target_modules": "all-linear"}),
    ("sentiment", "prompt", {"prompt_length": 6}),
    ("ner", "prompt", {"prompt_length": 6}),
    ("similarity", "lora+prompt", {"prompt_length": 6}),
    ("sentiment", "prefix", {"prompt_length": 6}),
    ("ner", "prefix", {"prompt_length": 6}),
    ("similarity", "lora+prefix", {"prompt_length": 6}),
]


@pytest.mark.parametrize(("task", "method", "flags"), ADAPTERS)
def test_peft_computes_our_logits_with_the_code_of_the_card(
    tiny_folder, tmp_path, monkeypatch, task, method, flags
):
    run = make_run(tmp_path / "run", tiny_folder, task, method, **flags)
    folder = exported(run, tmp_path / "a folder" / "out")
    # With a prompt too, the card's code merges LoRA. Ours is merged as well, since this trunk
    # amplifies rounding errors.
    ours, texts = our_logits(run, task, merged="+" in method)
    model = loaded_by_its_card(folder, monkeypatch)["model"]
    agree(ours, their_logits(model, texts, prompt=6 if "prompt" in method else 0))
    card = (folder / "README.md").read_text()
    assert ", ".join(TASKS[task].labels) in card and str(tiny_folder) not in card
    assert not [path for path in folder.rglob("*") if path.name in ("run.json", "metrics.jsonl")]


def test_the_exported_files_are_those_of_the_run(tiny_folder, tmp_path):
    run = make_run(tmp_path / "run", tiny_folder, "ner", "lora", rank=5, alpha=7)
    folder = exported(run, tmp_path / "out")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_an_adapter_of_the_bundled_model_names_an_existing_folder(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "neo-mini", "ner", "lora")
    folder = exported(run, tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).samefile(BUNDLED["neo-mini"])
    assert "# ner, lora on neo-mini" in (folder / "README.md").read_text()
    ours, texts = our_logits(run, "ner")
    agree(ours, their_logits(loaded_by_its_card(folder, monkeypatch)["model"], texts))


# ---- For transformers alone

MODELS = [
    ("ner", "lora", "classifier", {"rank": 5, "alpha": 7, "bias": "all"}),
    ("ner", "head", "classifier", {}),
    ("ner", "full", "classifier", {}),
    ("sentiment", "lora", None, {"rslora": True, "alpha": 5, "target_modules": "all-linear"}),
    ("similarity", "head", "score", {}),
    ("sentiment", "lora", "score", {"readout": "head"}),
    ("similarity", "full", None, {}),
]


@pytest.mark.parametrize(("task", "method", "head", "flags"), MODELS)
def test_transformers_computes_our_logits(tiny_folder, tmp_path, task, method, head, flags):
    run = make_run(tmp_path / "run", tiny_folder, task, method, **flags)
    folder = exported("--merge", run, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and config["bos_token_id"] == config["eos_token_id"] == 0
    model, loading = AUTO[head].from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert type(model).__name__ == config["architectures"][0] and model.dtype == torch.float32
    ours, texts = our_logits(run, task)
    if head == "score":
        ends = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
        ids, mask = padded(texts), padded([torch.ones_like(text) for text in texts])
        with torch.no_grad():
            agree(ours[ends], model.eval()(input_ids=ids, attention_mask=mask).logits)
    else:
        agree(ours, their_logits(model.eval(), texts))
    if head:
        assert model.config.id2label == dict(enumerate(TASKS[task].labels))
        assert model.config.label2id == {
            label: index for index, label in enumerate(TASKS[task].labels)
        }


def test_a_run_in_half_precision_of_a_base_in_half_precision_is_merged_in_fp32(
    tiny_folder, tmp_path
):
    from safetensors.torch import load_file, save_file

    half = shutil.copytree(tiny_folder, tmp_path / "half")
    tensors = load_file(tiny_folder / "model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in tensors.items()},
        half / "model.safetensors",
        {"format": "pt"},
    )
    run = make_run(tmp_path / "run", half, "ner", "lora", precision="bf16", rank=3, alpha=5)
    merged = load_file(exported(run, "--merge", tmp_path / "out") / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    low = load_file(run / "adapter_model.safetensors")
    layer, base = (
        "transformer.h.1.attn.attention.v_proj",
        tensors["transformer.h.1.attn.attention.v_proj.weight"],
    )
    a, b = (low[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    assert (merged[f"{layer}.weight"] - (base.half().float() + 5 / 3 * b @ a)).abs().max() <= 1e-6


def slow_files(folder):
    """Replace a tokenizer.json by vocab.json and merges.txt, as in GPT-Neo's repositories."""
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in content["merges"]))
    (folder / "tokenizer.json").unlink()
    end = "<|endoftext|>"
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert isinstance(AutoTokenizer.from_pretrained(folder), GPT2Tokenizer)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_the_pipeline_tags_words_as_we_do(tiny_folder, tmp_path, files):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    if files == "vocab.json":
        slow_files(base)
    run = make_run(tmp_path / "run", base, "ner", "lora", bias="all", tag_decoding="greedy")
    folder = exported(run, "--merge", tmp_path / "out")
    tuned, rows = load(run), rows_of("ner", 6)
    expected = predict(tuned.model, tuned.encoder, rows)
    assert len({tag for tags in expected for tag in tags}) > 5
    each = pipeline(
        "token-classification", model=str(folder), aggregation_strategy="none", ignore_labels=[]
    )
    whole = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    simple = pipeline("token-classification", model=str(folder), aggregation_strategy="simple")
    for row, tags in zip(rows, expected, strict=True):
        text = " ".join(row["tokens"])
        starts = [
            sum(len(word) + 1 for word in row["tokens"][:index])
            for index in range(len(row["tokens"]))
        ]
        assert tuned.encoder.tokenize([f" {text}"])[0] == each.tokenizer(text)["input_ids"]
        assert (
            each.tokenizer(row["tokens"], is_split_into_words=True)["input_ids"]
            == each.tokenizer(text)["input_ids"]
        )
        first_tags = {}
        for token in each(text):
            word = max(
                index
                for index, start in enumerate(starts)
                if start <= max(token["start"], token["end"] - 1)
            )
            first_tags.setdefault(word, token["entity"])  # keeps the tag of the first sub-token
        assert [first_tags[index] for index in range(len(tags))] == tags
        assert [group["entity_group"] for group in whole(text)] == [
            kind for kind, _, _ in entities(tags)
        ]
        assert {group["entity_group"] for group in simple(text)} <= {
            "DNA",
            "RNA",
            "protein",
            "cell_type",
            "cell_line",
        }
    texts = [" ".join(row["tokens"]) for row in rows]
    kinds = [
        [[group["entity_group"] for group in groups] for groups in simple(texts, batch_size=n)]
        for n in (1, 3)
    ]
    assert kinds[0] == kinds[1]


def test_a_classification_model_generates_what_we_generate(tiny_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", tiny_folder, "sentiment", "lora", target_modules="all-linear")
    folder = exported(run, "--merge", tmp_path / "out")
    assert "`Sentence : <sentence> Label :`" in (folder / "README.md").read_text()
    predict_by_card = loaded_by_its_card(folder, monkeypatch)["predict"]
    tuned, rows = load(run), rows_of("sentiment", 3)
    examples = tuned.encoder([{"sentence": row["sentence"]} for row in rows])
    generated = generate(tuned.model, tuned.encoder, texts_without_labels(examples, range(3)), None)
    assert len(set(generated)) == 3
    for row, text in zip(rows, generated, strict=True):
        continued = predict_by_card(
            f"Sentence : {row['sentence']} Label :",
            max_new_tokens=10,
            do_sample=False,
            return_full_text=False,
        )
        assert continued[0]["generated_text"] == text


def test_the_cards_describe_input_and_predictions(tiny_folder, tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "last", tiny_folder, "ner", "lora", tag_subtoken="last")
    assert (
        "tag of a word is predicted at its last sub-token"
        in (exported(run, tmp_path / "a") / "README.md").read_text()
    )
    run = make_run(tmp_path / "score", tiny_folder, "similarity", "head")
    folder = exported(run, "--merge", tmp_path / "b")
    assert (
        "A linear head predicts the label at the text's last token"
        in (folder / "README.md").read_text()
    )
    loaded_by_its_card(folder, monkeypatch)
    assert "equivalent" in capsys.readouterr().out
    run = make_run(tmp_path / "echo", tiny_folder, "ner", "lora", echo=True, tag_decoding="viterbi")
    card = (exported(run, "--merge", tmp_path / "d") / "README.md").read_text()
    assert (
        "Use the tags of the second copy." in card
        and "(Viterbi); transformers chooses each word's tag alone." in card
    )
    assert card.count("The IL-2 gene is active in T cells .") == 2
    run = make_run(tmp_path / "score-prompt", tiny_folder, "sentiment", "prompt", readout="head")
    card = (exported(run, tmp_path / "e") / "README.md").read_text()
    assert "All texts of a batch must have the same length" in card
    assert "belong to the prompt" not in card
    run = make_run(
        tmp_path / "paper", tiny_folder, "sentiment", "lora", preset="paper", data="sample"
    )
    assert (
        "one of `negative`, `neutral`, `positive` and then"
        in (exported(run, tmp_path / "c") / "README.md").read_text()
    )


def test_the_newest_run_is_exported_by_default(tiny_folder, tmp_path):
    make_run(tmp_path / "runs" / "ner-lora", tiny_folder, "ner", "lora")
    make_run(tmp_path / "runs" / "sentiment-lora", tiny_folder, "sentiment", "lora")
    os.utime(tmp_path / "runs" / "ner-lora" / "run.json", (1, 1))
    Path("out").mkdir()  # an empty folder is allowed
    assert "# sentiment, lora" in (exported("out") / "README.md").read_text()


# ---- Refusals


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lora", "prompt", "prefix", "full", "head", "lora+prompt"):
        make_run(folder / method, tiny_folder, "sentiment", method)
    return make_run(folder / "tags", tiny_folder, "ner", "lora+prompt").parent


UNMERGEABLE = (
    "--merge: .*{} has a prompt in front of every text, which a transformers model cannot hold; "
    "export it without --merge, for peft"
)
NO_ADAPTER = (
    "{0}: peft has no adapter for the method {0}; export the run with --merge, for transformers"
)
REFUSALS = {
    ("prompt", "--merge"): UNMERGEABLE.format("prompt"),
    ("prefix", "--merge"): UNMERGEABLE.replace("prompt", "prefix", 1).format("prefix"),
    ("lora+prompt", "--merge"): UNMERGEABLE.format(r"lora\+prompt"),
    ("full",): NO_ADAPTER.format("full"),
    ("head",): NO_ADAPTER.format("head"),
    ("tags",): r"tags has lora\+prompt and a head. peft needs a head in each of two adapters, so "
    "this run cannot be exported",
}


def test_an_exported_run_is_scored_as_the_run_with_the_same_flags(tiny_folder, tmp_path, capsys):
    """peft's format has no field for the target positions and the decoding of tags, so evaluate.py
    needs flags for an exported adapter."""
    options = {"echo": True, "tag_decoding": "viterbi", "tag_subtoken": "last"}
    run = make_run(tmp_path / "run", tiny_folder, "ner", "lora", **options)
    flags = [
        "--echo",
        "--tag-decoding",
        "viterbi",
        "--read",
        "last",
        "--task",
        "ner",
        "--model",
        tiny_folder,
    ]
    scores = []
    for argv in ([run], [exported(run, tmp_path / "out"), *flags], [tmp_path / "out", *flags[5:]]):
        assert (
            exit_status(
                lambda argv=argv: evaluate.main([*map(str, argv), "--eval-limit", "20", "--json"])
            )
            == 0
        )
        scores.append(json.loads(capsys.readouterr().out.splitlines()[-1])["scores"])
    assert scores[0] == scores[1] != scores[2]
    run = make_run(tmp_path / "answers", tiny_folder, "sentiment", "lora")
    assert exit_status(lambda: evaluate.main([str(run), "--echo"])) == 2
    assert (
        "--echo belongs to tagging tasks, such as ner; the task here is sent"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("argv", REFUSALS)
def test_runs_that_peft_or_transformers_cannot_load_are_refused_in_one_line(runs, argv, capsys):
    method, *flags = argv
    assert exit_status(lambda: export.main([str(runs / method), "out", *flags])) == 2
    error = capsys.readouterr().err
    assert re.search(REFUSALS[argv], error) and error.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_folder_with_files_is_not_changed(runs, tmp_path, capsys):
    Path("kept").mkdir()
    Path("kept/file").write_text("mine")
    for target, message in (
        ("kept", "kept exists and is not an empty folder; name a new folder"),
        ("kept/file", "is not an empty folder"),
    ):
        assert exit_status(lambda target=target: export.main([str(runs / "lora"), target])) == 2
        assert message in capsys.readouterr().err
    Path("empty").mkdir()
    os.chdir("empty")
    assert exit_status(lambda: export.main([str(runs / "lora"), "."])) == 2
    assert "is the current folder" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"kept", "empty", "file"}


def test_a_folder_is_written_whole_or_not_at_all(runs, tmp_path, monkeypatch, capsys):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("neo_peft.runs.export.write_card", full_disk)
    for argv in (["lora"], ["lora", "--merge"]):
        assert (
            exit_status(lambda argv=argv: export.main([str(runs / argv[0]), "out", *argv[1:]])) == 2
        )
        assert capsys.readouterr().err == "error: No space left on device\n"
        assert not list(tmp_path.iterdir())
    write_folder(Path("whole"), lambda folder: (folder / "file").write_text("content"))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"] and Path(
        "whole/file"
    ).read_text() == "content"


# ---- Runs on a quantised base


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_peft_loads_the_adapter_on_the_unquantised_base(
    tiny_folder, tmp_path, monkeypatch, capsys, kind
):
    """There it computes what the run computes with `--quantize none`, which is not what it computes
    on the quantised base."""
    flags = {"rank": 5, "alpha": 7, "target_modules": "all-linear", "quantize": kind}
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "lora", **flags)
    out = exported(folder, tmp_path / "out")
    note = (
        f"note    the adapter was trained on {tiny_folder} in {kind}: on the unquantised base its"
    )
    assert note in capsys.readouterr().err
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (folder / name).read_bytes()
    _, texts = our_logits(folder, "ner")
    theirs = their_logits(loaded_by_its_card(out, monkeypatch)["model"], texts)
    batch = batch_of(texts)
    plain = load(folder, dataclasses.replace(settings_in(folder), quantize="none"))
    with torch.no_grad():
        agree(all_logits(plain.model, batch), theirs)
        ours = all_logits(load(folder).model, batch)
    assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_merged_model_has_the_dequantised_weights_and_our_logits(
    tiny_folder, tmp_path, capsys, kind
):
    flags = {"rank": 5, "alpha": 7, "quantize": kind}
    folder = make_run(tmp_path / "run", tiny_folder, "ner", "lora", **flags)
    out = exported(folder, "--merge", tmp_path / "out")
    note = (
        f"note    the base's {kind} weights are dequantised, the changes of the adapter are added"
    )
    assert note in capsys.readouterr().err
    ours, texts = our_logits(folder, "ner", merged=True)
    agree(ours, their_logits(AUTO["classifier"].from_pretrained(out), texts))
    stored = load_file(out / "model.safetensors")
    quantized = load_base(str(tiny_folder), quantize=kind).trunk
    name = "h.1.mlp.c_fc"
    weight = stored[f"transformer.{name}.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, quantized.get_submodule(name).weight)
    assert stored.keys() == {
        f"transformer.{name}" for name, _ in load_base(str(tiny_folder)).trunk.named_parameters()
    } | {"classifier.weight", "classifier.bias"}
