"""Your own rows: labels that no built-in task has, and bad rows."""

import json

import pytest
from own_files import WEEK, pair_rows, tag_rows, week_rows, write_rows

from neo_peft.corpora.sources import load_scored, load_splits
from neo_peft.errors import InputError
from neo_peft.runs.generation import match_label
from neo_peft.settings import make_settings, task_of, with_labels
from neo_peft.tasks import TASKS, get_task

TAGGING, CLASSIFICATION, PAIRS = TASKS["tagging"], TASKS["classification"], TASKS["pairs"]


def test_own_rows_are_read_and_labels_can_be_given_in_another_order(tmp_path):
    splits = load_splits(
        CLASSIFICATION, str(write_rows(tmp_path, train=week_rows(30), validation=week_rows(3)))
    )
    assert (
        splits.test is None and splits.train == week_rows(30) and splits.validation == week_rows(3)
    )
    assert splits.labels == (
        *("friday", "monday", "saturday", "sunday", "thursday", "tuesday", "wednesday"),
    )
    assert load_splits(CLASSIFICATION, str(tmp_path), labels=WEEK).labels == WEEK


@pytest.mark.parametrize(
    "given, ordered",
    [
        ([1, 0], ("0", "1")),
        (["1", "0"], ("0", "1")),
        ([10, 9, -1, 0], ("-1", "0", "9", "10")),
        (["yes", "no"], ("no", "yes")),
        (["b", "B", "a"], ("B", "a", "b")),
        (["x10", "x9"], ("x10", "x9")),  # no numbers
        (["other", 2, 10], ("2", "10", "other")),
        (["1" * 20, "3"], ("3", "1" * 20)),
    ],
)
def test_labels_are_ordered_whole_numbers_by_value_and_others_by_name(tmp_path, given, ordered):
    rows = [{"sentence": f"s {i}", "label": given[i % len(given)]} for i in range(60)]
    for name, order in {"given": rows, "reversed": rows[::-1]}.items():
        data = str(write_rows(tmp_path / name, train=order))
        assert load_splits(CLASSIFICATION, data).labels == ordered


def test_labels_of_the_task_itself_have_its_order(tmp_path):
    """So a head, and "the positive label", mean the same as on the task's own data."""
    given = ["not equivalent", "equivalent"]
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "label": given[i % 2]} for i in range(40)]
    data = str(write_rows(tmp_path, train=rows))
    assert load_splits(TASKS["similarity"], data).labels == ("not equivalent", "equivalent")
    assert load_splits(TASKS["pairs"], data).labels == ("equivalent", "not equivalent")


def test_tags_are_o_and_then_b_and_i_of_each_type(tmp_path):
    splits = load_splits(TAGGING, str(write_rows(tmp_path, train=tag_rows(12), test=tag_rows(3))))
    assert splits.labels == ("O", "B-dose", "I-dose", "B-drug", "I-drug", "B-gene", "I-gene")
    assert splits.test == [{"tokens": row["tokens"], "tags": row["tags"]} for row in tag_rows(3)]
    assert splits.notes == (
        "there is no validation file: a tenth of train is validation, 1 of 12 rows, chosen by "
        "--seed 0",
        "3 of the 3 test sentences are also in train (11 sentences)",
    )


def test_texts_with_several_labels_in_train_are_counted(tmp_path):
    rows = [{"sentence": f"s {i % 18}", "label": "ab"[i % 2]} for i in range(36)]
    rows += [{"sentence": f"s {i}", "label": "b"} for i in (2, 4, 5)]
    note = "texts of train with different labels in different rows: 2"
    validation = [{"sentence": "t", "label": "a"}]
    splits = load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows, dev=validation)))
    assert note in splits.notes
    splits = load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows[:36])))
    assert not any("different labels" in note for note in splits.notes)


