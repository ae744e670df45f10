"""predict --file: tables and words in columns; --format: what is printed."""

import csv
import io
import json
import sys

import pytest
import torch
from refusals import shown

from neo_peft.commands import predict
from neo_peft.formats.adapter import save_adapter
from neo_peft.runs.folder import write_record
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

SENTENCES = ["Profit rose , then fell .", 'It said : " no "', "Sales\nfell", "Net loss ; EUR 5 mn"]
WORDS = [
    ["The", "IL-2", "gene", "."],
    ["T", "cells", "express", "NF-kappa", "B"],
    ["#1", "of", "3"],
]


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """Return the folders of two runs, with weights that are not the initial ones, by task."""
    folders = {}
    for task, method in (("ner", "lora"), ("sentiment", "lora"), ("similarity", "head")):
        flags = {"task": task, "method": method, "model": str(tiny_folder), "threads": 1}
        settings = make_settings(**flags)
        tuned = load_untuned(settings, with_method=True)
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in tuned.model.trainable().values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folders[task] = tmp_path_factory.mktemp("runs") / task
        save_adapter(folders[task], tuned.model, settings)
        record = {"task": task, "labels": list(TASKS[task].labels), "flags": flags}
        write_record(folders[task], {**record, "base": tuned.base.record(), "files": {}})
    return folders


@pytest.fixture
def run(capsys, runs, tmp_path):
    """Return a function that predicts a file. It returns status, standard output and error."""

    def predict_file(task, name, text, *flags):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        argv = ["--run", str(runs[task]), "--file", str(tmp_path / name), *flags]
        status = exit_status(lambda: predict.main(argv))
        out, err = capsys.readouterr()
        return status, out, shown(err)

    return predict_file


def json_rows(out):
    return [json.loads(line) for line in out.splitlines()]


def expected_labels(run):
    """Return the predictions for the sentences as JSON rows."""
    lines = "".join(json.dumps({"sentence": text}) + "\n" for text in SENTENCES)
    return [row["predicted"] for row in json_rows(run("sentiment", "a.jsonl", lines, "--jsonl")[1])]


@pytest.mark.parametrize("mark, suffix", [(",", ".csv"), (";", ".csv"), ("\t", ".tsv")])
def test_a_table_is_read_as_its_columns(run, mark, suffix):
    file = io.StringIO()
    rows = [[index, text, "x"] for index, text in enumerate(SENTENCES)]
    csv.writer(file, delimiter=mark).writerows([["id", "review", "source"], *rows])
    status, out, err = run("sentiment", f"a{suffix}", file.getvalue())
    found = json_rows(out)
    assert status == 0, err
    assert [row["predicted"] for row in found] == expected_labels(run)
    assert [row["sentence"] for row in found] == SENTENCES
    assert [row["id"] for row in found] == ["0", "1", "2", "3"]
    assert [row["line"] for row in found] == [2, 3, 4, 6]  # the third one has two lines
    assert "review" not in found[0] and found[0]["source"] == "x"


def test_a_table_in_and_a_table_out_keep_all_columns(run):
    text = 'id,text,stars\n7,"Profit rose , ""sharply"" .",5\n\n8,"a\nb",1\n'
    status, out, _ = run("sentiment", "a.csv", text, "--format", "csv")
    found = list(csv.reader(io.StringIO(out, newline="")))
    assert status == 0 and found[0] == ["id", "text", "stars", "predicted", "probability"]
    assert [row[:3] for row in found[1:]] == [
        ["7", 'Profit rose , "sharply" .', "5"], ["8", "a\nb", "1"]
    ]  # fmt: skip
    rows = json_rows(run("sentiment", "a.csv", text)[1])
    for line, row in zip(found[1:], rows, strict=True):
        assert line[3] == row["predicted"] and float(line[4]) == max(row["probabilities"].values())


