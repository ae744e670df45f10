"""The report shows the contents of the run's files, worked by hand. Text from files is never HTML.
Folders that are no finished run are refused."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from answered import (
    AFTER,
    BEFORE,
    EPOCHS,
    EVIL,
    LABELLED,
    PREDICTED_LABELS,
    STEPS,
    TIMES,
    answerer,
    make_run,
    tagger,
)
from sklearn.metrics import confusion_matrix

from neo_peft.commands import report
from neo_peft.errors import InputError
from neo_peft.reports import report as analysis
from neo_peft.runs.folder import write_record
from neo_peft.runs.predictions import PredictionKind
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import read_checked_json


class Page(HTMLParser):
    """A parsed page.

    elements: (tag, attributes) of each element.
    texts: the text between the tags.
    tables: each table as a list of rows of cells.
    folded: the title and the texts of each folded group.
    open: tags that are not closed yet.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.texts, self.tables, self.folded, self.open = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "summary":
            self.folded.append([""])
        elif tag in ("li", "dd") and "details" in self.open:
            self.folded[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
        if {"th", "td"} & {*self.open}:
            self.tables[-1][-1][-1] += text
        elif {"summary", "li"} & {*self.open} and "dt" not in self.open:
            self.folded[-1][-1] += text

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    @property
    def groups(self):
        """Return the title and the texts of each folded group, with spaces normalized."""
        return [[" ".join(text.split()) for text in group if text] for group in self.folded]


def page(*argv) -> Page:
    """Run the command, and parse the page that it wrote."""
    report.main([str(word) for word in argv])
    return Page(Path(argv[-1]) if "--out" in argv else Path(argv[0]) / "report.html")


# ---- Content


def test_the_page_of_a_tagger_shows_scores_types_and_mistakes(tmp_path, capsys):
    shown = page(tagger(tmp_path / "run"))
    assert (
        capsys.readouterr().out
        == f"{tmp_path}/run/report.html shows {tmp_path}/run; open it in a browser\n"
    )
    validation, test, types, flags = shown.tables
    assert validation[0] == ["", "majority", "before", "after"] and test == validation
    found = {row[0]: row[1:] for row in test[1:]}
    # The majority class and the untuned model predict no entity, so all their bootstrap resamples
    # have F1 0. After tuning, a resample of the three sentences can have any F1 from 0 to 1.
    assert found["typed f1"][:2] == ["0.000", "0.0000.000–0.000"] and found["typed f1"][
        2
    ].startswith("0.333")
    assert found["span-only f1"][2].startswith("0.667") and found["typed precision"][2].startswith(
        "0.333"
    )
    bars = [attributes["style"] for tag, attributes in shown.elements if tag == "i"]
    assert bars[2] == bars[0] == "--at:0.0%;--low:0.0%;--high:0.0%"  # before tuning
    assert bars[1] == "--at:33.3%;--low:0.0%;--high:100.0%"
    assert bars[7] == "--at:66.7%;--low:0.0%;--high:100.0%"
    assert "3 gold entities in 3 sentences, 1 predicted correctly." in shown.text
    assert types[0] == ["type", "precision", "recall", "f1", "gold entities"]
    assert types[1:] == [
        ["drug", "0.500", "0.500", "0.500", "2"],
        ["gene", "0.000", "0.000", "0.000", "1"],
        ["all, typed", "0.333", "0.333", "0.333", "3"],
        ["all, span only", "", "", "0.667", "3"],
    ]
    assert ["--rank", "8", "assumed"] in flags and ["--seed", "0", ""] in flags
    boundary, wrong_type, missed, spurious, _ = shown.groups
    assert boundary == ["boundary 0 the type is correct, the first or last word is wrong"]
    assert wrong_type[0].startswith("type 1 ") and wrong_type[1:] == [
        "The gene p53 gene sleeps",
        "The drug p53 gene sleeps",
    ]
    assert missed[0].startswith("missed 1 ") and spurious[0].startswith("spurious 1 ")
    assert (
        missed[1:] == ["drug acetyl salicylic acid", "acetyl gene salicylic acid"] == spurious[1:]
    )


def test_only_wrong_entities_are_outlined(tmp_path):
    shown = page(tagger(tmp_path / "run"))
    marks = [attributes["class"] for tag, attributes in shown.elements if tag == "mark"]
    # Outlined are: both entities for a wrong type, the gold one if missed, the predicted one if
    # spurious. type-0 is drug, type-1 is gene.
    assert marks == [
        "type-1 wrong",
        "type-0 wrong",
        "type-0 wrong",
        "type-1",
        "type-0",
        "type-1 wrong",
    ]


def test_the_page_of_a_classifier_shows_scored_labels_generated_text_and_the_confusion_matrix(
    tmp_path,
):
    shown = page(answerer(tmp_path / "run"))
    scores, _, matrix, _ = shown.tables
    assert scores[0] == ["", "majority", "before", "before, generate", "after", "after, generate"]
    assert (
        scores[1][0] == "accuracy"
        and scores[1][3] == "0.0000.000–0.000"
        and scores[1][5].startswith("0.400")
    )
    assert scores[-1] == ["unanswered", "1", "1", "5", "1", "1"]
    labels = ["bad", "so-so", "good"]
    gold = [row["label"] for row in LABELLED]
    predicted = [label or "unanswered" for label in PREDICTED_LABELS]
    expected = confusion_matrix(gold, predicted, labels=[*labels, "unanswered"])[:3]
    assert matrix[0] == ["gold \\ predicted", *labels, "unanswered"]
    assert [row[1:] for row in matrix[1:]] == expected.astype(str).tolist()
    cells = [
        attributes
        for tag, attributes in shown.elements
        if tag == "td" and "--share" in attributes.get("style", "")
    ]
    assert [cell["style"] for cell in cells[:4]] == [
        "--share:0%",
        "--share:0%",
        "--share:50%",
        "--share:50%",
    ]
    # cells of the diagonal have a class
    assert [index for index, cell in enumerate(cells) if "class" in cell] == [0, 5, 10]
    assert "3 of 5 predictions are wrong." in shown.text
    assert shown.groups[:3] == [
        ["bad → good 1", "down"],
        ["so-so → bad 1", "flat"],
        ["bad → unanswered 1", "fall"],
    ]


def test_the_page_shows_what_was_trained_its_cost_and_its_recipe(tmp_path):
    text = page(tagger(tmp_path / "run", epochs=4)).text
    for part in (
        "tagging, lora",
        "lora on neo-mini, 7 rows of own-rows; kept after epoch 2, of 4 epochs; seed 3",
        "LoRA adds 0.100 (0.050 to 0.150) to the majority class (0.200): typed f1 on test",
        "Warning: the loss rose",
        "parameters1,000 of 5,001,000, 0.02 %",
        "on disk1.50 MB; the full model in fp32: 20.00 MB",
        "time61 seconds",
        "tokens per second200 in training",
        "peak memory450 MB",
        "hardwarefp32 on cpu, threads 2, processes 1",
        "fingerprint f1e2d3",
        "commit–",
        "versionstorch 2.9",
    ):
        assert part in text


def test_missing_numbers_are_shown_as_a_dash(tmp_path):
    """An older run did not record its memory. If each epoch has one step, tokens per second are
    unknown."""
    run = tagger(tmp_path / "run", changes={"memory": "left out"}, times=[TIMES[0], TIMES[2]])
    assert "tokens per second–peak memory–" in page(run).text


def test_all_mistakes_are_counted_but_only_some_are_shown(tmp_path):
    rows = [{"sentence": f"text {n}", "label": "good"} for n in range(120)] + [
        {"sentence": "x", "label": "bad"}
    ]
    wrong = {kind: {"validation": ["bad"] * 121} for kind in (BEFORE, AFTER)}
    shown = page(make_run(tmp_path / "run", "classification", rows, wrong, ("bad", "good")))
    [title, *items], *_ = shown.groups
    assert title == "good → bad 120 50 of them shown"
    assert items == [f"text {n * 120 // 50}" for n in range(50)]  # evenly spaced
    assert "validation, 121 rows" in shown.text and "matthews" in shown.text


def test_several_runs_are_compared_on_one_page(tmp_path):
    runs = tagger(tmp_path / "one"), answerer(tmp_path / "two")
    shown = page(*runs, "--out", tmp_path / "both.html")
    header, first, second = shown.tables[0]
    assert header == ["run", "metric", "validation", "test", "trained parameters", "seconds"]
    assert (
        first[:2] == [f"{tmp_path}/onetagging, lora", "typed f1"]
        and second[0] == f"{tmp_path}/twoclassification, lora"
    )
    assert first[2].startswith("0.333") and second[3].startswith("0.400")
    assert first[4:] == ["0.02 %", "61"]
    links = [attributes["href"][1:] for tag, attributes in shown.elements if tag == "a"]
    assert links == [
        attributes["id"]
        for tag, attributes in shown.elements
        if tag == "article" and "id" in attributes
    ]
    assert not (tmp_path / "one" / "report.html").exists()


def test_the_newest_run_is_shown_by_default(tmp_path):
    tagger(tmp_path / "runs" / "tagging-lora")
    report.main([])
    assert (tmp_path / "runs" / "tagging-lora" / "report.html").is_file()


# ---- Safety


def test_the_page_loads_no_other_files(tmp_path):
    run = tagger(tmp_path / "run")
    elements = page(run).elements
    assert {tag for tag, _ in elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "form", "base"}
    )
    for _, attributes in elements:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
        assert all(
            attributes[name].startswith("#")
            for name in ("href", "xlink:href")
            if name in attributes
        )
    policy = [attributes["content"] for _, attributes in elements if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not re.search(r"@import|url\((?!#)", (run / "report.html").read_text())


def test_text_from_files_is_never_html(tmp_path):
    """The text is in rows, labels, flags, names of splits, kinds and scores, warnings, versions,
    and in the name of the folder."""
    labels = ("O", "B-" + EVIL)
    rows = [
        {"tokens": [EVIL, "b"], "tags": [labels[1], "O"]},
        {"tokens": ["c", EVIL], "tags": ["O", "O"]},
    ]
    predicted = [["O", labels[1]], [labels[1], "O"]]
    plain = "te<evil>st"
    splits = {
        kind: {"validation": predicted, plain: predicted, "test": predicted}
        for kind in (BEFORE, AFTER, PredictionKind(plain))
    }
    names = (
        "model",
        "data",
        "protocol",
        "seed",
        "threads",
        "processes",
        "device",
        "precision",
        "commit",
        "finished",
        "kept_epoch",
    )
    changes = {name: EVIL for name in names} | {"warnings": [EVIL], "versions": {EVIL: EVIL}}
    changes["base"] = {"fingerprint": EVIL, "parameters": 5}
    epochs = [
        {**line, "validation": {EVIL.strip("\0"): 0.5, "$x": 0.1, "_y": 0.2}} for line in EPOCHS
    ]
    folder = tmp_path / "<evil>&$body"
    flags = {"data": EVIL, "model": EVIL, "prompt_text": None}
    run = make_run(folder, "tagging", rows, splits, labels, changes, (*STEPS, *epochs), **flags)
    shown = page(run)
    expected = page(tagger(tmp_path / "plain"))
    assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in expected.elements}
    assert {name for _, attributes in shown.elements for name in attributes} <= {
        name for _, attributes in expected.elements for name in attributes
    }
    assert shown.text.count(" ".join(EVIL.split())) >= len(names) + 8
    assert shown.text.startswith(f"neo_peft report: {folder}")
    # JSON can contain a character that UTF-8 cannot encode. It is shown as a question mark.
    assert (
        "half of a pair: ?"
        in page(tagger(tmp_path / "half", changes={"warnings": ["half of a pair: \ud800"]})).text
    )