def test_a_split_without_a_file_is_named(tmp_path):
    rows = [{"sentence": f"s {i}", "label": "ab"[i % 2]} for i in range(36)]
    data, task = str(write_rows(tmp_path, test=rows)), with_labels(CLASSIFICATION, ("a", "b"))
    with pytest.raises(InputError, match="--split nosuch: the data has only test$"):
        load_scored(task, data, "clean", 0, None, "nosuch")
    with pytest.raises(InputError, match="--split validation: .*train.jsonl: there is no such"):
        load_scored(task, data, "clean", 0, None, "validation")


def test_types_stand_for_their_tags(tmp_path):
    data = str(write_rows(tmp_path, train=tag_rows(12)))
    types = ("gene", "drug", "dose")
    tags = ("O", "B-gene", "I-gene", "B-drug", "I-drug", "B-dose", "I-dose")
    assert load_splits(TAGGING, data, labels=types) == load_splits(TAGGING, data, labels=tags)
    assert load_splits(TAGGING, data, labels=types).labels == tags
    settings = make_settings(task="tagging", method="lora", labels="gene,drug,dose")
    assert task_of(settings) == with_labels(TAGGING, tags)


def test_whole_numbers_can_be_labels(tmp_path):
    splits = load_splits(
        PAIRS, str(write_rows(tmp_path, train=pair_rows(6), validation=pair_rows(2)))
    )
    assert splits.labels == ("0", "1")
    assert splits.train[1] == {"sentence1": "He has 1 .", "sentence2": "She has 2 .", "label": "1"}


@pytest.mark.parametrize("name", ["ner", "sentiment", "similarity"])
def test_specific_and_general_tasks_load_own_rows_alike(tmp_path, name):
    general, rows = {
        "ner": ("tagging", tag_rows(9)),
        "sentiment": ("classification", week_rows(20)),
        "similarity": ("pairs", pair_rows(9)),
    }[name]
    data = str(write_rows(tmp_path, train=rows))
    assert load_splits(TASKS[name], data) == load_splits(TASKS[general], data)
    settings = {"method": "lora", "labels": load_splits(TASKS[name], data).labels}
    specific_task, general_task = (
        task_of(make_settings(task=task, **settings)) for task in (name, general)
    )
    assert (specific_task.labels, specific_task.template, specific_task.instruction) == (
        general_task.labels,
        general_task.template,
        general_task.instruction,
    )


