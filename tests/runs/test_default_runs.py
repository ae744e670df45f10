"""What a run prints for a new user: predictions before and after tuning, and a verdict. The default
run learns."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from corpus_files import CORPORA
from tags import most_frequent_tags

import train
from neo_peft.corpora.sources import load_splits
from neo_peft.metrics import entity_scores
from neo_peft.progress import no_progress
from neo_peft.runs import job as jobs
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

PNG = b"\x89PNG\r\n\x1a\n"


def printed(text: str, when: str) -> list[tuple[str, str]]:
    """Return the (gold, predicted) pairs under a heading."""
    lines = text.split(f"{when} tuning, three examples of test:\n")[1].splitlines()
    golds = [line.removeprefix("gold       ") for line in lines if line.startswith("gold       ")][
        :3
    ]
    predictions = [
        line.removeprefix("predicted  ") for line in lines if line.startswith("predicted  ")
    ][:3]
    return list(zip(golds, predictions, strict=True))


@pytest.mark.slow
def test_the_default_run_tags_better_than_the_baseline(drawn_curves, tmp_path, capsys):
    train.main(["--task", "ner", "--method", "lora", "--threads", "1"])
    text = capsys.readouterr().out
    before, after = printed(text, "Before"), printed(text, "After")
    assert [gold for gold, _ in before] == [gold for gold, _ in after]
    assert all(predicted.count("[") > 5 for _, predicted in before)
    assert sum(gold == predicted for gold, predicted in before) == 0
    assert re.search(
        r"LoRA adds 0\.0\d\d \(0.* to a linear head alone \(0\.\d+\): typed f1 on", text
    )
    record = json.loads((tmp_path / "runs/ner-lora/run.json").read_text())
    scores, splits = record["scores"], load_splits(TASKS["ner"], "sample")
    baseline = entity_scores(
        [row["tags"] for row in splits.test], most_frequent_tags(splits.train, splits.test)
    )["f1"]
    assert scores["after"]["test"]["f1"] >= baseline + 0.08
    assert scores["before"]["test"]["f1"] < 0.05
    plot = (tmp_path / "runs/ner-lora/plot.png").read_bytes()
    assert plot.startswith(PNG) and len(plot) > 10_000
    assert "plot.png" in record["files"]


def test_the_untuned_model_generates_after_the_instruction(tiny_folder, oracle):
    """`Before tuning` shows the text that transformers generates greedily after the
    instruction and the example."""
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), threads=1, eval_limit=20
    )
    printed_texts = []
    job = jobs.prepare(settings, jobs.Output(Path(), printed_texts.append, no_progress, 0.0))
    jobs.show_predictions(job, jobs.untuned_base(job), "Before tuning")
    task, rows = job.task, jobs.examples_to_show(job.task, job.rows["test"])
    assert [row["label"] for row in rows] == ["negative", "neutral", "positive"]
    lines = "\n".join(printed_texts).splitlines()
    assert lines[0] == "Before tuning, three examples of test:"
    for index, row in enumerate(rows):
        text = f"Sentence : {row['sentence']} Label :"
        encode = job.tuned.base.tokenizer.encode
        ids = torch.tensor([[*encode(task.instruction), *encode(text)]])
        out = oracle.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ].tolist()
        expected = job.tuned.base.tokenizer.decode(out[: out.index(0)] if 0 in out else out)
        sentence, verdict, words = lines[2 + 3 * index : 5 + 3 * index]
        assert sentence == row["sentence"] and verdict.startswith(f"  <{row['label']}> <")
        assert words == f"  generated: {expected!r}"


def test_the_examples_shown_are_chosen_only_by_their_labels():
    for name, task in ((name, TASKS[name]) for name in CORPORA):
        rows = load_splits(task, "sample").test
        shown = jobs.examples_to_show(task, rows)
        assert len(shown) == 3 and all(row in rows for row in shown)
        if name == "ner":
            assert all(len(row["tokens"]) <= 25 and set(row["tags"]) != {"O"} for row in shown)
        else:
            assert {row["label"] for row in shown} == set(task.labels)
    neutral = [{"sentence": str(i), "label": "neutral"} for i in range(2)]
    assert len(jobs.examples_to_show(TASKS["sentiment"], neutral)) == 2
    assert len(jobs.examples_to_show(TASKS["ner"], [{"tokens": ["a"], "tags": ["O"]}])) == 1


def test_a_run_without_a_test_split_shows_validation(tiny_folder):
    settings = make_settings(
        task="ner", method="lora", model=str(tiny_folder), threads=1, eval_limit=9
    )
    printed_texts = []
    job = jobs.prepare(settings, jobs.Output(Path(), printed_texts.append, no_progress, 0.0))
    rows = {name: part for name, part in job.rows.items() if name != "test"}
    jobs.show_predictions(
        dataclasses.replace(job, rows=rows), jobs.untuned_base(job), "Before tuning"
    )
    assert printed_texts[0] == "Before tuning, three examples of validation:\n"
    assert printed_texts[1].count("gold       ") == 3
