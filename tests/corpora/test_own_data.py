"""A user's own rows: from train.jsonl to a run and its answers, with labels that no task here
knows."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

import evaluate
import train
from neo_peft.commands import predict
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.generation import match_label
from neo_peft.runs import loading
from neo_peft.settings import make_settings, task_of
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS, get_task

TAGGING, CLASSIFICATION, PAIRS = TASKS["tagging"], TASKS["classification"], TASKS["pairs"]
WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def write_rows(folder: Path, **splits: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def week_rows(count: int) -> list[dict]:
    return [
        {"sentence": f"We met on day {i % 7} of week {i} .", "label": WEEK[::-1][i % 7]}
        for i in range(count)
    ]


def pair_rows(count: int) -> list[dict]:
    return [
        {"sentence1": f"He has {i} .", "sentence2": f"She has {i + i % 2} .", "label": i % 2}
        for i in range(count)
    ]


def tag_rows(count: int) -> list[dict]:
    tagged = [("B-drug", "B-gene", "I-gene"), ("O", "B-dose", "I-dose"), ("B-gene", "O", "B-drug")]
    return [
        {"tokens": [f"a{i}", "binds", f"b{i}"], "tags": list(tagged[i % 3]), "id": i}
        for i in range(count)
    ]


def main(script, argv) -> int:
    try:
        return exit_status(lambda: script.main([str(word) for word in argv]))
    except SystemExit as stop:
        return stop.code


# ---- Rows and labels


def test_labels_stand_in_the_order_in_which_train_has_them(tmp_path):
    rows = load_splits(
        CLASSIFICATION, str(write_rows(tmp_path, train=week_rows(30), validation=week_rows(3)))
    )
    assert rows.labels == WEEK[::-1]
    assert rows.test is None and rows.train == week_rows(30) and rows.validation == week_rows(3)
    assert load_splits(CLASSIFICATION, str(tmp_path), labels=WEEK).labels == WEEK


def test_tags_are_o_and_then_b_and_i_of_each_type(tmp_path):
    splits = load_splits(TAGGING, str(write_rows(tmp_path, train=tag_rows(12), test=tag_rows(3))))
    assert splits.labels == ("O", "B-drug", "I-drug", "B-gene", "I-gene", "B-dose", "I-dose")
    assert splits.test == [{"tokens": row["tokens"], "tags": row["tags"]} for row in tag_rows(3)]
    assert splits.notes == ("3 of the 3 test sentences also stand in train (11 sentences)",)


def test_numbers_are_labels_too(tmp_path):
    splits = load_splits(
        PAIRS, str(write_rows(tmp_path, train=pair_rows(6), validation=pair_rows(2)))
    )
    assert splits.labels == ("0", "1")
    assert splits.train[1] == {"sentence1": "He has 1 .", "sentence2": "She has 2 .", "label": "1"}


def test_a_label_is_the_same_with_spaces_around_it_and_may_hold_what_separates_flags(
    tmp_path, tiny_folder
):
    texts = ["bad , very", " bad , very ", "größer"] * 10
    rows = [{"sentence": f"s {i}", "label": label} for i, label in enumerate(texts)]
    data = write_rows(tmp_path / "mine", train=rows)
    assert load_splits(CLASSIFICATION, str(data)).labels == ("bad , very", "größer")
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


@pytest.mark.parametrize("name", ["ner", "sentiment", "similarity"])
def test_the_plain_names_and_the_tasks_read_the_same_rows(tmp_path, name):
    plain, rows = {
        "ner": ("tagging", tag_rows(9)),
        "sentiment": ("classification", week_rows(20)),
        "similarity": ("pairs", pair_rows(9)),
    }[name]
    data = str(write_rows(tmp_path, train=rows))
    assert load_splits(TASKS[name], data) == load_splits(TASKS[plain], data)
    settings = {"method": "lora", "labels": load_splits(TASKS[name], data).labels}
    named, plainly = (task_of(make_settings(task=task, **settings)) for task in (name, plain))
    assert (named.labels, named.template, named.instruction) == (
        plainly.labels,
        plainly.template,
        plainly.instruction,
    )


def test_a_tenth_of_each_label_is_split_off_by_the_seed(tmp_path):
    rng = random.Random(0)
    rows = [{"sentence": f"s{i}", "label": rng.choices("abc", [60, 30, 10])[0]} for i in range(300)]
    rows += [{"sentence": "the only one", "label": "d"}]
    data = str(write_rows(tmp_path, train=rows))
    counts = Counter(row["label"] for row in rows)
    by_seed = [load_splits(CLASSIFICATION, data, seed=seed) for seed in (0, 0, 1)]
    for splits in by_seed:
        held = Counter(row["label"] for row in splits.validation)
        assert held == {label: round(count / 10) for label, count in counts.items() if label != "d"}
        assert sorted(map(str, splits.train + splits.validation)) == sorted(map(str, rows))
        # in the order of the file
        assert splits.train == [row for row in rows if row not in splits.validation]
    assert by_seed[0] == by_seed[1] and by_seed[0].validation != by_seed[2].validation


def test_the_rows_of_one_text_go_one_way(tmp_path):
    rows = [{"sentence": f"s {i % 40}", "label": "ab"[i % 2]} for i in range(120)]
    splits = load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows)))
    train, validation = (
        {row["sentence"] for row in part} for part in (splits.train, splits.validation)
    )
    assert not train & validation and len(validation) == 4 and len(splits.validation) == 12


GOOD_TAGS = '{"tokens": ["a", "b"], "tags": ["B-x", "I-x"]}\n'
BAD_ROWS = {
    ("classification", '{"text": "a", "label": "b"}'): "expected a JSON object with 'sentence'",
    ("classification", '{"sentence": "a"}'): "the field 'label' is missing",
    ("classification", '{"sentence": " ", "label": "b"}'): "expected a JSON object with 'sentence'",
    (
        "classification",
        '{"sentence": "a", "label": 1.5}',
    ): "expected in 'label' a label: a text or a whole number",
    ("classification", '{"sentence": "a", "label": true}'): "expected in 'label' a label",
    ("classification", '{"sentence": "a", "label": ""}'): "expected in 'label' a label",
    ("classification", '{"sentence": "a", "label": "b"'): "no JSON",
    (
        "classification",
        '{"sentence": "\\ud800 a", "label": "b"}',
    ): "expected a JSON object with 'sentence'",
    ("classification", '{"sentence": "a", "label": "\\udc00"}'): "expected in 'label' a label",
    (
        "tagging",
        '{"tokens": ["a", "\\ud800"], "tags": ["O", "O"]}',
    ): "expected a JSON object with 'tokens'",
    ("classification", '["a", "b"]'): "expected a JSON object with 'sentence'",
    ("pairs", '{"sentence1": "a", "label": "b"}'): "expected a JSON object with 'sentence2'",
    (
        "tagging",
        '{"tokens": ["a", ""], "tags": ["O", "O"]}',
    ): "expected a JSON object with 'tokens'",
    ("tagging", '{"tokens": "a b", "tags": ["O", "O"]}'): "expected a JSON object with 'tokens'",
    (
        "tagging",
        '{"tokens": ["a", "b"], "tags": ["O"]}',
    ): "a list of one tag for each of the tokens",
    (
        "tagging",
        '{"tokens": ["a"], "tags": ["X"]}',
    ): "tag 1 is 'X'; expected 'O', 'B-type' or 'I-type'",
    ("tagging", '{"tokens": ["a"], "tags": [3]}'): "tag 1 is 3; expected",
    (
        "tagging",
        '{"tokens": ["a"], "tags": ["I-x"]}',
    ): "tag 1, 'I-x', continues nothing; the first word of an entity",
    ("tagging", '{"tokens": ["a", "b"], "tags": ["O", "I-x"]}'): "tag 2, 'I-x', continues nothing",
    (
        "tagging",
        '{"tokens": ["a", "b"], "tags": ["B-x", "I-y"]}',
    ): "tag 2, 'I-y', continues nothing",
}


@pytest.mark.parametrize("task, line", BAD_ROWS)
def test_a_bad_row_is_refused_at_its_line(tmp_path, task, line):
    good = {"classification": week_rows(1), "pairs": pair_rows(1), "tagging": tag_rows(1)}[task]
    path = write_rows(tmp_path, train=good) / "train.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError) as refused:
        load_splits(get_task(task), str(tmp_path))
    assert str(refused.value).startswith(f"{path}, line 2: ") and BAD_ROWS[task, line] in str(
        refused.value
    )


def test_a_label_that_only_test_holds_is_refused(tmp_path):
    other = [{"sentence": "on a holiday", "label": "holiday"}]
    data = write_rows(tmp_path, train=week_rows(20), test=week_rows(2) + other)
    with pytest.raises(
        InputError,
        match=r"test.jsonl, line 3: unknown label 'holiday'; expected one of sunday, sat",
    ):
        load_splits(CLASSIFICATION, str(data))
    with pytest.raises(
        InputError,
        match=r"train.jsonl, line 2: unknown label 'saturday'; expected one of sunday, x",
    ):
        load_splits(CLASSIFICATION, str(data), labels=("sunday", "x"))


def test_one_label_alone_is_refused(tmp_path):
    rows = [{"sentence": f"s {i}", "label": "a"} for i in range(20)]
    with pytest.raises(
        InputError, match="train.jsonl: every label is a; there is nothing to tell apart"
    ):
        load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows)))


def test_many_labels_are_not_listed_in_front_of_every_text():
    few, many = (tuple(f"label {i}" for i in range(count)) for count in (7, 70))
    instructions = [CLASSIFICATION.with_labels(labels).instruction for labels in (few, many)]
    assert instructions == [
        f"Classify if the sentence is {', '.join(few)}:\n",
        "Classify the sentence:\n",
    ]
    with pytest.raises(
        InputError, match="the labels good and Good are both said 'good'; --label-words gives each"
    ):
        CLASSIFICATION.with_labels(("good", "Good"))
    assert (
        CLASSIFICATION.with_labels(("good", "Good"), ("fine", "great")).answer("Good") == " great"
    )


@pytest.mark.parametrize("labels", [("good", "good enough"), ("good enough", "good")])
def test_a_label_that_begins_another_is_told_from_it(labels):
    task = CLASSIFICATION.with_labels(labels)
    assert match_label(" good enough for", task) == "good enough"
    assert match_label(" Good for", task) == "good"


def test_an_empty_file_and_too_few_rows_are_refused(tmp_path):
    (write_rows(tmp_path / "a", train=week_rows(20)) / "test.jsonl").touch()
    with pytest.raises(InputError, match="test.jsonl: the file holds no rows"):
        load_splits(CLASSIFICATION, str(tmp_path / "a"))
    with pytest.raises(InputError, match="too few rows, none is left for validation"):
        load_splits(CLASSIFICATION, str(write_rows(tmp_path / "b", train=week_rows(7))))


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"task": "tagging"},
            "--data sample has nothing for tagging; name a folder with your own train.jsonl",
        ),
        (
            {"task": "tagging", "data": "hub"},
            "--data hub has nothing for tagging; name a folder with your own",
        ),
        (
            {"task": "ner", "labels": "O,B-x,I-x"},
            "--labels belongs to rows of your own, in train.jsonl; those of ner",
        ),
        (
            {"task": "classification", "preset": "paper"},
            "--preset paper has no recipe for classification; it has those",
        ),
        (
            {"task": "classification", "label_words": "no,yes"},
            "one word for each of the 7 labels is needed, in",
        ),
        (
            {"task": "classification", "label_words": "a,b,c,d,e,f,F"},
            "tuesday and monday are both said 'f'; --label-w",
        ),
        (
            {"task": "classification", "labels": ",".join([*WEEK, "sunday"])},
            "sunday, sunday hold one twice; name each",
        ),
        (
            {"task": "classification", "data": "nowhere"},
            "--data nowhere: there is no such folder; --data may",
        ),
        ({"task": "classification", "adapter": ""}, "--adapter is empty"),
        (
            {"task": "tagging", "label_words": "no,yes"},
            "--label-words belongs to tasks whose answer is said; tagging",
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


# ---- To the end


@pytest.mark.parametrize(
    "task, method, rows, labels",
    [
        ("classification", "lora", week_rows(42), WEEK[::-1]),
        ("classification", "head", week_rows(42), WEEK[::-1]),
        ("pairs", "prompt", pair_rows(40), ("0", "1")),
        ("similarity", "full", pair_rows(40), ("0", "1")),
        (
            "tagging",
            "lora",
            tag_rows(40),
            ("O", "B-drug", "I-drug", "B-gene", "I-gene", "B-dose", "I-dose"),
        ),
        (
            "ner",
            "lora+prompt",
            tag_rows(40),
            ("O", "B-drug", "I-drug", "B-gene", "I-gene", "B-dose", "I-dose"),
        ),
    ],
)
def test_own_rows_are_trained_scored_and_predicted(
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
    again = json.loads(capsys.readouterr().out)
    split = "test" if has_test else "validation"
    assert again["split"] == split
    assert again["scores"] | {"per_label": again["per_label"]} == summary["after"][split]

    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    assert main(predict, ["--run", summary["run"], "--file", "new.jsonl", "--jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = loading.load(summary["run"])
    assert found.encoder.task.labels == labels
    if task in ("tagging", "ner"):
        assert all(set(answer["predicted"]) <= set(labels) for answer in answers)
        assert found.model.head.weight.shape == (7, 24)
    else:
        assert [list(answer["probabilities"]) for answer in answers] == [list(labels)] * 3


def test_label_words_are_what_the_model_says(tmp_path, tiny_folder, capsys):
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
        "the labels 0, 1 are no words; --label-words gives each its own" in capsys.readouterr().out
    )
    assert main(train, [*argv, "--threads", 1, "--label-words", "no,yes"]) == 0
    assert "no words" not in capsys.readouterr().out
    tuned = loading.load("runs/pairs-prompt-2")
    tokenizer, task = tuned.encoder.tokenizer, tuned.encoder.task
    assert tuned.encoder.answers == {
        label: [*tokenizer.encode(word, add_special_tokens=False), 0]
        for label, word in (("0", " no"), ("1", " yes"))
    }
    assert (
        task.labels == ("0", "1")
        and task.instruction == "Classify if the two sentences are no, yes:\n"
    )
    assert main(evaluate, ["runs/pairs-prompt-2", "--show", 1, "--json"]) == 0
    assert "<0> <" in capsys.readouterr().err  # labels are shown, words are said


def test_a_bare_model_answers_own_rows(tmp_path, tiny_folder, capsys):
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
    assert list(json.loads(capsys.readouterr().out)["per_label"]) == list(WEEK[::-1])


def test_a_run_is_scored_again_from_any_folder_and_its_words_are_kept(
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
    assert "was trained with the label words ('no', 'yes')" in capsys.readouterr().err
    for name in ("run.json", "settings.json"):  # what is left is what peft would have written
        (run / name).unlink()
    named = [
        "--task",
        "pairs",
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "mine",
        "--label-words",
        "no,yes",
    ]
    assert main(evaluate, [run, *named, "--json"]) == 0  # the labels are those of --data
    assert json.loads(capsys.readouterr().out) == scored


def test_an_adapter_of_pefts_own_takes_its_labels_from_the_flag(tmp_path, tiny_folder, capsys):
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
    assert "was trained for the labels O, B-drug, I-drug, B-gene" in capsys.readouterr().err
    scored = []
    for names in (
        [],
        ["--task", "tagging", "--model", tiny_folder, "--labels", ",".join(labels), "--data", data],
    ):
        assert main(evaluate, [run, *names, "--json"]) == 0
        scored.append(json.loads(capsys.readouterr().out))
        for file in ("run.json", "settings.json"):  # what is left is what peft would have written
            (run / file).unlink(missing_ok=True)
    assert scored[0] == scored[1]
    (run / "metrics.jsonl").unlink()
    assert main(evaluate, [run, "--task", "tagging", "--model", tiny_folder]) == 2
    assert (
        "the labels of tagging are your own rows': name --data with them, or --labels"
        in capsys.readouterr().err
    )
