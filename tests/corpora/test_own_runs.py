"""Your own rows in the commands: train on train.jsonl, evaluate the run, predict with it."""

import json
from pathlib import Path

import pytest
from own_files import WEEK, pair_rows, tag_rows, week_rows, write_rows

import evaluate
import train
from neo_peft.commands import predict
from neo_peft.corpora.sources import load_splits
from neo_peft.runs import loading
from neo_peft.runs.folder import write_record
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS


def main(script, argv) -> int:
    try:
        return exit_status(lambda: script.main([str(word) for word in argv]))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"task": "tagging"},
            "--data sample has no data for tagging; give a file with your own rows, or a folder",
        ),
        (
            {"task": "tagging", "data": "hub"},
            "--data hub has no data for tagging; give a file with your own rows, or a",
        ),
        (
            {"task": "ner", "labels": "O,B-x,I-x"},
            "--labels is only for your own rows; the labels of ner",
        ),
        (
            {"task": "classification", "preset": "paper"},
            "--preset paper has no recipe for classification; it has recipes",
        ),
        (
            {"task": "classification", "label_words": "no,yes"},
            "one word for each of the 7 labels is needed, in",
        ),
        (
            {"task": "classification", "label_words": "a,b,c,d,e,f,F"},
            "tuesday and wednesday have the same label words 'f'; give",
        ),
        (
            {"task": "classification", "labels": ",".join([*WEEK, "sunday"])},
            "sunday, sunday contain a label twice; name each",
        ),
        (
            {"task": "classification", "data": "nowhere"},
            "--data nowhere: there is no such file or folder; --data can",
        ),
        ({"task": "classification", "adapter": ""}, "--adapter is empty"),
        (
            {"task": "tagging", "label_words": "no,yes"},
            "--label-words belongs to classification tasks; tagging",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, given, message):
    rows = tag_rows(20) if given["task"] == "tagging" else week_rows(20)
    given = {"method": "lora"} | given
    if {"label_words", "preset"} & given.keys() or given.get("labels", "").startswith("monday"):
        given = {"data": str(write_rows(tmp_path / "own", train=rows))} | given
    argv = [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert main(train, argv) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_spaces_around_a_label_are_removed_and_a_label_can_have_a_comma(tmp_path, tiny_folder):
    texts = ["bad , very", " bad , very ", "größer"] * 10
    rows = [{"sentence": f"s {i}", "label": label} for i, label in enumerate(texts)]
    data = write_rows(tmp_path / "mine", train=rows)
    assert load_splits(TASKS["classification"], str(data)).labels == ("bad , very", "größer")
    argv = [
        "--task",
        "classification",
        "--method",
        "prompt",
        "--data",
        data,
        "--model",
        tiny_folder,
        "--max-steps",
        1,
    ]
    assert main(train, [*argv, "--threads", 1]) == 0
    assert loading.load("runs/classification-prompt").encoder.task.labels == (
        "bad , very",
        "größer",
    )


@pytest.mark.parametrize(
    "task, method, rows, labels",
    [
        ("classification", "lora", week_rows(42), tuple(sorted(WEEK))),
        ("classification", "head", week_rows(42), tuple(sorted(WEEK))),
        ("pairs", "prompt", pair_rows(40), ("0", "1")),
        ("similarity", "full", pair_rows(40), ("0", "1")),
        (
            "tagging",
            "lora",
            tag_rows(40),
            ("O", "B-dose", "I-dose", "B-drug", "I-drug", "B-gene", "I-gene"),
        ),
        (
            "ner",
            "lora+prompt",
            tag_rows(40),
            ("O", "B-dose", "I-dose", "B-drug", "I-drug", "B-gene", "I-gene"),
        ),
    ],
)
def test_train_evaluate_and_predict_work_with_own_rows(
    tmp_path, tiny_folder, capsys, task, method, rows, labels
):
    data = write_rows(tmp_path / "mine", train=rows)
    if task != "pairs":
        write_rows(data, test=rows[:9])
    small = ["--model", tiny_folder, "--epochs", 1, "--threads", 1]
    assert main(train, ["--task", task, "--method", method, "--data", data, "--json", *small]) == 0
    summary = json.loads(capsys.readouterr().out)
    record = json.loads(Path(summary["run"], "run.json").read_text())
    assert record["labels"] == list(labels) == record["flags"]["labels"]
    assert record["protocol"] == "single"
    assert set(record["scores"]["after"]["validation"]["per_label"]) <= {
        label.removeprefix("B-") for label in labels
    }

    has_test = task != "pairs"
    assert (summary["after"]["test"] is None) == (not has_test)
    assert main(evaluate, [summary["run"], "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    split = "test" if has_test else "validation"
    assert evaluated["split"] == split
    assert evaluated["scores"] | {"per_label": evaluated["per_label"]} == summary["after"][split]

    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    assert main(predict, ["--run", summary["run"], "--file", "new.jsonl", "--jsonl"]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tuned = loading.load(summary["run"])
    assert tuned.encoder.task.labels == labels
    if task in ("tagging", "ner"):
        assert all(set(line["predicted"]) <= set(labels) for line in predictions)
        assert tuned.model.head.weight.shape == (7, 24)
    else:
        assert [list(line["probabilities"]) for line in predictions] == [list(labels)] * 3


def test_the_model_predicts_the_label_words(tmp_path, tiny_folder, capsys):
    data = write_rows(tmp_path / "mine", train=pair_rows(40), test=pair_rows(4))
    argv = [
        "--task",
        "pairs",
        "--method",
        "prompt",
        "--data",
        data,
        "--model",
        tiny_folder,
        "--max-steps",
        1,
    ]
    assert main(train, [*argv, "--threads", 1]) == 0
    assert (
        "the labels 0, 1 are not words; give each a word with --label-words"
        in capsys.readouterr().out
    )
    assert main(train, [*argv, "--threads", 1, "--label-words", "no,yes"]) == 0
    assert "no words" not in capsys.readouterr().out
    tuned = loading.load("runs/pairs-prompt-2")
    tokenizer, task = tuned.encoder.tokenizer, tuned.encoder.task
    assert tuned.encoder.label_tokens == {
        label: [*tokenizer.encode(word, add_special_tokens=False), 0]
        for label, word in (("0", " no"), ("1", " yes"))
    }
    assert (
        task.labels == ("0", "1")
        and task.instruction == "Classify if the two sentences are no, yes:\n"
    )
    assert main(evaluate, ["runs/pairs-prompt-2", "--show", 1, "--json"]) == 0
    assert "<0> <" in capsys.readouterr().err  # the labels are printed, not their words


def test_an_untuned_base_model_predicts_own_rows(tmp_path, tiny_folder, capsys):
    data = write_rows(tmp_path / "mine", train=week_rows(40), test=week_rows(7))
    argv = [
        "--task",
        "classification",
        "--model",
        tiny_folder,
        "--data",
        data,
        "--zero-shot",
        "--json",
    ]
    assert main(evaluate, argv) == 0
    assert list(json.loads(capsys.readouterr().out)["per_label"]) == sorted(WEEK)


def test_a_run_can_be_scored_from_any_folder_and_keeps_its_label_words(
    tmp_path, tiny_folder, capsys, monkeypatch
):
    write_rows(tmp_path / "mine", train=pair_rows(40), test=pair_rows(4))
    argv = [
        "--task",
        "pairs",
        "--method",
        "prompt",
        "--data",
        "mine",
        "--model",
        tiny_folder,
        "--max-steps",
        1,
    ]
    assert main(train, [*argv, "--threads", 1, "--label-words", "no,yes", "--out", "run"]) == 0
    run = tmp_path / "run"
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert main(evaluate, [run, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert main(evaluate, [run, "--label-words", "yes,no"]) == 2
    assert "was trained with the label words no, yes" in capsys.readouterr().err
    for name in ("run.json", "settings.json"):  # peft writes neither
        (run / name).unlink()
    flags = [
        "--task",
        "pairs",
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "mine",
        "--label-words",
        "no,yes",
    ]
    assert main(evaluate, [run, *flags, "--json"]) == 0  # --data gives the labels
    assert json.loads(capsys.readouterr().out) == scored


def test_an_adapter_made_by_peft_takes_its_labels_from_the_flag(tmp_path, tiny_folder, capsys):
    data = write_rows(tmp_path / "mine", train=tag_rows(40), test=tag_rows(4))
    argv = [
        "--task",
        "tagging",
        "--method",
        "lora",
        "--data",
        data,
        "--model",
        tiny_folder,
        "--max-steps",
        1,
    ]
    assert main(train, [*argv, "--threads", 1]) == 0
    run = Path("runs/tagging-lora")
    labels = json.loads((run / "run.json").read_text())["labels"]
    assert main(evaluate, [run, "--labels", "O,B-x,I-x"]) == 2
    assert "was trained for the labels O, B-dose, I-dose, B-drug" in capsys.readouterr().err
    scored = []
    for flags in (
        [],
        ["--task", "tagging", "--model", tiny_folder, "--labels", ",".join(labels), "--data", data],
    ):
        assert main(evaluate, [run, *flags, "--json"]) == 0
        scored.append(json.loads(capsys.readouterr().out))
        for file in ("run.json", "settings.json"):  # peft writes neither
            (run / file).unlink(missing_ok=True)
    assert scored[0] == scored[1]
    (run / "metrics.jsonl").unlink()
    assert main(evaluate, [run, "--task", "tagging", "--model", tiny_folder]) == 2
    assert (
        "tagging has no labels of its own: give your own rows with --data, or labels with "
        "--labels" in capsys.readouterr().err
    )


SMALL = ["--max-steps", 1, "--threads", 1]


@pytest.fixture
def yes_no_run(tmp_path, tiny_folder, capsys) -> tuple[Path, str]:
    """Return a run on rows whose labels are 1, 0, 1, 0, …, and what it printed."""
    rows = [{"sentence": f"s {i}", "label": (i + 1) % 2} for i in range(60)]
    data = write_rows(tmp_path / "mine", train=rows, test=rows[:5])
    argv = ["--task", "classification", "--method", "lora", "--model", tiny_folder, *SMALL]
    argv += ["--data", data, "--label-words", "no,yes", "--eval-limit", 3, "--out", "run"]
    assert main(train, argv) == 0
    return tmp_path / "run", capsys.readouterr().out


def test_label_words_belong_to_the_labels_in_their_order_whatever_row_is_first(yes_no_run):
    run, out = yes_no_run
    assert 'labels  0 as "no", 1 as "yes": predicted as these texts; 1 is the positive one\n' in out
    encoder = loading.load(run).encoder
    for label, word in {"0": " no", "1": " yes"}.items():
        words = encoder.tokenizer.encode(word, add_special_tokens=False)
        assert encoder.label_tokens[label][: len(words)] == words


def test_evaluate_scores_a_folder_that_has_a_test_file_alone(yes_no_run, tmp_path, capsys):
    run, _ = yes_no_run
    rows = [{"sentence": f"new {i}", "label": 1} for i in range(7)]
    data = write_rows(tmp_path / "new", test=rows)
    assert main(evaluate, [run, "--data", data]) == 0
    out = capsys.readouterr().out
    assert "classification, 3 rows of test from" in out  # the recorded limit
    assert ", f1 of 1 " in out
    assert main(evaluate, [run, "--data", data, "--eval-limit", "all", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scores"]["total"] == 7 and "f1" in record["scores"]
    (data / "train.jsonl").write_text("broken")
    assert main(evaluate, [run, "--data", data, "--eval-limit", "all"]) == 0
    assert main(evaluate, [run, "--eval-limit", "some"]) == 2
    assert "some is not a whole number of at least 1; or use all" in capsys.readouterr().err


def test_a_run_keeps_its_recorded_labels(yes_no_run, capsys):
    """A run from before labels had today's order has another order in its run.json."""
    run, _ = yes_no_run
    record = json.loads((run / "run.json").read_text())
    record["labels"] = record["flags"]["labels"] = ["1", "0"]
    del record["sha256"]
    write_record(run, record)
    assert loading.load(run).encoder.task.labels == ("1", "0")
    assert main(evaluate, [run]) == 0
    assert ", f1 of 0 " in capsys.readouterr().out


def test_labels_that_are_taken_from_train_without_a_run_are_noted(tmp_path, tiny_folder, capsys):
    data = write_rows(tmp_path / "mine", train=tag_rows(40), test=tag_rows(4))
    argv = ["--task", "tagging", "--model", tiny_folder, "--data", data]
    assert main(evaluate, argv) == 0
    assert (
        "note    the labels are taken from train, in the order O, B-dose, I-dose, B-drug, I-drug, "
        "B-gene, I-gene; --labels names another order" in capsys.readouterr().out
    )
    (data / "train.jsonl").unlink()
    assert main(evaluate, argv) == 2
    assert "give your own rows with --data, or labels with --labels" in capsys.readouterr().err
    assert main(evaluate, [*argv, "--labels", "drug,gene,dose", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["per_label"]) <= {"drug", "gene", "dose"}


def test_a_run_with_types_has_their_tags_and_can_be_named_with_the_types(
    tmp_path, tiny_folder, capsys
):
    data = write_rows(tmp_path / "mine", train=tag_rows(40), test=tag_rows(4))
    argv = ["--task", "tagging", "--method", "lora", "--data", data, "--model", tiny_folder, *SMALL]
    assert main(train, [*argv, "--labels", "gene,dose,drug,RNA", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "labels  O, B-gene, I-gene, B-dose, I-dose, B-drug, I-drug, B-RNA, I-RNA: classes" in out
    assert "no training row has the entity type RNA: the model cannot learn it" in out
    assert main(evaluate, ["run", "--labels", "gene,dose,drug,RNA"]) == 0
    assert main(evaluate, ["run", "--labels", "dose,gene,drug,RNA"]) == 2


def test_columns_are_recorded_and_evaluate_and_resume_read_the_same(tmp_path, tiny_folder, capsys):
    text = "".join(f"Item {i} .;{WEEK[i % 7]};{i % 2}\n" for i in range(70))
    path = tmp_path / "own.csv"
    path.write_text("body;day;stars\n" + text)
    argv = ["--task", "classification", "--method", "lora", "--model", tiny_folder, *SMALL]
    argv += ["--data", path, "--columns", "text=body,label=stars", "--out", "run", "--json"]
    assert main(train, argv) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert 'data    own.csv: 70 rows; text from "body", label from "stars" (0, 1)\n' in err
    settings = json.loads(Path("run/settings.json").read_text())
    assert settings["columns"] == ["text=body", "label=stars"] and settings["data"] == str(path)
    assert main(evaluate, ["run", "--json"]) == 0
    out, err = capsys.readouterr()
    evaluated = json.loads(out)
    scores = evaluated["scores"] | {"per_label": evaluated["per_label"]}
    assert scores == summary["after"]["test"] and scores["total"] == 8
    assert 'data    own.csv: 70 rows; text from "body", label from "stars" (0, 1)\n' in err
    other = tmp_path / "new"
    other.mkdir()
    (other / "test.tsv").write_text("said\tright\nItem 1 .\t1\n")
    assert main(evaluate, ["run", "--data", other]) == 2
    assert "test.tsv, line 1: --columns names 'body' for the text" in capsys.readouterr().err
    argv = ["run", "--data", other, "--columns", "text=said,label=right", "--json"]
    assert main(evaluate, argv) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["total"] == 1
