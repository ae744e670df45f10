"""The linear head alone is that of `--method head`, and what it adds is not part of the run."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from trained import make_job

import train
from neo_peft.runs import head_alone
from neo_peft.system.files import read_tensors

FLAGS = ["--threads", "1", "--train-limit", "40", "--eval-limit", "30", "--epochs", "2"]


def predictions(run: str, when: str, split: str) -> list:
    lines = Path(run, "predictions", f"{when}-{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["predicted"] for line in lines]


@pytest.mark.parametrize(
    "given",
    [
        ["--task", "ner", "--echo", "--read", "last"],
        ["--task", "ner", "--max-length", "24", "--stride", "6"],
        ["--task", "sentiment", "--readout", "head", "--head-dropout", "0.3", "--keep", "last"],
    ],
)
def test_the_head_alone_predicts_what_a_run_of_the_method_head_predicts(tiny_folder, given):
    """The method's prompt and its LoRA have no part in it."""
    given = [*given, "--model", str(tiny_folder), *FLAGS, "--head-dropout", "0.2"]
    train.main([*given, "--method", "lora+prompt", "--head-baseline", "--out", "both"])
    if "--readout" in given:
        given = given[:2] + given[4:]  # the method head has no other readout
    train.main([*given, "--method", "head", "--out", "head"])
    for split in ("validation", "test"):
        expected = predictions("head", "after", split)
        assert predictions("both", "head_alone", split) == expected
        assert predictions("both", "before", split) != expected
    record = json.loads(Path("both/run.json").read_text())
    of_head = json.loads(Path("head/run.json").read_text())["scores"]
    assert record["scores"]["head_alone"] == of_head["after"] and "head_alone" not in of_head


def test_the_head_alone_keeps_its_best_epoch(tiny_folder, monkeypatch):
    monkeypatch.setattr(head_alone, "LEARNING_RATE", 3.0)
    given = ["--task", "ner", "--model", str(tiny_folder), *FLAGS[:-1], "6"]
    train.main([*given, "--method", "lora", "--head-baseline", "--out", "both"])
    train.main([*given, "--method", "head", "--learning-rate", "3", "--out", "head"])
    assert json.loads(Path("head/run.json").read_text())["kept_epoch"] < 6
    assert predictions("both", "head_alone", "test") == predictions("head", "after", "test")


def test_the_head_alone_changes_nothing_in_the_run(tiny_folder):
    given = ["--task", "ner", "--method", "lora", "--model", str(tiny_folder), *FLAGS]
    train.main([*given, "--dropout", "0.3", "--out", "without"])
    train.main([*given, "--dropout", "0.3", "--head-baseline", "--out", "with"])
    without, with_head = (
        read_tensors(Path(run, "adapter_model.safetensors")) for run in ("without", "with")
    )
    assert all(torch.equal(tensor, with_head[name]) for name, tensor in without.items())
    names = {path.name for path in Path("with").rglob("*")}
    extra = {"head_alone-validation.jsonl", "head_alone-test.jsonl"}
    assert names == extra | {path.name for path in Path("without").rglob("*")}


def test_the_stored_hidden_states_are_those_of_transformers(tiny_folder, oracle, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", tag_subtoken="last", batch_size=4)
    with open(tmp_path / "states", "w+b") as file:
        states, examples = head_alone.store_states(job, file)
        checked = 0
        for split, rows in job.rows.items():
            for row, start in zip(rows, examples[split].starts, strict=False):
                pieces = [job.tuned.encoder.tokenize([" " + word])[0] for word in row["tokens"]]
                ids = torch.tensor([[token for piece in pieces for token in piece]])
                last = torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
                expected = oracle.transformer(ids).last_hidden_state[0, last]
                first = examples[split].ids[start]
                found = states[first : first + len(last)]
                assert found == pytest.approx(expected.detach(), abs=1e-4)
                checked += len(last)
        assert checked == len(states) > 100


def test_it_is_scored_by_default_where_it_costs_less_than_a_tenth(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=16, eval_limit=2, batch_size=4)
    tokens = {split: int(examples.lengths.sum()) for split, examples in job.examples.items()}
    train_tokens, validation, test = (tokens[split] for split in ("train", "validation", "test"))
    states = train_tokens + validation + test

    def is_cheap(**changes) -> bool:
        changed = dataclasses.replace(job.settings, **changes)
        return head_alone.is_cheap(dataclasses.replace(job, settings=changed))

    costs = {
        epochs: epochs * (2 * train_tokens + validation) + 2 * (validation + test)
        for epochs in range(1, 12)
    }
    assert [is_cheap(epochs=epochs) for epochs in costs] == [
        states < 0.1 * cost for cost in costs.values()
    ]
    assert is_cheap(epochs=11) and not is_cheap(epochs=3)
    # 8 of 4 steps an epoch are 2 epochs
    assert not is_cheap(epochs=11, max_steps=8) and is_cheap(epochs=11, max_steps=44)


def test_a_large_file_of_hidden_states_is_written_only_on_request(
    tiny_folder, tmp_path, monkeypatch
):
    job = make_job(tmp_path, tiny_folder, task="ner", epochs=50)
    assert head_alone.is_cheap(job)
    monkeypatch.setattr(head_alone, "LARGEST_FILE", 10_000)
    assert not head_alone.is_cheap(job)
