"""GLUE's tasks: the TSV files as distributed, the parquet files of the hub, and the splits."""

import json
from pathlib import Path

import pytest

import evaluate
import train
from neo_peft.corpora.glue import FILES
from neo_peft.corpora.sources import load_scored, load_splits
from neo_peft.errors import InputError
from neo_peft.system import hub
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

GLUE = {name.removeprefix("glue/"): TASKS[name] for name in FILES}

MNLI_COLUMNS = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse"
)
# For each task: the folder in GLUE's archive, the header (None: no header), the columns of row n,
# and the labels as the file has them.
LAYOUT = {
    "cola": ("CoLA", None, ["gj04", "{label}", "", "text {n} ."], "0 1"),
    "sst2": ("SST-2", "sentence label", ["text {n} . ", "{label}"], "0 1"),
    "mrpc": (
        "MRPC",
        "Quality,#1 ID,#2 ID,#1 String,#2 String",
        ["{label}", "1{n}", "2{n}", 'a "{n}', "b {n}"],
        "0 1",
    ),
    "qqp": (
        "QQP",
        "id qid1 qid2 question1 question2 is_duplicate",
        ["{n}", "1{n}", "2{n}", "a {n} ?", "b {n} ?", "{label}"],
        "0 1",
    ),
    "mnli": (
        "MNLI",
        MNLI_COLUMNS + " sentence1 sentence2 label1 gold_label",
        ["{n}", "p", "q", "g", "(", ")", "(", ")", "a {n}", "b {n}", "neutral", "{label}"],
        "entailment neutral contradiction",
    ),
    "qnli": (
        "QNLI",
        "index question sentence label",
        ["{n}", "a {n} ?", "b {n}", "{label}"],
        "entailment not_entailment",
    ),
    "rte": (
        "RTE",
        "index sentence1 sentence2 label",
        ["{n}", "a {n}", "b {n}", "{label}"],
        "entailment not_entailment",
    ),
    "wnli": (
        "WNLI",
        "index sentence1 sentence2 label",
        ["{n}", "a {n}", "b {n}", "{label}"],
        "0 1",
    ),
}
# The hub's names of the labels, in the order of their numbers there.
NAMES = {
    "cola": "unacceptable acceptable",
    "sst2": "negative positive",
    "mrpc": "not_equivalent equivalent",
    "qqp": "not_duplicate duplicate",
    "mnli": "entailment neutral contradiction",
    "qnli": "entailment not_entailment",
    "rte": "entailment not_entailment",
    "wnli": "not_entailment entailment",
}


def tsv_file(name: str, first: int, count: int) -> str:
    """Return the header, and `count` rows that are numbered from `first`."""
    folder, heading, columns, labels = LAYOUT[name]
    labels = labels.split()
    separator = "," if heading and "," in heading else " "
    lines = [] if heading is None else ["\t".join(heading.split(separator))]
    for n in range(first, first + count):
        lines.append("\t".join(columns).format(n=n, label=labels[n % len(labels)]))
    return "\n".join(lines) + "\n"


def write_glue(root: Path, name: str) -> Path:
    """Write GLUE's files: train has 60 rows, each dev set 5 to 7, and the test set has no labels.

    MRPC also gets its original test set, which has labels.
    """
    folder = root / LAYOUT[name][0]
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text(tsv_file(name, 0, 60))
    (folder / "test.tsv").write_text("index\tsentence\n0\tno label\n")
    if name == "mnli":
        (folder / "dev_matched.tsv").write_text(tsv_file(name, 100, 6))
        (folder / "dev_mismatched.tsv").write_text(tsv_file(name, 200, 7))
    else:
        (folder / "dev.tsv").write_text(tsv_file(name, 100, 5))
    if name == "mrpc":
        (folder / "msr_paraphrase_test.txt").write_text("\ufeff" + tsv_file(name, 300, 8))
    return root


def expected(name: str, first: int, count: int) -> list[dict]:
    """Return the rows of `tsv_file` as the loader returns them."""
    names = [label.replace("_", " ") for label in NAMES[name].split()]
    in_file = LAYOUT[name][3].split()
    file_labels = in_file if in_file[0] == "0" else [label.replace("_", " ") for label in in_file]
    rows = []
    for n in range(first, first + count):
        file_label = file_labels[n % len(file_labels)]
        label = names[int(file_label)] if file_label.isdigit() else file_label
        texts = {
            "cola": {"sentence": f"text {n} ."},
            "sst2": {"sentence": f"text {n} . "},
            "mrpc": {"sentence1": f'a "{n}', "sentence2": f"b {n}"},
            "qqp": {"question1": f"a {n} ?", "question2": f"b {n} ?"},
            "mnli": {"premise": f"a {n}", "hypothesis": f"b {n}"},
            "qnli": {"question": f"a {n} ?", "sentence": f"b {n}"},
            "rte": {"sentence1": f"a {n}", "sentence2": f"b {n}"},
            "wnli": {"sentence1": f"a {n}", "sentence2": f"b {n}"},
        }[name]
        rows.append(texts | {"label": label})
    return rows