BAD_ROWS = {
    ("classification", '{"text": "a", "label": "b"}'): "expected a JSON object with 'sentence'",
    ("classification", '{"sentence": "a"}'): "the field 'label' is missing",
    ("classification", '{"sentence": " ", "label": "b"}'): "expected a JSON object with 'sentence'",
    (
        "classification",
        '{"sentence": "a", "label": 1.5}',
    ): "the label is 1.5; expected in 'label' a text or a whole number",
    ("classification", '{"sentence": "a", "label": true}'): "expected in 'label' a text",
    ("classification", '{"sentence": "a", "label": ""}'): "expected in 'label' a text",
    ("classification", '{"sentence": "a", "label": "b"'): "not JSON",
    (
        "classification",
        '{"sentence": "\\ud800 a", "label": "b"}',
    ): "expected a JSON object with 'sentence'",
    ("classification", '{"sentence": "a", "label": "\\udc00"}'): "expected in 'label' a text",
    (
        "tagging",
        '{"tokens": ["a", "\\ud800"], "tags": ["O", "O"]}',
    ): "expected a JSON object with 'tokens'",
    (
        "tagging",
        json.dumps({"tokens": [*"abcdef", "\xa0", ""], "tags": ["O"] * 8}),
    ): r"token 7 is '\xa0', empty or not valid text; expected a JSON object with 'tokens'",
    (
        "classification",
        json.dumps({"id": "x" * 50, "sentence": "a \ud83d", "label": "b"}),
    ): r"'sentence' is 'a \ud83d', empty or not valid text; expected a JSON object with 'sentence'",
    (
        "classification",
        '{"sentence": "a\tb", "label": "c"}',
    ): "not JSON: Invalid control character at character 16; expected a JSON object",
    (
        "classification",
        '{"sentence": "a", "label": "b", "label": "c"}',
    ): "the JSON object has the field 'label' twice; keep one of them",
    (
        "tagging",
        '{"tokens": ["a"], "tokens": ["b"], "tags": ["O"]}',
    ): "the JSON object has the field 'tokens' twice",
    ("classification", '["a", "b"]'): "expected a JSON object with 'sentence'",
    ("pairs", '{"sentence1": "a", "label": "b"}'): "expected a JSON object with 'sentence2'",
    (
        "tagging",
        '{"tokens": ["a", ""], "tags": ["O", "O"]}',
    ): "expected a JSON object with 'tokens'",
    ("tagging", '{"tokens": "a b", "tags": ["O", "O"]}'): "expected a JSON object with 'tokens'",
    ("tagging", '{"tokens": ["a", "b"], "tags": ["O"]}'): "a list with one tag for each token",
    (
        "tagging",
        '{"tokens": ["a"], "tags": ["X"]}',
    ): "tag 1 is 'X'; expected 'O', 'B-type' or 'I-type'",
    ("tagging", '{"tokens": ["a"], "tags": [3]}'): "tag 1 is 3; expected",
    (
        "tagging",
        '{"tokens": ["a", "b"], "tags": ["O", -100]}',
    ): "tag 2 is -100, which marks a word without a tag in other programs",
    (
        "classification",
        '{"sentence": "a", "label": -100}',
    ): "the label is -100, which marks a row without a label in other programs; leave the row out",
    ("pairs", '{"sentence1": "a", "sentence2": "b", "label": "-100"}'): "the label is -100, which",
    (
        "tagging",
        '{"tokens": ["a"], "tags": ["I-x"]}',
    ): "tag 1 is 'I-x', but no entity of that type comes before it; the first word",
    ("tagging", '{"tokens": ["a", "b"], "tags": ["O", "I-x"]}'): "tag 2 is 'I-x', but no",
    ("tagging", '{"tokens": ["a", "b"], "tags": ["B-x", "I-y"]}'): "tag 2 is 'I-y', but no",
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


def test_a_label_that_only_test_has_is_refused(tmp_path):
    other = [{"sentence": "on a holiday", "label": "holiday"}]
    data = write_rows(tmp_path, train=week_rows(20), test=week_rows(2) + other)
    with pytest.raises(
        InputError,
        match=r"test.jsonl, line 3: unknown label 'holiday'; expected one of friday, .*day: "
        "the labels of train, or those that --labels names when a model is trained",
    ):
        load_splits(CLASSIFICATION, str(data))
    with pytest.raises(
        InputError,
        match=r"train.jsonl, line 2: unknown label 'saturday'; expected one of sunday, x",
    ):
        load_splits(CLASSIFICATION, str(data), labels=("sunday", "x"))


def test_a_single_label_is_refused(tmp_path):
    rows = [{"sentence": f"s {i}", "label": "a"} for i in range(20)]
    with pytest.raises(
        InputError, match="train.jsonl: every label is a; expected at least two different labels"
    ):
        load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows)))


@pytest.mark.parametrize("labels", [("good", "good enough"), ("good enough", "good")])
def test_a_label_and_a_longer_label_that_starts_with_it_are_distinguished(labels):
    task = with_labels(CLASSIFICATION, labels)
    assert match_label(" good enough for", task) == "good enough"
    assert match_label(" Good for", task) == "good"


def test_an_empty_file_and_too_few_rows_are_refused(tmp_path):
    (write_rows(tmp_path / "a", train=week_rows(20)) / "test.jsonl").touch()
    with pytest.raises(InputError, match="test.jsonl: the file has no rows"):
        load_splits(CLASSIFICATION, str(tmp_path / "a"))
    with pytest.raises(InputError, match="too few rows, none remain for validation"):
        load_splits(CLASSIFICATION, str(write_rows(tmp_path / "b", train=week_rows(7))))