# ---- Refusals


def refused(capsys, *argv) -> str:
    """Run a command that fails. Return its error message, which is one line. No file is written."""
    before = sorted(Path().rglob("*"))
    try:
        status = exit_status(lambda: report.main([str(word) for word in argv]))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, sorted(Path().rglob("*"))) == (2, "", before) and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip()


def test_bad_folders_and_bad_output_files_are_refused(tmp_path, capsys):
    run = tagger(tmp_path / "run")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "settings.json").write_text("{}")
    assert (
        refused(capsys, "one", "two")
        == "several runs need --out FILE for the page that compares them; see --help"
    )
    assert refused(capsys, "none") == "none has no run.json: a report needs finished runs"
    assert refused(capsys, tmp_path).endswith(
        f"a report needs finished runs; name runs inside it, such as {run}"
    )
    assert refused(capsys, unfinished).startswith(
        f"{unfinished} is a run that is not finished; resume it: python -m neo_peft train"
    )
    assert refused(capsys, run, unfinished, "--out", "x.html").startswith(
        f"{unfinished} is a run that is not finished"
    )
    assert refused(capsys).startswith("there is no finished run in runs/")
    assert (
        refused(capsys, run, "--out", "no/x.html")
        == f"{tmp_path}/no is no folder; make it first, or name another"
    )
    message = (
        f"{run}/run.json exists and is not a report, so it is not replaced; name another --out"
    )
    assert refused(capsys, run, "--out", f"{run}/run.json") == message
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    assert refused(capsys, run, "--out", "mine.html").startswith(
        "mine.html exists and is not a report"
    )
    assert (
        refused(capsys, run, "--out", "run")
        == f"{run} is no plain file, and is not replaced by one; name a file"
    )
    assert refused(capsys, run, "--out", " ") == "argument --out: is empty; see --help"


