"""The benchmark of predicting runs, and its labels are those that it counts."""

import json

import pytest

from benchmarks import peers, predicting


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(predicting, "RECORDS", tmp_path)
    for name, numbers in {"LABELS": (2, 10), "ADAPTERS": (1, 2), "ROWS": (3, 30)}.items():
        monkeypatch.setattr(predicting, name, numbers)
    monkeypatch.setattr(predicting, "TEXTS", 4)


def test_each_curve_has_a_point_for_each_number_and_a_record(tmp_path, capsys):
    predicting.main([])
    record = json.loads((tmp_path / "predicting-all.json").read_text())
    numbers = {name: [point["x"] for point in points] for name, points in record["curves"].items()}
    assert numbers == {"labels": [2, 10], "adapters": [1, 2], "rows": [3, 30]}
    assert record["curves"]["adapters"][0]["seconds"] == record["curves"]["adapters"][0]["line"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 6
    assert peers.RECORDS.name == "records"


def test_the_labels_differ_and_share_first_words():
    for count in (2, 77, 150):
        labels = predicting.label_texts(count)
        assert len(set(labels)) == count
        assert len({label.split()[0] for label in labels}) <= 5
