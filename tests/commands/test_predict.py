"""Predicting new text: rows from lines, positions of words, probabilities, bad lines, streaming."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from base_files import with_pad_token
from clock import Clock, right_within_a_quarter, seconds_left
from refusals import shown
from trained import make_run
from transformers import GPTNeoForCausalLM
from waiting import HANG

from neo_peft.commands import file_bar, predict
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.formats.adapter import save_adapter
from neo_peft.model import TunedModel
from neo_peft.runs.folder import write_record
from neo_peft.runs.loading import load, load_untuned
from neo_peft.settings import make_settings
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

ROOT = Path(__file__).parents[2]
FLAGS = {
    "ner": ("ner", "lora"),
    "sentiment": ("sentiment", "prompt"),
    "similarity": ("similarity", "head"),
}


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """Write a run for each task, with weights that are not the initial ones. Return the folders."""
    folders = {}
    for task, method in FLAGS.values():
        settings = make_settings(task=task, method=method, model=str(tiny_folder), threads=1)
        tuned = load_untuned(settings, with_method=True)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in tuned.model.trainable().values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = folders[task] = tmp_path_factory.mktemp("runs") / task
        save_adapter(folder, tuned.model, settings)
        flags = {"task": task, "method": method, "model": str(tiny_folder), "threads": 1}
        base = tuned.base.record()
        labels = list(TASKS[task].labels)
        write_record(
            folder, {"task": task, "labels": labels, "flags": flags, "base": base, "files": {}}
        )
    return folders


@pytest.fixture
def run_predict(capsys, monkeypatch, tmp_path_factory):
    """Return a function that runs the command with some standard input.

    It returns the exit status, the printed JSON lines and the standard error.
    """

    path = tmp_path_factory.mktemp("input") / "stdin"

    def run(*argv: str, stdin: bytes = b"") -> tuple[int, list[dict], str]:
        path.write_bytes(stdin)
        with open(path) as file:
            monkeypatch.setattr(sys, "stdin", file)
            status = exit_status(lambda: predict.main(argv))
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], shown(err)

    return run


def test_predictions_are_those_of_evaluate(adapters, run_predict):
    """For every batch size. The labels and other fields of the rows are printed as they are."""
    for task, folder in adapters.items():
        rows = load_splits(TASKS[task], "sample").test[:7]
        lines = "".join(json.dumps({**row, "id": index}) + "\n" for index, row in enumerate(rows))
        tuned = load(folder)
        evaluation = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows))
        expected = evaluation.predicted
        assert len({str(prediction) for prediction in expected}) > 1
        for size in ("1", "3", "50"):
            status, printed, _ = run_predict(
                "--run", str(folder), "--jsonl", "--batch-size", size, stdin=lines.encode()
            )
            assert status == 0 and [line["predicted"] for line in printed] == expected
            assert [line["line"] for line in printed] == list(range(1, 8))
            assert all(
                line.items() >= {**row, "id": index}.items()
                for index, (line, row) in enumerate(zip(printed, rows))
            )


def test_probabilities_of_labels_are_those_of_the_language_model(
    adapters, run_predict, tiny_folder
):
    """Transformers, with the prompt before the text, gives the same softmax over the labels' first
    tokens."""
    _, printed, _ = run_predict(
        "--run", str(adapters["sentiment"]), "Profit rose sharply .", "The plant is in Oulu ."
    )
    tuned, oracle = (
        load(adapters["sentiment"]),
        GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32),
    )
    first_tokens = [
        tuned.encoder.tokenizer(f" {label}")["input_ids"][0] for label in TASKS["sentiment"].labels
    ]
    assert len(set(first_tokens)) == 3
    for line in printed:
        ids = torch.tensor(
            tuned.encoder.tokenizer(f"Sentence : {line['sentence']} Label :")["input_ids"]
        )
        embeddings = torch.cat(
            [tuned.model.prompt.embeddings.detach(), oracle.transformer.wte(ids)]
        )[None]
        with torch.no_grad():
            expected = (
                oracle(inputs_embeds=embeddings).logits[0, -1, first_tokens].softmax(0).tolist()
            )
        assert list(line["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
        assert line["predicted"] == max(line["probabilities"], key=line["probabilities"].get)


def test_labels_that_share_a_first_token_share_its_probability(tiny_folder):
    """Its probability is divided in proportion to the probabilities of the whole label texts, each
    with its end token. The prediction is the label with the highest probability."""
    tuned = load_untuned(
        make_settings(task="sentiment", method="lora", model=str(tiny_folder)), with_method=True
    )
    # the cached property of the encoder, which is frozen
    vars(tuned.encoder)["label_tokens"] = {
        "negative": [50, 93, 0],
        "neutral": [50, 94, 0],
        "positive": [119, 0],
    }
    rows = load_splits(TASKS["sentiment"], "sample").test[:6]
    unlabelled = [{"sentence": row["sentence"]} for row in rows]
    evaluation = evaluate(tuned.model, tuned.encoder, tuned.encoder(unlabelled), batch_size=4)
    oracle = GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    disagreeing = 0  # rows where the best first token is not that of the best label
    for row, label, probabilities in zip(
        rows, evaluation.predicted, evaluation.probabilities, strict=True
    ):
        ids = tuned.encoder.tokenizer(f"Sentence : {row['sentence']} Label :")["input_ids"]

        def log_probability(label_tokens, ids=ids):
            log_p = (
                oracle(torch.tensor([ids + label_tokens]))
                .logits[0, len(ids) - 1 : -1]
                .detach()
                .log_softmax(1)
            )
            return float(log_p.gather(1, torch.tensor(label_tokens)[:, None]).sum())

        negative, neutral = log_probability([50, 93, 0]), log_probability([50, 94, 0])
        logits = oracle(torch.tensor([ids])).logits[0, -1].detach()
        shared, positive = logits[[50, 119]].softmax(0).tolist()
        share = 1 / (1 + math.exp(neutral - negative))
        assert probabilities == pytest.approx(
            [shared * share, shared * (1 - share), positive], abs=1e-4
        )
        expected = {
            "negative": shared * share,
            "neutral": shared * (1 - share),
            "positive": positive,
        }
        assert label == max(expected, key=expected.get)
        disagreeing += shared > positive > max(shared * share, shared * (1 - share))
    assert disagreeing


def test_spans_have_positions_and_the_product_of_their_tags_probabilities(adapters, run_predict):
    text = "The IL-2 promoter (in Jurkat T cells) binds NF-kappa B."
    _, [line], _ = run_predict(str(adapters["ner"]), text)
    tuned = load(adapters["ner"])
    examples = tuned.encoder([{"tokens": line["tokens"]}])
    ids, indices = torch.tensor(examples.ids[None]), torch.tensor(examples.target_indices)
    with torch.no_grad():
        from neo_peft.packing import Packing

        hidden = tuned.model.transformer(
            tuned.model.transformer.embed(ids[0]), Packing.of_texts(torch.tensor([ids.numel()]))
        )
        probabilities = tuned.model.head(hidden[indices]).softmax(1)
    labels = TASKS["ner"].labels
    chosen = [labels.index(tag) for tag in line["predicted"]]
    assert line["spans"] and "starts" not in line
    for span in line["spans"]:
        words = range(span["first"], span["last"] + 1)
        assert span["text"] == text[span["start"] : span["end"]]
        assert span["text"].replace(" ", "") == "".join(line["tokens"][i] for i in words)
        product = np.prod([float(probabilities[i, chosen[i]]) for i in words])
        assert span["probability"] == pytest.approx(product, abs=1e-4)


def test_a_bad_line_is_named_and_the_others_are_predicted(adapters, run_predict, tmp_path):
    status, printed, errors = run_predict(
        "--run", str(adapters["sentiment"]), stdin=b"Up .\n\n\xff\xfe\nDown .\r\nflat"
    )
    assert status == 2 and [(line["line"], line["sentence"]) for line in printed] == [
        (1, "Up ."),
        (4, "Down ."),
        (5, "flat"),
    ]
    assert "line 2" not in errors and "note    blank lines, passed over: 1\n" in errors
    assert "line 3: not utf-8; save the text as utf-8\n" in errors
    assert errors.endswith("error: 1 of the lines could not be used and have no prediction\n")
    (tmp_path / "pairs.txt").write_text("one\tother\nalone\na\tb\tc\n \tb\nthis\tthat\n")
    status, printed, errors = run_predict(
        "--run", str(adapters["similarity"]), "--file", "pairs.txt"
    )
    assert status == 2 and [line["line"] for line in printed] == [1, 5]
    assert printed[1]["sentence1"] == "this" and sum(
        printed[1]["probabilities"].values()
    ) == pytest.approx(1, abs=2e-4)
    assert "line 2: 1 parts in 'alone'; expected 2 sentences separated by tabs" in errors
    assert "line 3: 3 parts" in errors and "line 4: " in errors


def test_text_can_follow_flags_and_a_byte_order_mark_is_removed(adapters, run_predict, tmp_path):
    run = str(adapters["sentiment"])
    status, [line], _ = run_predict(run, "--threads", "1", "Up / down .")
    assert status == 0 and line["sentence"] == "Up / down ."
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"sentence": "Up ."}\n')
    (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbfUp .\n")
    for flags in (["--file", "rows.jsonl", "--jsonl"], ["--file", "rows.txt"]):
        status, [line], _ = run_predict("--run", run, *flags)
        assert status == 0 and line["sentence"] == "Up ."


@pytest.mark.parametrize(
    "blank", ["\n", "   \n", "\t\r\n", "\u00a0\n", "\f\n", "\ufeff\n", "\u2028\n"]
)
def test_a_blank_line_of_a_file_is_passed_over_and_a_blank_argument_is_refused(
    adapters, run_predict, tmp_path, blank
):
    (tmp_path / "rows.txt").write_bytes(f"Up .\n{blank}Down .\n".encode())
    (tmp_path / "rows.jsonl").write_bytes(f'{{"sentence": "Up ."}}\n{blank}'.encode())
    run = ["--run", str(adapters["sentiment"])]
    for flags, numbers in (
        (["--file", "rows.txt"], [1, 3]),
        (["--file", "rows.jsonl", "--jsonl"], [1]),
    ):
        status, printed, errors = run_predict(*run, *flags)
        assert (status, [line["line"] for line in printed]) == (0, numbers)
        assert errors.splitlines()[-1] == "note    blank lines, passed over: 1"
        assert "line 2" not in errors
    status, [line], errors = run_predict(*run, "Up .", blank.rstrip("\n"))
    assert (status, line["line"]) == (2, 1)
    assert "line 2: the line is empty; expected an example\n" in errors


def test_a_text_that_the_model_cannot_take_is_named_and_the_others_are_predicted(
    adapters, run_predict, tiny_folder, tmp_path
):
    """[PAD] is a token of the tokenizer, but not of the model. With several runs too."""
    base = with_pad_token(tiny_folder, tmp_path / "base")
    made = {
        name: make_run(tmp_path / name, base, task, "lora")
        for name, task in (("ner", "ner"), ("news", "sentiment"))
    }
    (tmp_path / "three.txt").write_text("it was nice\nit [PAD] was nice\n\nit was bad\n")
    news = ["--run", str(made["news"])]
    status, printed, errors = run_predict(*news, "--file", "three.txt")
    assert (status, [line["line"] for line in printed]) == (2, [1, 4])
    assert "line 2: '[PAD]' is token 8192; the model has 8192 tokens: remove it\n" in errors
    assert errors.endswith("1 of the lines could not be used and have no prediction\n")
    for line, text in zip(printed, ("it was nice", "it was bad"), strict=True):
        [alone] = run_predict(*news, text)[1]
        assert line["sentence"] == text and line["predicted"] == alone["predicted"]
    rows = [
        {"run": "ner", "tokens": ["IL-2", "[PAD]"]},
        {"run": "news", "sentence": "Up ."},
        {"run": "ner", "tokens": ["IL-2"]},
        {"run": "news", "sentence": "Up [PAD]."},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    status, printed, errors = run_predict(*map(str, made.values()), "--jsonl", stdin=lines)
    assert (status, [line["line"] for line in printed]) == (2, [2, 3])
    assert [line.split(":")[0] for line in errors.splitlines()[:2]] == ["line 1", "line 4"]


def test_unusual_lines_do_not_end_the_command(adapters, run_predict):
    """NUL, U+2028, half of a surrogate pair in another field, and a line of a megabyte."""
    rows = [
        {"sentence": "Up \0 ."},
        {"sentence": "Up \u2028 ."},
        {"sentence": "Up .", "id": "\ud83d"},
        {"sentence": "Up \ud83d ."},
        {"sentence": "Up " * 350_000},
        {"sentence": "Up .", "cut": 7, "more": [["\u2028"]]},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    run = ["--run", str(adapters["sentiment"])]
    status, printed, errors = run_predict(*run, "--jsonl", stdin=lines)
    assert status == 2 and [line.pop("line") for line in printed] == [1, 2, 3, 5, 6]
    assert "line 4: 'sentence' is 'Up \\ud83d .', empty or not valid text; expected" in errors
    for row, line in zip(rows[:3] + rows[4:], printed, strict=True):
        assert line.items() >= (row | {"cut": line.get("cut")} if "cut" in line else row).items()
    assert "cut" not in printed[0] and 0 < printed[3]["cut"]["sentence"] < 1000
    assert printed[4]["cut"] is None  # the row's own field does not look like a cut
    text = b"Up \0 .\nUp \xe2\x80\xa8 .\nUp \xed\xa0\xbd .\nUp .\n"
    status, printed, errors = run_predict(*run, stdin=text)
    assert status == 2 and [line["sentence"] for line in printed] == [
        "Up \0 .",
        "Up \u2028 .",
        "Up .",
    ]
    assert "line 3: not utf-8; save the text as utf-8\n" in errors


def test_fields_of_a_json_row_with_our_own_names_are_printed_as_they_are(adapters, run_predict):
    """`starts` and `text` once were taken for the positions of the words in a text."""
    row = {"tokens": ["The", "IL-2", "gene"], "starts": "no", "text": ["x"]}
    run = ["--run", str(adapters["ner"]), "--jsonl"]
    _, [plain], _ = run_predict(*run, stdin=json.dumps({"tokens": row["tokens"]}).encode())
    status, [line], _ = run_predict(*run, stdin=json.dumps(row).encode())
    assert plain["spans"] and (status, line) == (0, plain | row)


def test_words_after_the_cut_of_a_long_text_have_no_tag(adapters, run_predict):
    """The tags of the others are those of the shorter text. The line is named."""
    run, text = str(adapters["ner"]), "IL-2 gene " * 200
    status, [short, line], errors = run_predict("--run", run, "IL-2 gene", text)
    used = line["cut"]
    per_word = [
        len(load(adapters["ner"]).encoder.tokenizer(" " + w)["input_ids"]) for w in ("IL-2", "gene")
    ]
    whole, rest = divmod(128, sum(per_word))
    assert status == 0 and used == 2 * whole + (rest > 0) + (rest > per_word[0])
    assert len(line["predicted"]) == 400 and line["predicted"][used:] == [None] * (400 - used)
    assert max(span["last"] for span in line["spans"]) < used
    _, [cut], _ = run_predict("--run", run, " ".join(line["tokens"][:used]))
    assert cut["predicted"] == line["predicted"][:used] and cut["spans"] == line["spans"]
    assert "cut" not in short
    assert f"note    line 2: cut to 128 tokens; {used} of 400 words have a tag\n" in errors
    assert errors.endswith("note    1 text was cut to 128 tokens, at the end\n")


def test_a_text_of_any_length_is_tagged_whole(adapters, run_predict):
    """The run is from before there were windows; `--stride` asks for them."""
    run, text = str(adapters["ner"]), "IL-2 gene " * 200
    status, [line], errors = run_predict("--run", run, "--stride", "16", text)
    assert status == 0 and len(line["predicted"]) == 400 and None not in line["predicted"]
    assert "cut" not in line and "cut" not in errors
    assert max(span["end"] for span in line["spans"]) > 1900


def test_a_long_sentence_has_the_number_of_characters_that_were_used(adapters, run_predict):
    """They are the text of the tokens that fit, as transformers decodes them."""
    text, other = "Profit rose sharply , " * 60, "It fell ."
    _, [line], errors = run_predict("--run", str(adapters["sentiment"]), f"  {text}")
    encoder = load(adapters["sentiment"]).encoder
    tokenizer = encoder.tokenizer
    template = sum(len(tokenizer(part)["input_ids"]) for part in ("Sentence :", " Label :"))
    kept = tokenizer(f" {text.strip()}")["input_ids"][: encoder.max_length - template]
    used = line["cut"]["sentence"]
    assert f" {line['sentence'][:used].strip()}" == tokenizer.decode(kept)
    length = len(line["sentence"])
    assert (
        f"note    line 1: cut to {encoder.max_length} tokens; characters used: {used} of "
        f"{length:,} of sentence\n"
    ) in errors
    _, [line], _ = run_predict("--run", str(adapters["similarity"]), f"{text}\t{other}")
    assert line["cut"]["sentence2"] == len(other) and 0 < line["cut"]["sentence1"] < len(text)


def test_a_terminal_shows_that_a_text_was_cut(adapters, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    predict.main(["--run", str(adapters["ner"]), "gene " * 200])
    assert capsys.readouterr().out.endswith(" …\n")
    predict.main(["--run", str(adapters["ner"]), "gene"])
    assert "…" not in capsys.readouterr().out


def test_the_run_is_the_named_one_or_the_newest(adapters, run_predict, tmp_path):
    (tmp_path / "runs").mkdir()
    status, _, errors = run_predict("x")
    assert status == 2 and "there is no finished run in runs/" in errors
    for name, stamp in (("ner", 1), ("sentiment", 3), ("similarity", 2)):
        (tmp_path / "runs" / name).symlink_to(adapters[name])
        os.utime(adapters[name] / "run.json", (stamp, stamp))
    _, [line], errors = run_predict("up")
    assert line["sentence"] == "up" and "with runs/sentiment" in errors
    _, [line], _ = run_predict("--task", "ner", "up")
    assert line["tokens"] == ["up"]
    _, [line], errors = run_predict("runs/similarity", "a\tb")
    assert line["sentence2"] == "b" and "with runs" not in errors
    status, _, errors = run_predict("--run", "nowhere", "a")
    assert status == 2 and "there is no run folder nowhere" in errors


def test_several_runs_predict_the_rows_that_name_them(adapters, run_predict):
    """The predictions are those of each run alone, in the order of the lines. Runs are named by
    their folders or by --run. The batch size changes nothing."""
    rows = [
        {"run": task, **row, "id": number}
        for number, rows_of_tasks in enumerate(
            zip(*(load_splits(TASKS[task], "sample").test[:5] for task in adapters))
        )
        for task, row in zip(adapters, rows_of_tasks)
    ]
    alone = {}
    for task, folder in adapters.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows if row["run"] == task)
        alone[task] = iter(run_predict("--run", str(folder), "--jsonl", stdin=lines.encode())[1])
    expected = [next(alone[row["run"]]) for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    folders = list(map(str, adapters.values()))
    flags = [flag for folder in folders for flag in ("--run", folder)]
    for argv in (
        [*folders, "--jsonl"],
        ["--jsonl", *flags],
        [*folders, "--jsonl", "--batch-size", "2"],
    ):
        status, printed, errors = run_predict(*argv, stdin=lines)
        assert (status, errors) == (0, "") and [line["line"] for line in printed] == list(
            range(1, 16)
        )
        for row, printed_line, expected_line in zip(rows, printed, expected, strict=True):
            assert (
                printed_line.keys() == expected_line.keys() and printed_line.items() >= row.items()
            )
            assert printed_line["predicted"] == expected_line["predicted"]
            both = [
                line["spans"] if row["run"] == "ner" else [line["probabilities"]]
                for line in (printed_line, expected_line)
            ]
            for one, other in zip(*both, strict=True):  # rounded to four places
                assert one == {
                    key: pytest.approx(value, abs=1.5e-4) for key, value in other.items()
                }


def test_a_row_without_a_known_run_is_a_bad_line(adapters, run_predict):
    lines = [
        '{"run": "ner", "tokens": ["IL-2"]}',
        '{"tokens": ["IL-2"]}',
        '{"run": "nobody", "tokens": ["IL-2"]}',
        '{"run": ["ner"]}',
        "[1]",
        "nope",
        "",
        '{"run": "sentiment", "tokens": ["IL-2"]}',
        '{"run": "sentiment", "sentence": "Up ."}',
        '{"run": "ner", "tokens": ' + json.dumps(["gene"] * 400) + "}",
    ]
    status, printed, errors = run_predict(
        *map(str, adapters.values()), "--jsonl", stdin="\n".join(lines).encode()
    )
    assert status == 2 and [line["line"] for line in printed] == [1, 9, 10]
    for number in (2, 3, 4, 5):
        expected = "expected a JSON object whose 'run' is one of ner, sentiment, similarity"
        assert (
            f"line {number}: {lines[number - 1]!r}"[:40] in errors
            and expected in errors.splitlines()[number - 2]
        )
    assert "line 6: not JSON" in errors and "line 7" not in errors
    assert "line 8: " in errors and "expected a JSON object with 'sentence'" in errors
    assert len(printed[2]["predicted"]) == 400 and printed[2]["predicted"][-1] is None
    assert f"note    line 10: cut to 128 tokens; {printed[2]['cut']} of 400 words" in errors
    assert "1 text was cut to " in errors and " or 128 tokens" in errors
    assert errors.endswith("error: 6 of the lines could not be used and have no prediction\n")


def test_runs_that_cannot_be_combined_are_refused_in_one_line(adapters, run_predict):
    ner, sentiment = str(adapters["ner"]), str(adapters["sentiment"])
    status, printed, errors = run_predict("--run", ner, "--run", ner, "--jsonl")
    assert (
        (status, printed) == (2, [])
        and errors.startswith("error: two runs are called ner;")
        and errors.count("\n") == 1
    )
    status, _, errors = run_predict(ner, sentiment, "--jsonl", "--task", "ner")
    assert status == 2 and "was trained for sentiment, not for ner" in errors


def test_flags_that_do_not_fit_are_refused(adapters, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    folders = [str(adapters["ner"]), str(adapters["sentiment"])]
    for argv, message in (
        (["notes.txt"], "notes.txt is a file: read it with --file notes.txt"),
        (["text", "--file", "notes.txt"], "TEXT and --file both give examples"),
        ([*folders, "IL-2 gene"], "several runs need --jsonl, and each row must name its run"),
        (
            ["runs/ner-lorra", "IL-2 gene"],
            "runs/ner-lorra looks like a path, but there is no run and no file there",
        ),
        (["note.txt"], "note.txt looks like a path"),
    ):
        with pytest.raises(SystemExit, match="2"):
            predict.main(argv)
        assert message in capsys.readouterr().err


def test_a_terminal_gets_colours(adapters, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    predict.main(["--run", str(adapters["sentiment"]), "Up ."])
    assert capsys.readouterr().out.startswith("\033[3")
    predict.main(["--run", str(adapters["ner"]), "IL-2 gene."])
    out = capsys.readouterr().out
    assert "\033[0m" in out and "]" in out
    predict.main(["--run", str(adapters["ner"]), "--json", "IL-2 gene."])
    assert json.loads(capsys.readouterr().out)["tokens"] == ["IL-2", "gene", "."]


def test_lines_are_predicted_as_they_arrive():
    """If a pipe waits after its first line, this line becomes a batch. No batch is larger than the
    given size."""
    second_is_ready = threading.Event()

    def slow():
        yield 1, b"one"
        second_is_ready.wait(HANG)
        yield 2, b"two"

    batches = predict.lines_as_received(slow(), 8)
    assert next(batches) == [(1, b"one")]
    second_is_ready.set()
    assert next(batches) == [(2, b"two")] and next(batches, None) is None
    lines = [(number, b"x") for number in range(1, 8)]
    all_batches = list(predict.lines_as_received(iter(lines), 3))
    assert [line for batch in all_batches for line in batch] == lines and max(
        map(len, all_batches)
    ) <= 3

    def broken():
        yield 1, b"one"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(predict.lines_as_received(broken(), 1))


@pytest.mark.parametrize(("stop", "status"), [("close", 141), ("interrupt", 130)])
def test_the_command_can_end_while_it_waits_for_a_line(adapters, stop, status):
    command = [sys.executable, "-m", "neo_peft", "predict", "--run", str(adapters["ner"])]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, bufsize=0, **pipes) as process:
        process.stdin.write(b"The IL-2 gene .\n")
        assert json.loads(process.stdout.readline())["text"] == "The IL-2 gene ."
        if stop == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
            process.stdin.write(b"The IL-2 gene .\n")
        err = shown(process.stderr.read().decode())
        assert process.wait() == status
    assert err.strip() == {"close": "", "interrupt": "stopped before the end"}[stop]


@pytest.mark.parametrize("runs", [("sentiment",), ("sentiment", "ner")])
def test_the_bar_of_a_file_shows_the_time_left_right_within_a_quarter(
    adapters, monkeypatch, capsys, runs
):
    """Time passes only in the model: 1 second for each token and 5 for a batch."""
    clock, moments, bars, rng = Clock(monkeypatch), [], [], random.Random(0)
    classes = (TunedModel, type(load(adapters["ner"]).model.transformer))
    model = classes[len(runs) > 1]  # several runs have a trunk of their own for mixed batches
    forward = model.forward

    def slow_forward(self, batch, *others):
        if left := seconds_left(bars[0]) if bars else None:
            moments.append((clock.now, left))
        clock.advance(5 + len(batch.ids if len(runs) == 1 else batch))
        return forward(self, batch, *others)

    monkeypatch.setattr(model, "forward", slow_forward)
    show = file_bar.show_progress
    monkeypatch.setattr(
        file_bar, "show_progress", lambda *a, **k: bars.append(show(*a, **k)) or bars[-1]
    )
    texts = [" ".join(["profit rose"] * rng.choice([1, 2, 3, 20])) for _ in range(200)]
    rows = [{"run": rng.choice(runs), "sentence": text, "tokens": text.split()} for text in texts]
    Path("file").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    given = [flag for run in runs for flag in ("--run", str(adapters[run]))]
    predict.main([*given, "--file", "file", "--jsonl", "--batch-size", "4"])
    right_within_a_quarter(moments, clock.now)
    assert "predict: 100%" in capsys.readouterr().err.replace("predict:  99%", "predict: 100%")


def test_a_named_pipe_can_be_the_file(adapters, capsys):
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text("profit rose\n"))
    writer.start()
    predict.main(["--run", str(adapters["sentiment"]), "--file", "pipe"])
    writer.join()
    assert json.loads(capsys.readouterr().out)["sentence"] == "profit rose"


def test_a_closed_pipe_ends_the_command_without_a_message():
    code = (
        "import sys; from neo_peft.system.exit_status import exit_status\n"
        "sys.exit(exit_status(lambda: print('x\\n' * 99999)))"
    )
    command = f'{sys.executable} -c "$CODE" | head -1; echo ${{PIPESTATUS[0]}}'
    env = os.environ | {"CODE": code, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=env, check=True
    )
    assert (done.stdout, done.stderr) == ("x\n141\n", "")


def test_an_unknown_command_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "neo_peft", "predic"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: there is no command predic; the commands are train, evaluate, predict, export, "
        "study, report, compare, look, sizes\n"
    )
    usage = subprocess.run(
        [sys.executable, "-m", "neo_peft"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "predict   predict labels or tags of new text" in usage.stdout