def test_a_damaged_run_is_refused(tmp_path, capsys):
    run = tagger(tmp_path / "run")
    for name in ("metrics.jsonl", "timings.jsonl", "predictions/after-test.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-9])
        assert refused(capsys, run) == f"{run / name} was changed since the run: its sha256 differs"
        (run / name).unlink()
        assert refused(capsys, run).startswith(f"{run / name}")
        (run / name).write_bytes(content)
    (run / "adapter_model.safetensors").unlink()
    assert refused(capsys, run) == f"{run}/adapter_model.safetensors: No such file or directory"
    (run / "run.json").write_text((run / "run.json").read_text().replace("lora", "Lora", 1))
    assert refused(capsys, run).startswith(
        f"{run}/run.json was changed since it was written, or cut short"
    )


def test_a_record_with_wrong_values_is_shown_or_refused(tmp_path, capsys, monkeypatch):
    """Each field of run.json is left out or has another value, with a correct checksum. The command
    writes a page, or raises InputError."""
    monkeypatch.setattr(analysis, "as_svg", lambda draw, *_: "<svg></svg>")
    run = tagger(tmp_path / "run")
    record, shown, messages = read_checked_json(run / "run.json"), 0, {}
    for name in record:
        for value in ("left out", None, "x", -1, 1e999, [], {"x": "x"}, {"after": {}}):
            damaged = {
                key: value if key == name else old
                for key, old in record.items()
                if (key, value) != (name, "left out")
            }
            write_record(run, damaged)
            try:
                report.main([str(run)])
                shown += 1
            except InputError as error:
                messages[name, str(value)] = str(error)
    assert (
        messages["scores", "left out"] == f"{run} has no valid results of a run: KeyError, 'scores'"
    )
    assert messages["seconds", "x"].startswith(
        f"{run} has no valid results of a run: ValueError, Unknown format code"
    )
    assert shown > 50 and len(messages) > 100


@pytest.mark.parametrize(
    "line", [{}, 1, {"step": 1, "seconds": "x", "tokens": 1}, {"step": 9}], ids=str
)
def test_invalid_lines_of_timings_are_refused(tmp_path, capsys, line):
    run = tagger(tmp_path / "run", times=[line, line])
    assert refused(capsys, run).startswith(f"{run} has no valid results of a run: ")
