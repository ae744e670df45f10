"""AdapterSet: the predictions of a mixed batch are those of each run loaded alone. They need one
forward pass. The base is in memory once, and is never changed."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from corpus_files import CORPORA

from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.encoding import collate
from neo_peft.errors import InputError
from neo_peft.formats.adapter import save_adapter
from neo_peft.formats.base import Base, load_base
from neo_peft.gptneo import NOWHERE, Block
from neo_peft.lora import merge_lora
from neo_peft.model import TunedModel
from neo_peft.runs.adapter_set import AdapterSet, pad_prefixes
from neo_peft.runs.folder import write_record
from neo_peft.runs.generation import generate, texts_without_labels
from neo_peft.runs.loading import load, load_untuned, settings_in
from neo_peft.runs.texts import predict
from neo_peft.settings import make_settings
from neo_peft.system.hardware import DTYPES
from neo_peft.tasks import TASKS

# All differ in rank, scaling, targets and biases. Some prompts are shorter and some longer than the
# local attention window, which is 11.
RUNS = {
    "tags-qv": {"task": "ner", "method": "lora", "rank": 5, "alpha": 7.0, "dropout": 0.2},
    "label-long": {"task": "sentiment", "method": "prompt", "prompt_length": 17},
    "tags-all": {
        "task": "ner",
        "method": "lora",
        "rank": 3,
        "alpha": 4.0,
        "bias": "all",
        "tag_subtoken": "last",
    },
    "pairs-short": {"task": "similarity", "method": "prompt", "prompt_length": 3},
    "label-only": {
        "task": "sentiment",
        "method": "lora",
        "rank": 2,
        "alpha": 5.0,
        "rslora": True,
        "bias": "lora_only",
        "target_modules": "h.1.mlp.c_fc,out_proj",
    },
    "label-both": {
        "task": "sentiment",
        "method": "lora+prompt",
        "rank": 4,
        "alpha": 3.0,
        "bias": "all",
        "prompt_length": 9,
        "target_modules": "all-linear",
    },
    "tags-both": {
        "task": "ner",
        "method": "lora+prompt",
        "rank": 6,
        "alpha": 9.0,
        "prompt_length": 12,
    },
    "tags-twice": {
        "task": "ner",
        "method": "lora",
        "rank": 7,
        "echo": True,
        "tag_decoding": "viterbi",
    },
    "pairs-prefix": {"task": "similarity", "method": "prefix", "prompt_length": 5},
    "tags-prefix": {"task": "ner", "method": "lora+prefix", "prompt_length": 14},
    "label-head": {"task": "sentiment", "method": "head"},
    "pairs-head": {"task": "similarity", "method": "head"},
    "tags-head": {"task": "ner", "method": "head"},
}
HEADS = ("label-head", "pairs-head", "tags-head")
# Largest error after four layers, relative to the largest value. fp16 has 11 significant bits, bf16
# has 8.
TOLERANCE = {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.1}


def save_run(folder: Path, base: Base, **flags) -> Path:
    """Save a run whose adapter was changed at random, as training would change it."""
    flags |= {"model": str(base.folder), "threads": 1}
    settings = make_settings(**flags)
    tuned = load_untuned(settings, True, dataclasses.replace(base, trunk=copy.deepcopy(base.trunk)))
    torch.manual_seed(sum(map(ord, folder.name)))
    with torch.no_grad():
        for parameter in tuned.model.trainable().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_adapter(folder, tuned.model, settings)
    labels, base = list(TASKS[settings.task].labels), {"fingerprint": tuned.base.fingerprint}
    write_record(
        folder, {"task": settings.task, "labels": labels, "flags": flags, "base": base, "files": {}}
    )
    return folder


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory) -> dict[str, Path]:
    runs = tmp_path_factory.mktemp("runs")
    return {name: save_run(runs / name, base, **flags) for name, flags in RUNS.items()}


@pytest.fixture(scope="module")
def alone(folders) -> dict:
    """Return each run loaded alone, on its own base."""
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def runs(folders) -> AdapterSet:
    return AdapterSet(folders.values())


def rows_of(names, each=3) -> list[dict]:
    """Return `each` rows of the sample for each run. The rows of a run are not consecutive."""
    texts = {task: iter(load_splits(TASKS[task], "sample").test) for task in CORPORA}
    return [{"run": name, **next(texts[RUNS[name]["task"]])} for _ in range(each) for name in names]


def evaluate_alone(tuned, rows):
    task = tuned.encoder.task
    unlabelled = [{field: row[field] for field in task.fields[:-1]} for row in rows]
    return evaluate(tuned.model, tuned.encoder, tuned.encoder(unlabelled))


def assert_predictions_are_those_of_each_alone(runs, alone, rows, batch_size):
    found = runs.evaluate(rows, batch_size)
    for name in {row["run"] for row in rows}:
        indices = [index for index, row in enumerate(rows) if row["run"] == name]
        expected = evaluate_alone(alone[name], [rows[index] for index in indices])
        assert [found.predicted[index] for index in indices] == expected.predicted
        for index, probabilities in zip(indices, expected.probabilities, strict=True):
            assert found.probabilities[index] == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_a_mixed_batch_has_the_predictions_of_each_run_alone(runs, alone, batch_size):
    rows = rows_of(RUNS)
    assert len({len(str(row)) for row in rows}) > 20
    assert_predictions_are_those_of_each_alone(runs, alone, rows, batch_size)


@pytest.mark.parametrize(
    "names",
    [
        HEADS,
        ("tags-qv", "label-only"),
        ("tags-all", "label-long"),
        ("pairs-short", "label-both"),
        ("tags-both",),
    ],
    ids=lambda names: "+".join(names),
)
def test_other_mixed_batches_have_the_predictions_of_each_run_alone(folders, alone, names):
    """The runs have no prompt, one prompt, or two prompts, or there is a single run. The rows of
    the last run are first."""
    runs = AdapterSet({name: folders[name] for name in names})
    assert_predictions_are_those_of_each_alone(
        runs, alone, rows_of(reversed(names), each=5), batch_size=50
    )


@pytest.mark.parametrize("precision", TOLERANCE)
def test_hidden_states_are_those_of_each_run_alone(folders, base, precision):
    """This holds in each precision. The hidden states of all runs, except those of the method head,
    differ a lot from those of the base."""
    runs, parts, alone, untuned = AdapterSet(), {}, {}, {}
    for name, folder in folders.items():
        settings = dataclasses.replace(settings_in(folder), precision=precision)
        runs.add(folder, settings=settings)
        tuned = load(folder, settings)
        rows = rows_of([name])
        parts[name] = collate(tuned.encoder(rows), range(len(rows)))
        with torch.inference_mode():
            alone[name] = tuned.model(parts[name], tuned.model.prompt_past())
            untuned[name] = TunedModel(base.trunk)(parts[name], None)
    with torch.inference_mode():
        found = runs.hidden(parts).split([len(hidden) for hidden in alone.values()])
    assert runs.base.trunk.wte.weight.dtype == DTYPES[precision]
    for name, mixed in zip(folders, found, strict=True):
        assert mixed.shape == alone[name].shape and mixed.dtype == torch.float32
        largest = float(alone[name].abs().max())
        assert float((mixed - alone[name]).abs().max()) <= TOLERANCE[precision] * largest, name
        assert name in HEADS or float((untuned[name] - alone[name]).abs().max()) > 0.5 * largest, (
            name
        )


def test_a_mixed_batch_is_one_pass_through_the_trunk(runs, monkeypatch):
    passes, forward = [], Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, x, *rest: passes.append(len(x)) or forward(self, x, *rest)
    )
    rows = rows_of(RUNS)
    texts = [
        {field: value for field, value in row.items() if field not in ("label", "tags")}
        for row in rows
    ]
    tokens = sum(len(runs[row["run"]].encoder([row]).ids) for row in texts)
    runs.evaluate(rows, batch_size=len(rows))
    assert passes == [tokens] * len(runs.base.trunk.h)


def storages(modules) -> dict[int, int]:
    """Return the memory of all parameters as {address: bytes}."""
    tensors = [tensor for module in modules for tensor in module.parameters()]
    return {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }


def test_the_base_is_in_memory_once(runs, alone):
    """The memory is that of the base and of the trained parameters of each run."""
    base = storages([runs.base.trunk])
    total = storages([runs.base.trunk, runs._trunk, *(runs[name].model for name in runs)])
    adapters = sum(
        p.numel() * 4 for tuned in alone.values() for p in tuned.model.trainable().values()
    )
    assert sum(total.values()) == sum(base.values()) + adapters
    for name in runs:
        assert runs[name].model.trainable().keys() == alone[name].model.trainable().keys()
        assert runs[name].model.transformer.wte.weight is runs.base.trunk.wte.weight


def test_the_base_is_never_changed(folders, base):
    """After runs were added, used and removed, the trunk is bit for bit the untuned base."""
    runs = AdapterSet(folders.values())
    runs.predict(rows_of(RUNS))
    for name in list(runs):
        runs.remove(name)
    assert len(runs) == 0
    for trunk in (runs.base.trunk, runs._trunk):
        assert [str(module) for module in trunk.modules()] == [
            str(module) for module in base.trunk.modules()
        ]
        for (name, found), (_, expected) in zip(
            trunk.named_parameters(), base.trunk.named_parameters(), strict=True
        ):
            assert torch.equal(found, expected) and not found.requires_grad, name


def test_a_run_is_not_changed_by_the_others(folders, alone):
    """Before and after other runs are added and removed, the predictions are bit for bit those of
    the run loaded alone."""
    runs = AdapterSet([folders["tags-all"]])
    for added in ("label-both", "label-only", None):
        if added:
            runs.add(folders[added])
        else:
            runs.remove("label-both")
        for name in ["tags-all", *list(runs), "tags-all"]:
            rows = rows_of([name], each=4)
            assert evaluate_alone(runs[name], rows) == evaluate_alone(alone[name], rows)
    assert_predictions_are_those_of_each_alone(
        runs, alone, rows_of(["label-only", "tags-all"]), batch_size=9
    )
    with pytest.raises(
        InputError, match="there is no run 'label-both' here; the runs are tags-all, label-only"
    ):
        runs["label-both"]
    with pytest.raises(InputError, match="there is no run 'label-both' here"):
        runs.remove("label-both")


def test_a_runs_model_can_generate_merge_and_save(folders, alone, runs, tmp_path):
    rows = rows_of(["label-both"])
    for tuned in (
        shared := AdapterSet([folders["label-both"], folders["tags-all"]])["label-both"],
        alone["label-both"],
    ):
        examples = tuned.encoder([{"sentence": row["sentence"]} for row in rows])
        texts = texts_without_labels(examples, range(len(rows)))
        generated = generate(tuned.model, tuned.encoder, texts, tuned.model.prompt_past())
        assert generated == generate(
            shared.model, shared.encoder, texts, shared.model.prompt_past()
        )
    save_adapter(tmp_path, shared.model, shared.settings)
    for part in ("lora", "prompt"):
        name = f"{part}/adapter_model.safetensors"
        assert (tmp_path / name).read_bytes() == (folders["label-both"] / name).read_bytes()
    merge_lora(shared.model)
    assert predict(shared.model, shared.encoder, rows) == predict(
        alone["label-both"].model, shared.encoder, rows
    )


def test_words_that_were_cut_away_have_no_tag(runs, alone):
    row = {"run": "tags-both", "tokens": ["IL-2", "gene", "binds"] * 60}
    short = rows_of(["label-long"], each=1)
    found = runs.evaluate([row, *short, row])
    predicted_words = len(found.probabilities[0])  # the other words were cut away
    assert found.cut == 2 and predicted_words < 128 - 12
    assert found.used == [predicted_words, None, predicted_words]
    assert set(found.predicted[0][predicted_words:]) == {None}
    tags, label, again = runs.predict([row, *short, row])
    assert len(tags) == 180 and tags[-1] is None and tags == again
    [expected] = evaluate_alone(alone["tags-both"], [row]).predicted
    assert tags[:predicted_words] == expected[:predicted_words] and len(set(tags)) > 2
    assert label == evaluate_alone(alone["label-long"], short).predicted[0]


def test_a_run_whose_hidden_states_are_not_finite_is_named(folders):
    """The same run loaded alone is refused by `evaluate`. The other runs still predict."""
    runs = AdapterSet([folders["tags-qv"], folders["label-only"]])
    layer = runs["label-only"].model.transformer.h[1].mlp.c_fc
    with torch.no_grad():
        layer.lora_B.weight.fill_(float("inf"))
    rows = rows_of(["tags-qv", "label-only"])
    with pytest.raises(InputError, match="the hidden states of label-only are not finite: its w"):
        runs.predict(rows)
    assert len(runs.predict(rows[::2])) == 3


def test_labels_are_not_needed_and_no_rows_give_no_predictions(runs):
    row = {"run": "pairs-short", "sentence1": "One .", "sentence2": "Two ."}
    assert runs.predict([row]) == runs.predict([row | {"label": "whatever"}])
    assert runs.predict([]) == []


def test_there_is_no_dropout_and_one_precision_for_all_runs(folders, alone):
    runs = AdapterSet([folders["tags-qv"]])
    settings = dataclasses.replace(
        settings_in(folders["label-only"]), precision="bf16", threads=7, model="elsewhere"
    )
    added = runs.add(folders["label-only"], settings=settings)
    assert (added.precision, added.threads, added.settings.model) == (
        "fp32",
        1,
        alone["tags-qv"].settings.model,
    )
    for name in list(runs):
        runs.remove(name)
    for name in ("tags-qv", "label-only"):  # the base keeps its precision
        runs.add(
            folders[name],
            settings=dataclasses.replace(settings_in(folders[name]), precision="bf16"),
        )
        runs[name].model.train()  # as after training it further
    assert_predictions_are_those_of_each_alone(runs, alone, rows_of(runs), batch_size=4)


def test_padded_prefixes_worked_by_hand(runs):
    """Real keys keep their positions. Padding has the position NOWHERE; a missing prefix is only
    padding."""
    long, short = runs._prefixes["pairs-short"], runs._prefixes["label-both"]
    past = pad_prefixes([long, None, short])
    assert past.positions.tolist() == [[0, 1, 2] + [NOWHERE] * 6, [NOWHERE] * 9, list(range(9))]
    for joined, first, last in (
        (past.keys, long.keys, short.keys),
        (past.values, long.values, short.values),
    ):
        for layer, one, other in zip(joined, first, last, strict=True):
            assert torch.equal(layer[0, :, :3], one[0]) and torch.equal(layer[2], other[0])
            assert not layer[0, :, 3:].any() and not layer[1].any()


def test_a_run_of_another_base_is_refused(folders, tiny_folder, tmp_path):
    """The other base differs in one weight only. The set of runs stays as it was."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tensors = load_file(other / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.bias"][3] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    stranger = save_run(
        tmp_path / "stranger", load_base(str(other)), task="sentiment", method="head"
    )
    runs = AdapterSet([folders["tags-qv"]])
    with pytest.raises(
        InputError, match=rf"{stranger} was trained on another base than {tiny_folder}"
    ):
        runs.add(stranger)
    assert list(runs) == ["tags-qv"] and len(runs.predict(rows_of(["tags-qv"]))) == 3