@pytest.mark.parametrize("name", GLUE)
def test_tsv_files_are_read_and_split(tmp_path, name):
    data = write_glue(tmp_path, name)
    splits = load_splits(GLUE[name], str(data))
    if name == "mrpc":  # validation is GLUE's dev set, test the original test set
        assert splits.train == expected(name, 0, 60)
        assert splits.validation == expected(name, 100, 5)
        assert splits.test == expected(name, 300, 8)
    else:
        assert splits.test == expected(name, 100, 6 if name == "mnli" else 5)
        remaining = [row for row in expected(name, 0, 60) if row not in splits.validation]
        assert splits.train == remaining and len(remaining) == 54
        validation_labels = [row["label"] for row in splits.validation]
        assert {validation_labels.count(label) for label in GLUE[name].labels} == {
            6 // len(GLUE[name].labels)
        }
        assert load_splits(GLUE[name], str(data), seed=1).validation != splits.validation
    assert splits.extra_tests == ({"mismatched": expected(name, 200, 7)} if name == "mnli" else {})
    assert list(GLUE[name].labels) == [label.replace("_", " ") for label in NAMES[name].split()]
    assert load_splits(GLUE[name], str(data / LAYOUT[name][0])) == splits


def test_similarity_finds_glues_folder_of_mrpc(tmp_path):
    data = write_glue(tmp_path, "mrpc")
    splits = load_splits(TASKS["similarity"], str(data))
    assert splits == load_splits(GLUE["mrpc"], str(data))
    assert (splits.train, splits.test) == (expected("mrpc", 0, 60), expected("mrpc", 300, 8))
    assert load_splits(TASKS["similarity"], str(data / "MRPC")) == splits
    with open(data / "MRPC" / "train.tsv", "a") as file:
        file.write("half a sentence\n")
    with pytest.raises(InputError, match="train.tsv, line .*: 1 columns in 'half a sentence'"):
        load_splits(TASKS["similarity"], str(data))


@pytest.mark.parametrize("name", GLUE)
def test_a_model_is_scored_on_the_test_file_alone(tmp_path, name):
    data = write_glue(tmp_path, name)
    splits = load_splits(GLUE[name], str(data))
    (data / LAYOUT[name][0] / "train.tsv").write_text("broken")
    if name == "mrpc":
        (data / "MRPC/dev.tsv").unlink()
    for split, rows in {"test": splits.test, **splits.extra_tests}.items():
        found, scored = load_scored(GLUE[name], str(data), "clean", 0, None, split)
        assert found == split and scored.named()[split] == rows
    (data / LAYOUT[name][0] / "train.tsv").unlink()
    assert load_scored(GLUE[name], str(data), "clean", 0, None)[1].test == splits.test


@pytest.mark.parametrize("name", GLUE)
def test_the_hubs_parquet_files_give_the_same_splits(tmp_path, monkeypatch, name):
    import datasets

    requested = []
    task, stems = GLUE[name], {"train": (0, 60)}
    stems |= (
        {"validation_matched": (100, 6), "validation_mismatched": (200, 7)}
        if name == "mnli"
        else {"validation": (100, 5)}
    )
    stems |= {"test": (300, 8)} if name == "mrpc" else {}
    for stem, (first, count) in stems.items():
        rows = expected(name, first, count)
        columns = {field: [row[field] for row in rows] for field in task.fields[:-1]}
        columns |= {
            "label": [task.labels.index(row["label"]) for row in rows],
            "idx": list(range(count)),
        }
        path = tmp_path / f"hub/nyu-mll/glue/{name}/{stem}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns).to_parquet(str(path))

    def hub_file(repository, filename, kind="model", revision=None):
        requested.append(filename)
        return tmp_path / "hub" / repository / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    assert load_splits(task, "hub") == load_splits(task, str(write_glue(tmp_path / "glue", name)))
    assert sorted(requested) == sorted(f"{name}/{stem}-00000-of-00001.parquet" for stem in stems)


def test_lines_of_qqp_with_a_wrong_number_of_columns_are_left_out_and_counted(tmp_path):
    """QQP's own file has such lines: other programs that read GLUE leave them out too."""
    data = write_glue(tmp_path, "qqp")
    whole = load_splits(GLUE["qqp"], str(data))
    assert not any("left out" in note for note in whole.notes)
    with open(data / "QQP" / "train.tsv", "a") as file:
        file.write("61\t161\t261\tit breaks off\n62\t162\t262\ta ?\tand so does this\n\n")
        file.write("63\t163\t263\ta\ttab ?\tb ?\t1\n")
    with open(data / "QQP" / "dev.tsv", "a") as file:
        file.write("it is the end of a question\t1\n")
    splits = load_splits(GLUE["qqp"], str(data))
    assert (splits.train, splits.validation, splits.test) == (
        whole.train,
        whole.validation,
        whole.test,
    )
    assert [note for note in splits.notes if "left out" in note] == [
        "train.tsv: lines without 6 columns, left out: 3",
        "dev.tsv: lines without 6 columns, left out: 1",
    ]