def test_a_wrong_record_of_a_table_is_named_and_the_others_are_predicted(run):
    text = "text,id\nProfit rose .,1\ntoo,many,columns\n   ,3\nSales fell .,4\n"
    status, out, err = run("sentiment", "a.csv", text)
    assert status == 2 and [row["line"] for row in json_rows(out)] == [2, 5]
    assert "line 3: 3 columns in 'too,many,columns'; expected 2, as in the heading" in err
    assert "line 4: 'sentence' is '   ', empty" in err
    status, out, err = run("sentiment", "a.csv", 'text\nfirst\n"not closed\n')
    assert status == 2 and "line 3: a wrong quote" in err


def test_the_columns_of_a_table_are_found_or_named(run):
    text = "headline,body\nProfit rose .,Sales fell .\n"
    status, out, err = run("sentiment", "a.csv", text)
    assert status == 2 and not out
    assert "no column is the text; the columns are headline, body" in err
    for given in ("text=body", "sentence=body", "text=body,label=headline"):
        status, out, _ = run("sentiment", "a.csv", text, "--columns", given)
        assert status == 0 and json_rows(out)[0]["sentence"] == "Sales fell ."
    status, _, err = run("sentiment", "a.txt", text, "--columns", "text=2")
    assert status == 2 and "--columns needs --jsonl, or a --file that is a table" in err


def test_a_table_of_pairs(run):
    lines = "Sales rose .\tSales fell .\nHe left .\tHe went .\n"
    table = "id,sentence_b,premise\n1,Sales fell .,Sales rose .\n2,He went .,He left .\n"
    plain, found = (
        [row["predicted"] for row in json_rows(run("similarity", name, text)[1])]
        for name, text in (("a.txt", lines), ("a.csv", table))
    )
    assert plain == found and len(found) == 2


def conll(columns):
    return "\n".join("".join(" ".join(word) + "\n" for word in sentence) for sentence in columns)


def test_words_in_columns_get_the_tags_of_their_sentences(run):
    rows = "".join(json.dumps({"tokens": words}) + "\n" for words in WORDS)
    expected = json_rows(run("ner", "a.jsonl", rows, "--jsonl")[1])
    text = conll([[[word, "X", "O"] for word in words] for words in WORDS])
    text = f"# a comment\n-DOCSTART- -X- O\n\n{text}"
    for name in ("a.conll", "a.bio", "a.tsv"):
        status, out, err = run("ner", name, text if name != "a.tsv" else text.replace(" ", "\t"))
        found = json_rows(out)
        assert status == 0, err
        assert [row["tokens"] for row in found] == WORDS
        for row, same in zip(found, expected, strict=True):
            assert (row["predicted"], row["spans"]) == (same["predicted"], same["spans"])
        assert [row["line"] for row in found] == [4, 9, 15]
        assert "lines that start with # and are comments: 1" in err


def test_words_out_have_their_given_columns_and_the_tag(run):
    text = conll([[[word, "O"] for word in words] for words in WORDS])
    status, out, _ = run("ner", "a.conll", text, "--format", "conll")
    tags = [row["predicted"] for row in json_rows(run("ner", "a.conll", text)[1])]
    both = zip(WORDS, tags, strict=True)
    blocks = ("".join(f"{word}\tO\t{tag}\n" for word, tag in zip(*pair)) for pair in both)
    assert status == 0 and out == "\n".join(blocks) + "\n"
    # words alone, one a line; and lines of text, which are split into words
    status, alone, _ = run("ner", "a.conll", text.replace(" O", ""), "--format", "conll")
    assert status == 0 and alone == out.replace("\tO\t", "\t")
    _, of_text, _ = run("ner", "a.txt", "The IL-2 gene.\n", "--format", "conll")
    assert [line.split("\t")[0] for line in of_text.splitlines()] == [
        "The",
        "IL-2",
        "gene",
        ".",
        "",
    ]


def test_the_column_of_words_can_be_counted_or_named(run):
    counted = conll([[[str(i), word, "O"] for i, word in enumerate(w, 1)] for w in WORDS])
    for text, flags in (
        (counted, []),
        (conll([[["O", word] for word in words] for words in WORDS]), ["--columns", "tokens=2"]),
        ("word tag\n" + conll([[[w, "O"] for w in s] for s in WORDS]), []),
    ):
        status, out, err = run("ner", "a.conll", text, *flags)
        assert status == 0, err
        assert [row["tokens"] for row in json_rows(out)] == WORDS


