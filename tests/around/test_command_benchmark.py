"""The peers of the job `command` do train.py's work: the same tokens, targets, decoding, scores."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import command, peers, trainer_careful, trainer_job, trainer_plain
from benchmarks.command import Side, agreement, compared
from benchmarks.trainer_job import NO_TARGET, UserJob
from neo_peft.metrics import entity_scores
from neo_peft.runs.loading import make_encoder
from neo_peft.tasks import get_task
from neo_peft.viterbi import best_sequences

TAGS = get_task("ner").labels


def user_job(task, folder, **more) -> UserJob:
    flags = ["--task", task, "--out", "out", "--model", str(folder)]
    flags += [text for name, value in more.items() for text in (f"--{name}", str(value))]
    return UserJob(trainer_job.read_flags("", flags))


@pytest.mark.parametrize(
    "task, instruction", [("ner", False), ("sentiment", False), ("sentiment", True)]
)
def test_the_peers_have_our_tokens_and_our_targets(tiny_folder, base, task, instruction):
    job = user_job(task, tiny_folder)
    text = job.task.instruction if instruction else ""
    is_tagging = job.task.is_tagging
    encoder = make_encoder(
        job.task, base.tokenizer, base.trunk.config, job.settings, with_head=is_tagging
    )
    before = encoder.tokenize([text])[0] if text else []
    for split, rows in job.rows.items():
        ours, theirs = encoder(rows), job.examples(split, text)
        assert len(ours) == len(theirs) > 100 and not ours.cut
        for index, example in enumerate(theirs):
            ids = ours.ids[ours.starts[index] : ours.starts[index + 1]]
            part = slice(*ours.target_starts[index : index + 2])
            labels = np.array(example["labels"])
            assert example["input_ids"] == [*before, *ids]
            assert (
                np.flatnonzero(labels != NO_TARGET) - len(before) == ours.target_indices[part]
            ).all()
            assert (labels[labels != NO_TARGET] == ours.targets[part]).all()


def test_the_plain_script_shifts_targets_to_the_tokens_themselves(tiny_folder):
    job = user_job("sentiment", tiny_folder)
    example = job.examples("test")[0]
    shifted = trainer_plain.shifted(job, [example])[0]
    known = [i for i, label in enumerate(shifted["labels"]) if label != NO_TARGET]
    assert [shifted["input_ids"][i] for i in known] == [shifted["labels"][i] for i in known]
    assert (
        shifted["input_ids"][:-1] == example["input_ids"]
        and known[-1] == len(shifted["input_ids"]) - 1
    )


def test_the_peers_find_the_tags_that_our_viterbi_finds():
    torch.manual_seed(0)
    counts = [1, 7, 12, 2, 30]
    scores = torch.randn(sum(counts), len(TAGS)).log_softmax(1)
    best = best_sequences(scores, counts, TAGS).split(counts)
    for words, indices in zip(scores.split(counts), best, strict=True):
        assert trainer_job.best_tags(words.numpy(), TAGS) == [TAGS[i] for i in indices]


def test_equal_predictions_have_equal_scores(tiny_folder):
    """Their precision, recall and f1, by seqeval, are ours."""
    job = user_job("ner", tiny_folder)
    torch.manual_seed(0)
    rows = job.rows["test"][:30]
    gold = [[TAGS.index(tag) for tag in row["tags"]] for row in rows]
    longest = max(map(len, gold))
    labels = np.array([row + [NO_TARGET] * (longest - len(row)) for row in gold])
    logits = torch.randn(30, longest, len(TAGS)).numpy()
    for row, indices in zip(logits, gold, strict=True):  # half of the words are right
        row[np.arange(0, len(indices), 2), indices[::2]] += 9
    decoder = trainer_job.Decoder(job)
    scores = decoder(trainer_job.EvalPrediction(logits, labels))
    ours = entity_scores([row["tags"] for row in rows], decoder.predicted)
    assert 0.1 < ours["f1"] < 0.9
    assert scores == pytest.approx({name: ours[name] for name in scores})


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_the_careful_loss_and_labels_are_those_of_the_plain_script(tiny_folder, task):
    """The careful script computes fewer logits; it must not compute something else."""
    job = user_job(task, tiny_folder)
    model, examples = job.model().eval(), job.examples("test")[:6]
    careful = trainer_careful.Collator(0)(examples)
    plain = trainer_careful.Collator(0)(trainer_plain.shifted(job, examples))
    output = model(**plain)
    trainer = trainer_careful.CarefulTrainer.__new__(trainer_careful.CarefulTrainer)
    trainer.answers = torch.tensor([answer[0] for answer in job.answers])
    loss, reduced = trainer.compute_loss(model, careful, return_outputs=True)
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    expected, found = output.logits, reduced["logits"]
    if task == "sentiment":
        expected = trainer_plain.best_label(job)(output.logits, plain["labels"])
    torch.testing.assert_close(found, expected)


# ---- What is compared


def side(work=7, before=("neutral",) * 189, after=None, cpu=2.0) -> Side:
    gold = [row["label"] for row in trainer_job.load_splits(get_task("sentiment"), "sample").test]
    predicted = {"before": {"test": list(before)}, "after": {"test": after or gold}}
    return Side(4 * cpu, cpu, 100, {"steps": work}, predicted)


def test_sides_that_do_other_work_or_score_differently_do_not_agree():
    task = get_task("sentiment")
    wrong = ["negative"] * 189
    for theirs, agrees in (
        (side(), True),
        (side(work=8), False),
        (side(before=("neutral",) * 180 + ("negative",) * 9), False),
        (side(after=wrong), False),
    ):
        assert agreement(task, [side()], [theirs])["agrees"] is agrees


def test_a_line_has_the_median_of_the_ratios_and_the_worse_end_decides():
    ours = [side(cpu=1.0), side(cpu=1.0), side(cpu=2.0)]
    theirs = [side(cpu=2.0), side(cpu=3.0), side(cpu=20.0)]
    wall, cpu, memory = compared("sentiment", "careful", ours, theirs)
    assert [wall[name] for name in ("ratio", "ratio_min", "ratio_max")] == [3, 2, 10]
    assert cpu["ratio"] == 3 and cpu["peers_seconds"] == 3 and memory["ratio"] == 1
    assert peers.met(wall) == "no" and peers.met(wall | {"ratio_min": 2.5}) == "yes"
    assert peers.met(memory) == "no" and peers.met(memory | {"ratio_max": 0.6}) == "yes"
    assert "0.000" in wall["note"]


def test_the_memory_of_a_command_is_its_own_and_not_that_of_the_process_that_measures(tmp_path):
    ballast = np.ones(40_000_000)  # 320 MB here
    file = tmp_path / "taken"
    code = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    measured = [sys.executable, "-m", "benchmarks.process", file, sys.executable, "-c", code]
    subprocess.run(measured, check=True, cwd=command.ROOT)
    taken = json.loads(file.read_text())
    assert ballast.nbytes > 320e6 - 1 and 3e6 < taken["memory"] < 100e6
    assert 0.3 <= taken["cpu"] <= taken["wall"] + 0.1


@pytest.mark.slow
def test_all_three_sides_do_the_same_work(tiny_folder):
    """The same steps, tokens and scored rows, and the same predictions before tuning."""
    at = {"pairs": 1, "epochs": 1, "model": str(tiny_folder)}
    lines = command.command("sentiment", at)
    assert [line["measure"] for line in lines] == [
        f"sentiment {measure}" for _ in "ab" for measure in ("wall", "cpu", "memory")
    ]
    for line in (lines[0], lines[3]):
        assert line["same_work"] and line["same_before"] > 0.95
        assert line["work"]["epochs_scored"] == 1 and line["work"]["steps"] > 20


def test_the_json_begins_with_the_ratio_of_ner_and_the_model_is_the_bundled_one(
    monkeypatch, tmp_path, capsys
):
    given = []

    def run_side(name, task, folder, seed, at):
        given.append((name, task, seed, at["epochs"]))
        predicted = side().predicted if task == "sentiment" else tagged
        return Side({"ours": 1.0, "careful": 2.6, "plain": 4.0}[name], 1.0, 1, {}, predicted)

    rows = trainer_job.load_splits(get_task("ner"), "sample").test
    tags = {"test": [row["tags"] for row in rows]}
    tagged = {"before": tags, "after": tags}
    monkeypatch.setattr(command, "run_side", run_side)
    monkeypatch.setattr(command, "warm_up", lambda at: None)
    monkeypatch.setattr(peers, "RECORDS", tmp_path)
    peers.main(["--job", "command", "--shape", "1.3b", "--epochs", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)["command"]
    assert next(iter(printed.items())) == ("ratio", 2.6)
    assert [name for name, *_ in given[:6]] == ["ours", "careful", "plain"] * 2
    assert [seed for _, _, seed, _ in given[:6]] == [0, 0, 0, 1, 1, 1] and len(given) == 12
    assert (tmp_path / "command-neo-mini-fp32-cpu.json").exists()