@pytest.mark.parametrize("name", [name for name in GLUE if name != "qqp"])
@pytest.mark.parametrize("damage", ["break", "few", "many"])
def test_a_line_with_a_wrong_number_of_columns_is_refused_at_its_number(tmp_path, name, damage):
    """A sentence has a line break in it, a row has no last column, or has one more."""
    data = write_glue(tmp_path, name)
    path = data / LAYOUT[name][0] / "train.tsv"
    rows = path.read_text().splitlines()
    width = len(rows[7].split("\t"))
    first, _, second = rows[7].rpartition(" ")  # the last space is one between two words
    changed = {
        "break": [first, second],
        "few": [rows[7].rpartition("\t")[0]],
        "many": [rows[7] + "\tmore"],
    }[damage]
    # Where the sentence is the last column, the part before the line break is a whole row.
    line, wrong = 8, changed[0]
    if damage == "break" and len(first.split("\t")) == width:
        line, wrong = 9, changed[1]
    path.write_text("\n".join([*rows[:7], *changed, *rows[8:]]))
    expected = (
        f"{path}, line {line}: {len(wrong.split(chr(9)))} columns in {wrong[:40]!r}; expected "
        f"{width}, separated by tabs; write each row on one line"
    )
    with pytest.raises(InputError) as refused:
        load_splits(GLUE[name], str(data))
    assert str(refused.value) == expected


@pytest.mark.parametrize("name", [name for name in GLUE if name != "cola"])
def test_a_header_must_be_the_first_line_and_no_other(tmp_path, name):
    data = write_glue(tmp_path, name)
    path = data / LAYOUT[name][0] / "train.tsv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows, header]))
    with pytest.raises(InputError, match="line 62: unknown label "):
        load_splits(GLUE[name], str(data))
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match="its header has no column .*; use GLUE's own file"):
        load_splits(GLUE[name], str(data))
    label = FILES[f"glue/{name}"].columns[-1:] or ("label",)
    path.write_text("\n".join([f"{header}\t{label[0]}", *(f"{row}\t0" for row in rows)]))
    with pytest.raises(InputError, match="its header has more than one column .*; use GLUE's own"):
        load_splits(GLUE[name], str(data))


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        (
            "rte",
            "dev.tsv",
            "index\tsentence1\tlabel\n0\ta\tentailment\n",
            "its header has no column sentence2; use",
        ),
        (
            "rte",
            "dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            "line 2: unknown label 'maybe'",
        ),
        (
            "rte",
            "dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\t\tb\tentailment\n",
            "line 2: a token or sentence is '', empty",
        ),
        ("rte", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n", "the file has no rows"),
        ("rte", "dev.tsv", "", "its header has no column sentence1, sentence2, label"),
        (
            "cola",
            "train.tsv",
            "gj04\t2\t\ta\n",
            "line 1: unknown label '2'; expected one of 0, 1, unacceptable, acc",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, file, content, message):
    data = write_glue(tmp_path, name)
    (data / LAYOUT[name][0] / file).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        load_splits(GLUE[name], str(data))
    assert str(data / LAYOUT[name][0] / file) in str(refused.value)


def test_data_without_glues_files_is_refused(tmp_path):
    with pytest.raises(
        InputError,
        match="--data sample has no data for glue/rte; --data can be hub or GLUE's folder",
    ):
        load_splits(GLUE["rte"], "sample")
    with pytest.raises(
        InputError, match=r"there is no RTE/train.tsv and no train.tsv; give a folder with GLUE's"
    ):
        load_splits(GLUE["rte"], str(tmp_path))
    (write_glue(tmp_path, "rte") / "RTE/dev.tsv").unlink()
    with pytest.raises(InputError, match=r"RTE/dev.tsv: there is no such file"):
        load_splits(GLUE["rte"], str(tmp_path))


@pytest.mark.parametrize("name", ["cola", "qqp", "mnli"])
def test_glues_metric_chooses_the_epoch_and_is_printed(tmp_path, tiny_folder, capsys, name):
    data = write_glue(tmp_path / "glue", name)
    argv = [
        "--task",
        f"glue/{name}",
        "--method",
        "lora",
        "--data",
        data,
        "--model",
        tiny_folder,
        "--epochs",
        2,
    ]
    assert exit_status(lambda: train.main([*map(str, argv), "--threads", "1"])) == 0
    out, metric = capsys.readouterr().out, GLUE[name].metric
    shown = "f1 of duplicate" if metric == "f1" else metric
    run = Path(f"runs/glue-{name}-lora")
    record = json.loads((run / "run.json").read_text())
    best = record["scores"]["after"]["validation"][metric]
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert best == max(line["validation"][metric] for line in epochs if "validation" in line)
    assert f"validation {shown} " in out and f"test {shown} " in out
    assert f", {shown} {best:.3f}" in out  # in the line of an epoch
    assert record["verdict"]["metric"] == metric
    assert ("mismatched accuracy" in out) == (name == "mnli")
    if name == "mnli":
        assert (
            exit_status(lambda: evaluate.main([str(run), "--split", "mismatched", "--json"])) == 0
        )
        evaluated = json.loads(capsys.readouterr().out)
        assert (
            evaluated["scores"]["accuracy"] == record["scores"]["after"]["mismatched"]["accuracy"]
        )
