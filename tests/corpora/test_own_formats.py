"""The same rows in every file format are the same rows; a single file is split into three."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_files import pair_rows, tag_rows, week_rows
from own_formats import TABLES, WORDS, write_as

from neo_peft.corpora.new_files import open_new
from neo_peft.corpora.sources import load_scored, load_splits
from neo_peft.errors import InputError
from neo_peft.settings import with_labels
from neo_peft.tasks import TASKS

NAMED = {"tagging": "ner", "classification": "sentiment", "pairs": "similarity"}


def rows_of(task: str) -> list[dict]:
    if task == "tagging":
        rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in tag_rows(40)]
        return [row | {"tokens": [*row["tokens"][:2], f"#{row['tokens'][2]}"]} for row in rows]
    rows = week_rows(84) if task == "classification" else pair_rows(40)
    odd = ' "quoted", with;marks | and\tothers '
    first, *_ = rows[0]
    return [
        row | {first: row[first] + odd * (i % 3), "label": f"{row['label']}"}
        for i, row in enumerate(rows)
    ]


CASES = [(task, suffix) for task in ("classification", "pairs") for suffix in TABLES]
CASES += [("tagging", suffix) for suffix in WORDS]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("task, suffix", CASES)
def test_the_same_rows_in_each_format_are_the_same_splits(tmp_path, task, suffix, named):
    rows, task = rows_of(task), TASKS[NAMED[task] if named else task]
    expected = load_splits(task, str(write_as(tmp_path / "rows.jsonl", rows)))
    assert expected.train + expected.validation + expected.test != [] and expected.read
    loaded = load_splits(task, str(write_as(tmp_path / f"own.{suffix}", rows)))
    assert loaded == expected
    folder = tmp_path / suffix
    folder.mkdir()
    for split, part in {"train": rows[:30], "devel": rows[30:36], "test": rows[36:]}.items():
        write_as(folder / f"{split}.{suffix}", part)
    splits = load_splits(task, str(folder), labels=expected.labels)
    assert (splits.train, splits.validation, splits.test) == (rows[:30], rows[30:36], rows[36:])
    assert [line.split(":")[0] for line in splits.read] == [
        f"{split}.{suffix}" for split in ("train", "devel", "test")
    ]


@pytest.mark.parametrize("task", NAMED)
def test_a_folder_of_save_to_disk_is_the_same_rows(tmp_path, task):
    rows = rows_of(task)
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one")
    parts = {"train": table.select(range(30)), "validation": table.select(range(30, 40))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    expected = load_splits(TASKS[task], str(write_as(tmp_path / "rows.jsonl", rows)))
    assert load_splits(TASKS[task], str(tmp_path / "one")) == expected
    splits = load_splits(TASKS[task], str(tmp_path / "parts"), labels=expected.labels)
    assert (splits.train, splits.validation, splits.test) == (rows[:30], rows[30:40], None)


def test_the_files_of_a_folder_can_have_different_formats(tmp_path):
    rows = rows_of("classification")
    write_as(tmp_path / "train.csv", rows[:70])
    write_as(tmp_path / "test.parquet", rows[70:])
    splits = load_splits(TASKS["classification"], str(tmp_path))
    assert len(splits.train) + len(splits.validation) == 70 and splits.test == rows[70:]
    assert "a tenth of train is validation, 7 of 70 rows" in splits.notes[0]
    write_as(tmp_path / "train.json", rows)
    with pytest.raises(InputError, match="has train.json and train.csv, and each is a name of the"):
        load_splits(TASKS["classification"], str(tmp_path))


# ---- One file


def test_one_file_is_split_by_the_seed_with_each_text_in_one_split(tmp_path):
    rows = [{"sentence": f"s {i % 200}", "label": "ab"[i % 200 >= 150]} for i in range(400)]
    path = str(write_as(tmp_path / "rows.csv", rows))
    splits, again, other = (
        load_splits(TASKS["classification"], path, seed=seed) for seed in (0, 0, 1)
    )
    for split, count in {"train": 160, "validation": 20, "test": 20}.items():
        part = splits.named()[split]
        texts = {row["sentence"] for row in part}
        assert len(part) == 2 * len(texts) == 2 * count
        assert sum(row["label"] == "b" for row in part) * 4 == len(part)
        assert part == [row for row in rows if row in part]  # in the order of the file
    assert splits == again and splits.test != other.test
    assert splits.notes[0] == (
        "the data is not split: a tenth of each label's texts is validation, another one test, "
        "chosen by --seed 0; to use all of a file, put it into a folder, as train, validation or "
        "test"
    )
    task = with_labels(TASKS["classification"], ("a", "b"))
    assert load_scored(task, path, "clean", 0, None)[1].test == splits.test
    assert load_scored(task, path, "clean", 0, None, "train")[1].train == splits.train


def test_a_label_with_few_texts_keeps_one_in_train(tmp_path):
    rows = [{"sentence": f"s {i}", "label": label} for i, label in enumerate("aabbbc" + "d" * 30)]
    splits = load_splits(TASKS["classification"], str(write_as(tmp_path / "rows.csv", rows)))
    counts = {
        label: [sum(row["label"] == label for row in part) for part in splits.named().values()]
        for label in "abcd"
    }
    assert counts == {"a": [1, 1, 0], "b": [1, 1, 1], "c": [1, 0, 0], "d": [24, 3, 3]}


def test_a_line_names_the_columns_and_the_labels(tmp_path):
    rows = [{"id": i, "body": f"text {i}", "stars": i % 5 + 1} for i in range(1200)]
    path = write_as(tmp_path / "reviews.csv", rows)
    columns = ("text=body", "label=stars")
    splits = load_splits(TASKS["classification"], str(path), columns=columns)
    expected = 'reviews.csv: 1,200 rows; text from "body", label from "stars" (1, 2, 3, 4, 5)'
    assert splits.read == (expected,)


# ---- Round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
TEXT = TEXT.filter(str.strip)
WORD = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXT, st.sampled_from("ab")), min_size=4, max_size=12))
@pytest.mark.parametrize("suffix", ["csv", "tsv", "json"])
def test_texts_of_any_characters_come_back(tmp_path_factory, suffix, pairs):
    rows = [{"sentence": text, "label": label} for text, label in pairs]
    rows += [{"sentence": f"s {label}", "label": label} for label in "ab"]
    folder = tmp_path_factory.mktemp("any")
    write_as(folder / f"train.{suffix}", rows)
    write_as(folder / "dev.json", rows[-2:])
    assert load_splits(TASKS["classification"], str(folder)).train == rows


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(WORD, min_size=1, max_size=6), min_size=2, max_size=8))
@pytest.mark.parametrize("suffix", ["tsv", "conll"])
def test_words_of_any_characters_come_back(tmp_path_factory, suffix, sentences):
    rows = [{"tokens": words, "tags": ["O"] * len(words)} for words in sentences]
    rows = [{"tokens": ["a", "b"], "tags": ["B-x", "O"]}, *rows]
    rows += [{"tokens": ["-", "b"], "tags": ["O", "B-y"]}]
    folder = tmp_path_factory.mktemp("any")
    write_as(folder / f"train.{suffix}", rows)
    write_as(folder / "dev.json", rows[-1:])
    assert load_splits(TASKS["tagging"], str(folder)).train == rows


def test_regression_and_several_labels_are_refused_by_name(tmp_path):
    texts = {
        "several.jsonl": '{"text": "a", "label": ["x", "y"]}\n',
        "scores.jsonl": '{"text": "a", "label": 0.25}\n',
        "scores.csv": "text,label\n" + "".join(f"a{i},{i % 30 / 8}\n" for i in range(90)),
    }
    refused = {
        "several.jsonl": "several labels for a text are not supported: train a run for each label",
        "scores.jsonl": "numbers as targets .regression. are not supported: make a few classes",
        "scores.csv": "30 different labels, all of them numbers, such as .*; numbers as targets",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=refused[name]):
            load_splits(TASKS["classification"], str(tmp_path / name))
    # The user can name them, and a few stars are classes.
    labels = tuple(str(i / 8) for i in range(30))
    load_splits(TASKS["classification"], str(tmp_path / "scores.csv"), labels=labels)
    stars = "text,label\n" + "".join(f"a{i},{1 + i % 9 / 2}\n" for i in range(30))
    (tmp_path / "stars.csv").write_text(stars)
    assert len(load_splits(TASKS["classification"], str(tmp_path / "stars.csv")).labels) == 9


def test_one_json_object_of_several_lines_is_no_file_of_rows(tmp_path):
    path, text = tmp_path / "own.json", '{\n "data": []\n}'
    path.write_text(text + "\n")
    with pytest.raises(InputError) as refused:
        load_splits(TASKS["classification"], str(path))
    assert str(refused.value) == (
        f"{path}: one JSON object of several lines, {text!r}; expected a list of objects, or one "
        "object a line"
    )


def test_sentences_with_a_number_are_not_joined(tmp_path):
    """Each row has a whole sentence, and a column that numbers the sentences."""
    rows = [f"{i},Take a{i} now,O B-x O\n" for i in range(40)]
    (tmp_path / "own.csv").write_text("sentence_id,tokens,tags\n" + "".join(rows))
    splits = load_splits(TASKS["tagging"], str(tmp_path / "own.csv"))
    assert splits.labels == ("O", "B-x", "I-x") and len(splits.train[0]["tokens"]) == 3


def test_a_list_of_labels_in_a_table_is_refused_by_name(tmp_path):
    (tmp_path / "own.csv").write_text("text,label\nx,\"['a', 'b']\"\n")
    with pytest.raises(
        InputError, match="line 2: the label is .*several labels for a text are not"
    ):
        load_splits(TASKS["classification"], str(tmp_path / "own.csv"))


@pytest.mark.parametrize(
    "task, names", [("glue/qnli", "question,sentence"), ("glue/mnli", "premise,hypothesis")]
)
def test_glues_own_fields_are_found_in_a_new_table(tmp_path, task, names):
    (tmp_path / "new.csv").write_text(f"id,{names}\n1,a b,c d\n")
    new = open_new(tmp_path / "new.csv", TASKS[task], None)
    (record,) = new.records()
    row, _, _ = new.parse(record[1])
    assert [row[field] for field in TASKS[task].fields[:-1]] == ["a b", "c d"]


def test_the_fields_own_name_is_preferred_and_place_0_is_none(tmp_path):
    rows = [f"text {i},sentence {i},{'ab'[i % 2]}\n" for i in range(40)]
    (tmp_path / "own.csv").write_text("text,sentence,label\n" + "".join(rows))
    splits = load_splits(TASKS["classification"], str(tmp_path / "own.csv"))
    assert {row["sentence"][:8] for row in splits.train} == {"sentence"}
    with pytest.raises(InputError, match="--columns names '0' for the text, and there is no such"):
        load_splits(TASKS["classification"], str(tmp_path / "own.csv"), columns=("text=0",))


def test_a_word_with_a_number_sign_and_a_bare_type_is_a_word(tmp_path):
    sentences = "".join(f"took{i} O\n#{i} drug\naspirin drug\n\n" for i in range(40))
    (tmp_path / "own.conll").write_text(sentences)
    splits = load_splits(TASKS["tagging"], str(tmp_path / "own.conll"))
    assert all(len(row["tokens"]) == 3 for row in splits.train)
    assert splits.train[0]["tags"] == ["O", "B-drug", "I-drug"]


def test_spaces_around_a_type_are_no_part_of_it(tmp_path):
    rows = [f'{{"text": "took aspirin {i}", "label": [[5, 12, " drug "]]}}\n' for i in range(40)]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    assert load_splits(TASKS["tagging"], str(tmp_path / "own.jsonl")).labels[1] == "B-drug"
