"""Limits on the number of rows, and splitting a tenth of train off as validation."""

import random
from collections import Counter

import pytest
from own_files import write_rows

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

CLASSIFICATION = TASKS["classification"]


def test_a_limit_takes_evenly_spaced_rows_in_order():
    rows = [{"sentence": str(i)} for i in range(10)]
    assert limit_rows(rows, 4) == [rows[0], rows[2], rows[5], rows[7]]
    assert limit_rows(rows, 1) == rows[:1]
    assert limit_rows(rows, 9) == rows[:9]
    for limit in (None, "all", 10, 11):
        assert limit_rows(rows, limit) == rows
    with pytest.raises(InputError, match="a limit of 0 rows is too low; give 1 or more"):
        limit_rows(rows, 0)


def test_a_tenth_of_each_label_is_split_off_by_the_seed(tmp_path):
    rng = random.Random(0)
    rows = [{"sentence": f"s{i}", "label": rng.choices("abc", [60, 30, 10])[0]} for i in range(300)]
    rows += [{"sentence": "the only one", "label": "d"}]
    data = str(write_rows(tmp_path, train=rows))
    counts = Counter(row["label"] for row in rows)
    by_seed = [load_splits(CLASSIFICATION, data, seed=seed) for seed in (0, 0, 1)]
    for splits in by_seed:
        validation_counts = Counter(row["label"] for row in splits.validation)
        assert validation_counts == {
            label: round(count / 10) for label, count in counts.items() if label != "d"
        }
        assert sorted(map(str, splits.train + splits.validation)) == sorted(map(str, rows))
        # in the order of the file
        assert splits.train == [row for row in rows if row not in splits.validation]
        assert splits.notes == (
            "there is no validation file: a tenth of train is validation, "
            f"{len(splits.validation)} of 301 rows, chosen by --seed {splits is by_seed[2]:d}",
        )
    assert by_seed[0] == by_seed[1] and by_seed[0].validation != by_seed[2].validation


def test_rows_with_the_same_text_are_in_the_same_split(tmp_path):
    rows = [{"sentence": f"s {i % 40}", "label": "ab"[i % 2]} for i in range(120)]
    splits = load_splits(CLASSIFICATION, str(write_rows(tmp_path, train=rows)))
    train, validation = (
        {row["sentence"] for row in part} for part in (splits.train, splits.validation)
    )
    assert not train & validation and len(validation) == 4 and len(splits.validation) == 12


def test_validation_rows_that_are_in_train_are_counted_spaces_aside(tmp_path):
    """A copy of train as validation would choose the epoch, and without test be the result."""
    train = [{"sentence": f"s {i}", "label": "ab"[i % 2]} for i in range(10)]
    others = [{"sentence": f"{text}", "label": "a"} for text in (" s 1", "s 2\n", "S 3", "new")]
    data = str(write_rows(tmp_path, train=train, dev=others))
    splits = load_splits(CLASSIFICATION, data)
    assert splits.notes == ("2 of the 4 validation sentences are also in train (10 sentences)",)