def test_full_fine_tuning_and_a_name_used_twice_are_refused(folders, base, tmp_path):
    full = save_run(tmp_path / "full", base, task="ner", method="full")
    with pytest.raises(InputError, match=r"full was trained by full: it cannot share a base"):
        AdapterSet([full])
    with pytest.raises(
        InputError, match="two runs are called tags-qv; the second is .*: rename it"
    ):
        AdapterSet([folders["tags-qv"], folders["tags-qv"]])
    runs = AdapterSet({"a": folders["tags-qv"], "b": folders["tags-qv"]})
    a, b = runs.predict([row | {"run": name} for row in rows_of(["tags-qv"], 1) for name in "ab"])
    assert a == b


def test_labels_that_share_a_first_token_are_scored_with_their_own_prompt(folders):
    """Two labels of one run share their first token; those of the other run do not."""
    label_tokens = {"negative": [50, 60, 0], "neutral": [50, 70, 80, 0], "positive": [90, 0]}
    runs, alone = (
        AdapterSet(folders.values()),
        {name: load(folders[name]) for name in ("label-both", "label-long")},
    )
    for tuned in (runs["label-both"], alone["label-both"]):
        vars(tuned.encoder)["label_tokens"] = label_tokens  # sets the cached property
        assert tuned.encoder.label_tokens is label_tokens
    assert_predictions_are_those_of_each_alone(
        runs, alone, rows_of(["label-both", "label-long"], each=4), batch_size=8
    )


@pytest.mark.parametrize("run", [{}, {"run": "nobody"}, {"run": None}, {"run": ["tags-qv"]}])
def test_a_row_must_name_its_run(runs, run):
    with pytest.raises(
        InputError, match='row 1: its "run" is .*; it must be one of tags-qv, label-long'
    ):
        runs.predict([*rows_of(["tags-qv"], 1), {"tokens": ["x"], **run}])


def test_an_adapter_in_peft_format_can_be_added(folders, alone, tiny_folder, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((folders["tags-all"] / name).read_bytes())
    settings = dataclasses.replace(
        settings_in(tmp_path, str(tiny_folder), "ner"), tag_subtoken="last"
    )
    runs = AdapterSet([folders["label-long"]])
    assert "has no fingerprint" in runs.add(tmp_path, "tags-all", settings).notes[-1]
    assert_predictions_are_those_of_each_alone(
        runs, alone, rows_of(["tags-all", "label-long"]), batch_size=4
    )