def test_a_sentence_with_a_wrong_line_is_named_and_the_others_are_predicted(run):
    status, out, err = run("ner", "a.conll", "a O\nb O\n\nc\nd O\n\n\n \t\ne O\n")
    assert status == 2 and [row["line"] for row in json_rows(out)] == [1, 9]
    assert "line 4: word 1 has 1 columns, 'c'; expected 2, as in the first line" in err


def test_a_table_with_texts_to_tag_has_the_positions_in_the_text(run):
    text = "The IL-2 gene, and T cells."
    status, out, err = run("ner", "a.csv", f'id,text\n1,"{text}"\n')
    assert status == 0, err
    (row,), (plain,) = json_rows(out), json_rows(run("ner", "a.txt", text + "\n")[1])
    assert row["spans"] == plain["spans"] and row["tokens"] == plain["tokens"] and row["spans"]
    for tokens in ("The IL-2 gene", '"[""The"", ""IL-2"", ""gene""]"'):
        status, out, _ = run("ner", "a.csv", f"tokens\n{tokens}\n")
        assert status == 0 and json_rows(out)[0]["tokens"] == ["The", "IL-2", "gene"]


def test_latin_1_is_said_and_utf_16_is_refused(run):
    status, out, err = run("sentiment", "a.csv", "text\nCafé .\n".encode("latin-1"))
    assert status == 0 and json_rows(out)[0]["sentence"] == "Café ."
    assert "note    a.csv: not utf-8, so it was read as Latin-1" in err
    status, out, err = run("sentiment", "a.csv", "text\nCafé .\n".encode("utf-16"))
    assert status == 2 and not out and "UTF-16" in err


@pytest.mark.parametrize("text", ["", "\n\n", "text\n"])
def test_a_file_without_rows_prints_nothing(run, text):
    for name in ("a.csv", "a.tsv"):
        assert run("sentiment", name, text)[:2] == (0, "")
    assert run("ner", "a.conll", text.replace("text", "word tag"))[:2] == (0, "")


def test_text_has_colours_on_a_terminal_only(run, monkeypatch):
    status, out, _ = run("sentiment", "a.txt", "Profit rose .\n", "--format", "text")
    label, probability, text = out.strip().split(maxsplit=2)
    assert label in TASKS["sentiment"].labels and text == "Profit rose ."
    _, tagged, _ = run("ner", "a.txt", "The IL-2 gene .\n", "--format", "text")
    assert "\033" not in out + tagged and "IL-2" in tagged
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\033" in run("sentiment", "a.txt", "Profit rose .\n", "--format", "text")[1]


def test_a_format_without_a_place_for_the_predictions_is_refused(run, capsys):
    status, out, err = run("sentiment", "a.txt", "a\n", "--format", "conll")
    assert status == 2 and not out and "it needs a tagging task" in err
    status, out, err = run("ner", "a.txt", "a\n", "--format", "csv")
    assert status == 2 and not out and "it needs one run that labels" in err
    with pytest.raises(SystemExit, match="2"):
        run("ner", "a.txt", "a\n", "--format", "conll", "--json")
    assert "--json and --format conll differ" in capsys.readouterr().err


# ---- Odd tables and rows


@pytest.mark.parametrize(
    "table", ['id,text\n1,"The IL-2 gene."\n', "tokens,starts\nThe IL-2 gene .,x\n"]
)
def test_a_table_to_tag_is_written_as_words(run, table):
    status, out, err = run("ner", "a.csv", table, "--format", "conll")
    assert status == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()] == ["The", "IL-2", "gene", ".", ""]
    status, out, err = run("ner", "a.csv", table)
    assert status == 0, err
    (row,) = json_rows(out)
    assert row["spans"]
    assert all(("start" in span) == ("text" in row) for span in row["spans"])


