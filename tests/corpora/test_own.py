"""Your own rows: labels that no built-in task has, and bad rows."""

import json

import pytest
from own_files import WEEK, pair_rows, tag_rows, week_rows, write_rows

from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.runs.generation import match_label
from neo_peft.settings import make_settings, task_of, with_labels
from neo_peft.tasks import TASKS, get_task

TAGGING, CLASSIFICATION, PAIRS = TASKS["tagging"], TASKS["classification"], TASKS["pairs"]


def test_labels_are_in_the_order_of_their_first_use_in_train(tmp_path):
    splits = load_splits(
        CLASSIFICATION, str(write_rows(tmp_path, train=week_rows(30), validation=week_rows(3)))
    )
    assert splits.labels == WEEK[::-1]
    assert (
        splits.test is None and splits.train == week_rows(30) and splits.validation == week_rows(3)
    )
    assert load_splits(CLASSIFICATION, str(tmp_path), labels=WEEK).labels == WEEK


def test_tags_are_o_and_then_b_and_i_of_each_type(tmp_path):
    splits = load_splits(TAGGING, str(write_rows(tmp_path, train=tag_rows(12), test=tag_rows(3))))
    assert splits.labels == ("O", "B-drug", "I-drug", "B-gene", "I-gene", "B-dose", "I-dose")
    assert splits.test == [{"tokens": row["tokens"], "tags": row["tags"]} for row in tag_rows(3)]
    assert splits.notes == ("3 of the 3 test sentences are also in train (11 sentences)",)


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
    ): "expected in 'label' a text or a whole number",
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
        match=r"test.jsonl, line 3: unknown label 'holiday'; expected one of sunday, sat",
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
