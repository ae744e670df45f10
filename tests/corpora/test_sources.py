"""Loading `--data`: where its files can be, and what every corpus refuses."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_files import (
    AGREE_50,
    AGREE_66,
    CORPORA,
    DEV_IDS,
    FILES,
    HUB_JSON,
    IOB2,
    IOB2_TEST,
    PAIRS_TEST,
    TNER,
    load,
    refusal,
    sample_folder,
    write,
    write_zip,
)

from neo_peft.corpora import own_files, sample, sources
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.sources import load_scored, load_splits
from neo_peft.corpora.splits import Splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

NER, SENTIMENT, SIMILARITY = TASKS["ner"], TASKS["sentiment"], TASKS["similarity"]


@pytest.mark.parametrize("task", CORPORA)
@pytest.mark.parametrize(
    "subfolder", ["", "{corpus}", "{corpus}/FinancialPhraseBank-v1.0", "FinancialPhraseBank-v1.0"]
)
def test_data_can_be_the_folder_of_the_corpus_or_its_parent(tmp_path, task, subfolder):
    corpus = {"ner": "jnlpba", "sentiment": "financial_phrasebank", "similarity": "mrpc"}[task]
    expected = load(tmp_path / "plain", task)
    write(tmp_path / "all" / subfolder.format(corpus=corpus), FILES[task])
    assert load_splits(TASKS[task], str(tmp_path / "all")) == expected


TEST_FILES = {"ner": IOB2_TEST, "sentiment": AGREE_66, "similarity": PAIRS_TEST}


@pytest.mark.parametrize("task", CORPORA)
@pytest.mark.parametrize("others", ["missing", "broken"])
def test_a_model_is_scored_on_a_test_file_whatever_the_other_files_are(tmp_path, task, others):
    expected = load(tmp_path / "complete", task, protocol="paper").test
    files = {name: b"\xff\tnonsense\n" for name in FILES[task]} if others == "broken" else {}
    files[TEST_FILES[task]] = FILES[task][TEST_FILES[task]]
    data = str(write(tmp_path / "test", files))
    name, splits = load_scored(TASKS[task], data, "paper", 0, None)
    assert (name, splits.test) == ("test", expected)


@pytest.mark.parametrize("task", CORPORA)
@pytest.mark.parametrize("data", ["folder", "sample"])
def test_the_split_that_is_scored_has_the_rows_that_a_run_would_have(tmp_path, task, data):
    data = str(write(tmp_path, FILES[task])) if data == "folder" else data
    complete = load_splits(TASKS[task], data, "paper")
    for split, rows in complete.named().items():
        name, splits = load_scored(TASKS[task], data, "paper", 0, None, split)
        assert name == split and splits.named()[split] == rows
        assert not any(rows for name, rows in splits.named().items() if name == "test" != split)
    with pytest.raises(InputError, match="--split dev: the data has only train, validation, test"):
        load_scored(TASKS[task], data, "paper", 0, None, "dev")


def test_own_rows_in_the_folder_of_a_corpus_are_noted(tmp_path):
    data = write(tmp_path, FILES["ner"] | {"test.jsonl": b'{"tokens": ["a"], "tags": ["O"]}\n'})
    splits = load_splits(NER, str(data))
    assert splits.test == load(tmp_path / "plain", "ner").test
    assert f"{data} has the files of a corpus, so your own rows in it were not read" in splits.notes


def test_a_new_corpus_needs_one_line_in_the_table(monkeypatch):
    rows = [{"sentence": "Up .", "label": "a"}]
    task = dataclasses.replace(SENTIMENT, name="news")
    for data in ("sample", "hub", "."):
        assert refusal(task, data) == (
            f"--data {data} has no data for news; give a file with your own rows, or a folder with "
            "such a file called train (.jsonl, .json, .csv, .tsv, .parquet)"
        )
    load = lambda request: Splits(rows, rows, rows, request.protocol)  # noqa: E731
    monkeypatch.setitem(sources.LOADERS, "news", {"hub": load})
    assert load_splits(task, "hub", "paper").test == rows
    assert load_splits(task, "hub", "paper").protocol == "paper"
    assert "has no data for news" in refusal(task, "sample")


def test_a_new_format_of_own_rows_needs_one_line_in_the_table(tmp_path, monkeypatch):
    def read(path, request):
        lines = enumerate(path.read_text().splitlines(), start=1)
        rows = ((n, {"sentence": line[2:], "label": line[0]}) for n, line in lines)
        return FileRows(str(path), rows, {"label": "the first letter"}, [])

    monkeypatch.setitem(own_files.READERS, ".mine", read)
    files = {"train.mine": b"a Up .\nb Down .\n", "dev.mine": b"b Down again .\n"}
    task, data = TASKS["classification"], str(write(tmp_path, files))
    splits = load_splits(task, data, labels=("b", "a"))
    assert splits.labels == ("b", "a") and splits.train[1] == {"sentence": "Down .", "label": "b"}
    assert splits.read[0] == "train.mine: 2 rows; label from the first letter (a, b)"
    with pytest.raises(
        InputError, match="train.mine, line 2: unknown label 'b'; expected one of a"
    ):
        load_splits(task, data, labels=("a", "c"))


@pytest.mark.parametrize(
    "task, files",
    [
        (
            "ner",
            "Genia4ERtask1.iob2, Genia4EReval1.iob2, train/Genia4ERtask1.iob2, "
            "test/Genia4EReval1.iob2 is in this folder or in its folder jnlpba/",
        ),
        (
            "sentiment",
            "Sentences_50Agree.txt, Sentences_66Agree.txt is in this folder or in its folder "
            "financial_phrasebank/",
        ),
        (
            "similarity",
            "msr_paraphrase_train.txt, msr_paraphrase_test.txt, mrpc_dev_ids.tsv, train.tsv, "
            "dev.tsv is in this folder or in its folder mrpc/",
        ),
    ],
)
def test_a_folder_without_the_files_is_refused_with_their_names(tmp_path, task, files):
    assert refusal(TASKS[task], tmp_path) == f"--data {tmp_path}: none of {files}"


def test_a_path_without_data_is_refused_with_what_data_can_be(tmp_path):
    expected = "there is no such file or folder; --data can be sample, hub, a file or a folder"
    assert refusal(SENTIMENT, tmp_path / "nowhere") == f"--data {tmp_path / 'nowhere'}: {expected}"
    path = write(tmp_path, {"file.txt": b"It"}) / "file.txt"
    assert refusal(SENTIMENT, path) == (
        f"--data {path}: .txt is no format of rows for sentiment; expected .jsonl, .json, .csv, "
        ".tsv, .parquet"
    )


@pytest.mark.parametrize(
    "task, name",
    [
        ("sentiment", AGREE_50),
        *((task, name) for task in ("ner", "similarity") for name in FILES[task]),
    ],
)
def test_a_missing_file_is_named(tmp_path, task, name):
    write(tmp_path, FILES[task])
    (tmp_path / name).unlink()
    expected = f"{tmp_path / name}: there is no such file; put it next to the task's other files"
    assert refusal(TASKS[task], tmp_path) == expected


def test_an_unknown_protocol_is_refused_for_every_source():
    expected = "there is no protocol 'papr'; the protocols are clean, paper"
    assert refusal(SENTIMENT, "sample", "papr") == expected


def test_too_few_rows_for_a_split_are_refused(tmp_path):
    folder = write(tmp_path / "one", FILES["ner"] | {IOB2: b"T\tO\n"})
    assert (
        refusal(NER, folder)
        == f"--data {folder}: too few rows, none remain for train; add more rows"
    )
    folder = write(tmp_path / "all", FILES["similarity"] | {DEV_IDS: b"11\t12\n12\t11\n13\t14\n"})
    assert "none remain for train" in refusal(SIMILARITY, folder)


@pytest.mark.parametrize("task", CORPORA)
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path, monkeypatch, hub_folder, task):
    """Random bytes of each file of each source are changed, removed or inserted. Loading never ends
    with a traceback."""
    rng = random.Random(0)
    monkeypatch.setattr(sample, "SAMPLE", sample_folder(tmp_path / "sample", task))
    folder = write(tmp_path / "folder", FILES[task])
    files = [(file, str(folder)) for file in folder.iterdir()]
    files += [(file, "sample") for file in (tmp_path / "sample" / task).iterdir()]
    if task == "ner":
        write(hub_folder / TNER, HUB_JSON)
        files += [(file, "hub") for file in (hub_folder / TNER / "dataset").iterdir()]
    if task == "sentiment":
        files.append((write_zip(hub_folder, FILES["sentiment"]), "hub"))
    for file, data in files:
        original = file.read_bytes()
        for _ in range(60):
            start = rng.randrange(len(original))
            inserted = bytes(
                rng.choice(b'\t\n\r @[]{}"0\x00\x85\xff,') for _ in range(rng.randrange(4))
            )
            file.write_bytes(original[:start] + inserted + original[start + rng.randrange(4) :])
            try:
                load_splits(TASKS[task], data, "paper")
            except InputError as error:
                assert len(str(error).splitlines()) == 1
        file.write_bytes(original)


def test_importing_the_module_loads_neither_torch_nor_datasets():
    code = (
        "import sys, neo_peft.corpora.sources; print({'torch', 'datasets', 'huggingface_hub'} & "
        "set(sys.modules))"
    )
    root = Path(sources.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