def test_a_table_with_a_word_in_each_row_is_refused(run):
    status, out, err = run("ner", "a.csv", "sentence_id,token\n1,The\n1,IL-2\n2,Yes\n")
    assert status == 2 and not out and "each row has one word; write a .conll file" in err
    status, out, _ = run("ner", "a.csv", "sentence_id,tokens\n1,The IL-2 gene\n2,Yes it is\n")
    assert status == 0 and json_rows(out)[0]["tokens"] == ["The", "IL-2", "gene"]


def test_columns_by_number_read_the_first_line_as_a_row(run):
    text = '3,"Sales fell ."\n1,"Sales rose ."\n'
    status, out, err = run("sentiment", "a.csv", text, "--columns", "text=2")
    assert status == 0 and [row["sentence"] for row in json_rows(out)] == [
        "Sales fell .",
        "Sales rose .",
    ]
    assert "columns are given by number, so its first line is a row" in err


def test_of_a_pair_one_column_can_be_given_by_number(run):
    text = "one,sentence2\nSales rose .,Sales fell .\n"
    status, out, err = run("similarity", "a.csv", text, "--columns", "sentence1=one")
    assert status == 0 and json_rows(out)[0]["sentence1"] == "Sales rose .", err
    status, out, err = run("similarity", "a.csv", text, "--columns", "sentence1=1")
    assert status == 0 and len(json_rows(out)) == 1, err  # the other one's name is in the heading
    status, out, err = run("ner", "a.csv", "sentence_id,tokens\n")
    assert (status, out) == (0, "")


def test_json_rows_have_the_usual_names_too(run):
    lines = '{"review": "Sales fell .", "stars": 3}\n'
    status, out, err = run("sentiment", "a.jsonl", lines, "--jsonl")
    assert status == 0, err
    assert json_rows(out)[0]["sentence"] == "Sales fell ." and json_rows(out)[0]["stars"] == 3
    status, out, _ = run(
        "sentiment", "a.jsonl", '{"b": "Sales fell ."}\n', "--jsonl", "--columns", "text=b"
    )
    assert status == 0 and json_rows(out)[0]["sentence"] == "Sales fell ."
    doccano = '{"text": "The IL-2 gene.", "label": [[4, 8, "DNA"]]}\n'
    status, out, err = run("ner", "a.jsonl", doccano, "--jsonl")
    assert status == 0 and json_rows(out)[0]["tokens"] == ["The", "IL-2", "gene", "."], err
    status, out, err = run("sentiment", "a.jsonl", lines)
    assert status == 2 and not out and "is a JSON row, not a text; add --jsonl" in err


def test_a_list_without_commas_is_refused(run):
    status, out, err = run("ner", "a.csv", "tokens\n\"['Take' 'two' 'aspirin']\"\n")
    assert status == 2 and not out and "is no list such as" in err


def test_windows_quotes_are_read(run):
    status, out, err = run("sentiment", "a.csv", "text\nit’s “fine” – really\n".encode("cp1252"))
    assert status == 0 and json_rows(out)[0]["sentence"] == "it’s “fine” – really"
    assert "not utf-8, so it was read as Windows-1252" in err


def test_blank_lines_before_the_heading_are_passed_over(run):
    status, out, _ = run("sentiment", "a.csv", "\n\ntext,id\nSales fell .,1\n")
    (row,) = json_rows(out)
    assert status == 0 and (row["sentence"], row["line"]) == ("Sales fell .", 4)


def test_a_word_that_was_cut_has_an_underscore(run):
    words = " ".join(["IL-2"] * 200)
    flags = ("--truncate", "end", "--format", "conll")
    status, out, err = run("ner", "a.txt", words + "\n", *flags)
    tags = [line.split("\t")[1] for line in out.splitlines() if line]
    used = int(err.split("line 1: cut to 128 tokens; ")[1].split()[0])
    assert status == 0 and len(tags) == 200 and used < 200
    assert {*tags[used:]} == {"_"} and "_" not in tags[:used]