# ---- The files of the splits


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val"])
def test_the_validation_file_can_have_four_names(tmp_path, name):
    data = write_rows(tmp_path, train=week_rows(14), test=week_rows(3), **{name: week_rows(8)})
    splits = load_splits(CLASSIFICATION, str(data))
    assert (splits.train, splits.validation) == (week_rows(14), week_rows(8))
    assert splits.notes == (
        "8 of the 8 validation sentences are also in train (14 sentences)",
        "3 of the 3 test sentences are also in train (14 sentences)",
    )


def test_two_validation_files_are_refused_where_validation_is_needed(tmp_path):
    data = str(write_rows(tmp_path, train=week_rows(9), dev=week_rows(8), validation=week_rows(7)))
    message = "has validation.jsonl and dev.jsonl, and each is a name of the validation file; keep"
    with pytest.raises(InputError, match=message):
        load_splits(CLASSIFICATION, data)
    write_rows(tmp_path, test=week_rows(3))
    task = with_labels(CLASSIFICATION, WEEK)
    assert load_scored(task, data, "clean", 0, None)[1].test == week_rows(3)


def test_files_that_look_like_data_and_are_not_read_are_noted(tmp_path):
    data = write_rows(tmp_path, train=week_rows(30), dev=week_rows(8), dev_2=week_rows(8))
    for name in ("README.md", "notes.txt", "old.csv", "train.py", "Test.txt", "eval_1.json.gz"):
        (data / name).write_text("x")
    (data / "other.tsv").mkdir()
    splits = load_splits(CLASSIFICATION, str(data))
    assert splits.notes == (
        f"not read: Test.txt, dev_2.jsonl, eval_1.json.gz, old.csv in {data}; the files that are "
        "read are train.jsonl, validation.jsonl (or dev, valid, val) and test.jsonl",
        "8 of the 8 validation sentences are also in train (30 sentences)",
    )


# ---- Scoring a model


@pytest.mark.parametrize("train", [None, "a stub", "broken"])
def test_a_model_is_scored_on_a_test_file_alone(tmp_path, train):
    task, rows = with_labels(TAGGING, ("gene", "drug", "dose")), tag_rows(4)
    data = write_rows(tmp_path, test=rows)
    if train:
        write_rows(data, train=tag_rows(1) if train == "a stub" else [{"tokens": 3}])
    name, splits = load_scored(task, str(data), "clean", 0, None)
    assert name == "test"
    assert splits.test == [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]
    assert splits.labels == task.labels and splits.notes == ()


def test_a_model_is_scored_on_validation_without_a_test_file(tmp_path):
    task = with_labels(CLASSIFICATION, WEEK)
    data = str(write_rows(tmp_path / "with", train=week_rows(2), val=week_rows(5)))
    name, splits = load_scored(task, data, "clean", 0, None)
    assert (name, splits.validation, splits.train) == ("validation", week_rows(5), [])
    data = str(write_rows(tmp_path / "without", train=week_rows(140)))
    name, splits = load_scored(task, data, "clean", 3, None)
    expected = load_splits(CLASSIFICATION, data, seed=3)
    assert (name, splits.validation) == ("validation", expected.validation)
    assert load_scored(task, data, "clean", 3, None, "train")[1].train == expected.train


def test_rows_are_checked_against_the_labels_of_the_model_that_is_scored(tmp_path):
    data = str(write_rows(tmp_path, test=week_rows(7), train=week_rows(70)))
    with pytest.raises(
        InputError, match="test.jsonl, line 1: unknown label 'sunday'; expected one"
    ):
        load_scored(TASKS["sentiment"], data, "clean", 0, None)
    task = with_labels(TASKS["sentiment"], WEEK)
    assert load_scored(task, data, "clean", 0, WEEK)[1].test == week_rows(7)
    with pytest.raises(InputError, match="--labels is only for your own rows"):
        load_scored(task, "sample", "clean", 0, WEEK)
