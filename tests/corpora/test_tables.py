"""Tables of datasets: classes with names, data sets of the hub, and files that are no tables."""

import sys
from types import SimpleNamespace

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.tasks import TASKS


def classes(labels: list[int]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = {"text": [f"s {i}" for i in range(len(labels))], "label": labels}
    return Dataset.from_dict(rows, features=features)


def test_numbers_of_classes_become_their_names(tmp_path):
    classes([1, 0] * 20).to_parquet(str(tmp_path / "own.parquet"))
    splits = load_splits(TASKS["classification"], str(tmp_path / "own.parquet"))
    assert splits.labels == ("bad", "good")
    assert splits.train[:2] == [
        {"sentence": f"s {i}", "label": "bad" if i % 2 else "good"}
        for i in [int(row["sentence"][2:]) for row in splits.train[:2]]
    ]
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "I-x", "B-x"]))}
    )
    rows = {"tokens": [["a", str(i)] for i in range(30)], "ner_tags": [[2, 1]] * 30}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "tags")
    splits = load_splits(TASKS["ner"], str(tmp_path / "tags"))
    assert splits.train[0]["tags"] == ["B-x", "I-x"]
    assert splits.read == (
        'tags: 30 rows; tokens from "tokens", tags from "ner_tags" (x; tags in BIO)',
    )


def test_a_row_whose_class_is_not_known_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    classes([1, 0, -1]).to_parquet(str(path))
    with pytest.raises(InputError, match="train.parquet, row 3: the label is -100, which marks a"):
        load_splits(TASKS["classification"], str(path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text,label"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "own.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own.parquet: \w+; expected a parquet file$"):
        load_splits(TASKS["classification"], str(path))
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_info.json").write_bytes(content)
    with pytest.raises(InputError, match=r"saved: \w+; expected a folder of save_to_disk$"):
        load_splits(TASKS["classification"], str(saved))


def test_a_data_set_of_the_hub_is_read_at_its_commit(monkeypatch):
    asked = []

    def hub_file(repository, file, kind, revision):
        hub._commits[repository, kind, revision] = "c" * 40

    def load_dataset(*names, **more):
        asked.append((*names, more["revision"]))
        return {"train": classes([1, 0] * 20), "dev": classes([1, 0]), "more": classes([1])}

    monkeypatch.setattr(hub, "hub_file", hub_file)
    monkeypatch.setattr(hub, "_commits", {})
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_splits(TASKS["sentiment"], "hub:owner/name@v1:small")
    assert asked == [("owner/name", "small", "c" * 40)]
    assert len(splits.train) == 40 and len(splits.validation) == 2 and splits.test is None
    assert splits.read[0] == (
        'hub:owner/name@v1:small, train: 40 rows; text from "text", label from "label" (bad, good)'
    )
    assert splits.notes[0] == "hub:owner/name@v1:small: splits that were not read: more"


def test_a_data_set_that_needs_a_script_is_refused_with_what_to_try(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(hub, "hub_file", lambda *_: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(**vars(datasets)))
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", refuse)
    with pytest.raises(InputError) as refused:
        load_splits(TASKS["sentiment"], "hub:owner/name")
    assert str(refused.value) == (
        "hub:owner/name: RuntimeError: Dataset scripts are no longer supported, but found name.py; "
        "it needs a script; try hub:owner/name@refs/convert/parquet"
    )
    for name in ("name", "a/b/c", "a/b@", "a/b:"):
        with pytest.raises(InputError, match="expected hub:owner/name@revision:config"):
            load_splits(TASKS["sentiment"], f"hub:{name}")
