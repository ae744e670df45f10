"""train.py and evaluate.py on a tiny model: whole runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from base_files import with_pad_token
from own_files import write_rows
from repeats import first_quick, pairs
from short_runs import main, short_run

import evaluate
import train
from neo_peft.commands import evaluate as evaluate_command
from neo_peft.commands import train as train_command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("main", "program"),
    [
        (train.main, "python train.py"),
        (evaluate.main, "python evaluate.py"),
        (train_command.main, "python -m neo_peft train"),
        (evaluate_command.main, "python -m neo_peft evaluate"),
    ],
)
def test_help_names_the_program_that_was_started(capsys, main, program):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {program} [-h]")
    if "train" in program:
        with pytest.raises(SystemExit, match="2"):
            main([])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 4 and all(f"{program} --" in line for line in lines[1:])


@pytest.fixture
def small(tiny_folder):
    return short_run(tiny_folder)


@pytest.mark.parametrize(
    ("method", "task"),
    pairs(
        ["lora", "prompt", "prefix", "full", "head", "lora+prompt"],
        ["ner", "sentiment", "similarity"],
    ),
)
def test_train_then_evaluate_gives_the_same_scores(small, capsys, task, method):
    assert main(train, ["--task", task, "--method", method, "--json", *small]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.keys() == {
        "task",
        "method",
        "run",
        "trainable",
        "total",
        "before",
        "after",
        "seconds",
    }
    assert summary["run"] == f"runs/{task}-{method}"
    for split in ("validation", "test"):
        assert main(evaluate, ["--split", split, "--json"]) == 0
        evaluated = json.loads(capsys.readouterr().out)
        assert evaluated.keys() == {"task", "split", "decode", "scores", "per_label"}
        assert (
            evaluated["scores"] | {"per_label": evaluated["per_label"]} == summary["after"][split]
        )
        assert evaluated["decode"] == (None if task == "ner" or method == "head" else "labels")
    lines = [
        json.loads(line)
        for line in Path(summary["run"], "predictions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12 and all("predicted" in line for line in lines)


def test_train_prints_its_progress_and_records_each_step(small, capsys):
    assert main(train, ["--task", "sentiment", "--method", "lora", *small]) == 0
    out = capsys.readouterr().out
    for text in (
        "24 train, 12 validation, 12 test",
        "trains 3,072 parameters",
        "q_proj (24 → 24), rank 8",
        "(perplexity ",
        "epoch 2: train loss",
        "majority  baseline  before  after",
        "baseline: word counts",
        "the run is in runs/sentiment-lora",
    ):
        assert text in out
    lines = [
        json.loads(line)
        for line in Path("runs/sentiment-lora/metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(
        line.keys() == {"step", "epoch", "loss", "learning_rate", "gradient_norm"} for line in steps
    )
    epochs = [line for line in lines if "validation" in line]
    assert [line["step"] for line in epochs] == [2, 4] and epochs[0]["validation_perplexity"] > 1


def test_a_second_run_gets_its_own_folder(small, capsys):
    for expected in ("runs/ner-head", "runs/ner-head-2", "runs/ner-head-3"):
        assert main(train, ["--task", "ner", "--method", "head", "--json", *small]) == 0
        assert json.loads(capsys.readouterr().out)["run"] == expected
    assert main(train, ["--task", "ner", "--method", "head", "--out", "runs/ner-head", *small]) == 2
    assert (
        "--out runs/ner-head already has a run; resume it with --resume runs/ner-head"
        in capsys.readouterr().err
    )


def test_run_json_records_the_settings_data_and_files_of_the_run(small, drawn_curves, capsys):
    assert main(train, ["--task", "ner", "--method", "lora", "--rank", 5, *small]) == 0
    record = json.loads(Path("runs/ner-lora/run.json").read_text())
    assert list(record)[-1] == "sha256"
    assert record["flags"]["rank"] == 5 and record["flags"]["learning_rate"] == 1e-3
    assert record["rows"] == {"train": 24, "validation": 12, "test": 12}
    assert record["protocol"] == "single" and record["assumed"] == []
    assert record["files"].keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "plot.png",
        "settings.json",
        "timings.jsonl",
        *(
            f"predictions/{when}-{split}.jsonl"
            for when in ("majority", "baseline", "before", "after")
            for split in ("validation", "test")
        ),
    }
    assert len(Path("runs/ner-lora/plot.png").read_bytes()) > 10_000
    assert record["labels"][1:3] == ["B-DNA", "I-DNA"]
    assert record["trainable"] == 4 * 2 * (24 * 5 + 5 * 24) + 11 * 24 + 11


def test_generate_counts_texts_that_match_no_label(small, capsys):
    main(train, ["--task", "similarity", "--method", "prompt", *small])
    capsys.readouterr()
    assert main(evaluate, ["runs/similarity-prompt", "--decode", "generate", "--show", 2]) == 0
    out = capsys.readouterr().out
    assert "--decode generate" in out and out.count("generated: ") == 2 and "unanswered" in out
    assert "total 12, hits" in out and "[Wrong]" in out
    lines = Path("runs/similarity-prompt/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 12 and all("generated" in json.loads(line) for line in lines)


def test_an_untuned_base_model_is_scored_with_the_instruction_before_each_text(tiny_folder, capsys):
    flags = ["--model", tiny_folder, "--eval-limit", 10, "--json"]
    assert (
        main(evaluate, ["--task", "sentiment", "--zero-shot", "--out", "answers.jsonl", *flags])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["scores"]["total"] == 10
    assert len(Path("answers.jsonl").read_text().splitlines()) == 10
    assert main(evaluate, ["--task", "ner", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["decode"] is None
    assert sorted(Path().iterdir()) == [Path("answers.jsonl")]


def test_scores_before_tuning_are_those_of_the_untuned_base_with_the_instruction(
    small, tiny_folder, capsys
):
    """train.py and evaluate.py compute them in different code."""
    for task, zero_shot in (("sentiment", ["--zero-shot"]), ("ner", [])):
        main(train, ["--task", task, "--method", "lora+prompt", "--json", *small])
        before = json.loads(capsys.readouterr().out)["before"]["test"]
        main(
            evaluate,
            ["--task", task, *zero_shot, "--model", tiny_folder, "--eval-limit", 12, "--json"],
        )
        scores = json.loads(capsys.readouterr().out)["scores"]
        assert {name: before[name] for name in scores} == scores


def test_the_papers_recipe_scores_both_decodings(small, capsys):
    assert (
        main(train, ["--task", "sentiment", "--preset", "paper", "--data", "sample", *small]) == 0
    )
    out = capsys.readouterr().out
    assert "majority  baseline  before  before, generate  after  after, generate" in out
    record = json.loads(Path("runs/sentiment-prompt/run.json").read_text())
    # the epochs are not assumed: a flag gives them
    assert "learning_rate" in record["assumed"] and "epochs" not in record["assumed"]
    assert record["flags"]["learning_rate"] == 3e-2
    assert record["flags"]["max_length"] == 64 and record["flags"]["clip_norm"] == 0
    assert record["kept_epoch"] == 2  # the last one
    generated = record["generated"]
    # only generated text can match no label
    assert generated["before"]["test"]["unanswered"] == 12
    assert generated["before"]["test"].keys() == record["scores"]["after"]["test"].keys()
    assert main(evaluate, ["--decode", "generate", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["scores"]["accuracy"] == generated["after"]["test"]["accuracy"]


def test_an_adapter_made_by_peft_is_scored_if_its_task_and_model_are_named(
    small, tiny_folder, capsys
):
    main(train, ["--task", "sentiment", "--method", "lora", "--json", *small])
    after = json.loads(capsys.readouterr().out)["after"]["test"]
    Path("runs/sentiment-lora/run.json").unlink()
    command = ["runs/sentiment-lora", "--eval-limit", 12, "--json"]
    assert main(evaluate, command) == 2
    message = (
        "is a run that is not finished; resume it: python -m neo_peft train --resume "
        "runs/sentiment-lora"
    )
    assert message in capsys.readouterr().err
    Path("runs/sentiment-lora/settings.json").unlink()
    assert main(evaluate, command) == 2
    assert (
        "is an adapter without a run.json: name its --task and its --model"
        in capsys.readouterr().err
    )
    assert main(evaluate, [*command, "--task", "sentiment", "--model", tiny_folder]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["accuracy"] == after["accuracy"]


@pytest.mark.parametrize("name", first_quick(["lora", "model", "prompt"]))
def test_any_name_of_a_runs_folder_gives_the_same_files(small, name):
    for method, out in (("lora", f"a/{name}"), ("prompt", f"b/{name}")):
        assert main(train, ["--task", "sentiment", "--method", method, "--out", out, *small]) == 0
        assert Path(out, "adapter_config.json").exists() and not Path(out, "config.json").exists()


def test_bad_input_does_not_remove_an_empty_folder(capsys):
    Path("keep").mkdir()
    assert (
        main(train, ["--task", "ner", "--method", "head", "--data", "nowhere", "--out", "keep"])
        == 2
    )
    assert Path("keep").is_dir()


def test_only_a_plain_file_is_replaced(small, tmp_path, capsys):
    main(train, ["--task", "ner", "--method", "head", *small])
    os.mkfifo("pipe")
    Path("target").write_text("old")
    Path("link").symlink_to("target")
    for out, message in {
        "pipe": "pipe is not a plain file",
        "runs": "runs is not a plain file",
        "no/x": "no is not a folder",
    }.items():
        capsys.readouterr()
        assert main(evaluate, ["--out", out]) == 2
        assert message in capsys.readouterr().err
    assert Path("pipe").is_fifo()
    assert main(evaluate, ["--out", "link"]) == 0
    assert Path("link").is_symlink() and '"predicted"' in Path("target").read_text()


def test_a_run_finds_its_base_from_any_folder(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(tiny_folder)
    flags = [
        "--task",
        "ner",
        "--method",
        "head",
        "--epochs",
        1,
        "--train-limit",
        4,
        "--eval-limit",
        4,
    ]
    assert main(train, [*flags, "--model", "base", "--out", "run"]) == 0
    monkeypatch.chdir("/")
    assert main(evaluate, [tmp_path / "run"]) == 0


def test_a_new_process_uses_omp_num_threads_and_shows_a_progress_bar(tiny_folder, tmp_path):
    """In a new process, since PyTorch reads the variable when it is imported."""
    flags = [
        "--task",
        "ner",
        "--method",
        "head",
        "--epochs",
        "1",
        "--train-limit",
        "4",
        "--eval-limit",
        "4",
    ]
    command = [
        sys.executable,
        ROOT / "train.py",
        *flags,
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fp32 on cpu, 1 thread\n" in done.stdout
    assert re.search(r"epoch 1: +\d+%.*loss \d.*tokens/s", done.stderr)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == 1


def test_texts_that_were_cut_are_counted_by_train_and_by_evaluate(small, capsys):
    """Two sentences of test have more than the model's 128 tokens."""
    rows = [{"tokens": [f"c{i}", "b"], "tags": ["O", "B-protein"]} for i in range(20)]
    long = [{"tokens": ["x"] * 400, "tags": ["O"] * 399 + ["B-protein"]}] * 2
    write_rows(Path("d"), train=rows, test=[*long, *rows[:3]])
    flags = ["--task", "tagging", "--method", "lora", "--data", "d", "--out", "run"]
    assert main(train, [*flags, *small, "--truncate", "end"]) == 0
    note = "note    2 texts were cut to 128 tokens, at the end\n"
    assert note in capsys.readouterr().out
    assert main(evaluate, ["run"]) == 0
    assert note in capsys.readouterr().out
    assert main(evaluate, ["run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert note in err and json.loads(out)["split"] == "test"
    assert main(evaluate, ["run", "--split", "validation"]) == 0
    assert "cut to" not in capsys.readouterr().out


def test_a_row_that_the_model_cannot_take_is_named_by_train_and_evaluate(
    small, tiny_folder, capsys, tmp_path
):
    """By its split and its number, also where --eval-limit chooses some of the rows."""
    base = with_pad_token(tiny_folder, tmp_path / "base")
    rows = [{"sentence": f"it is {i}", "label": "ab"[i % 2]} for i in range(24)]
    wrong = [*rows[:12], {"sentence": "it [PAD] is", "label": "a"}, *rows[13:]]
    why = "'[PAD]' is token 8192; the model has 8192 tokens: remove it"
    flags = ["--task", "classification", "--method", "lora", *small, "--model", base]
    write_rows(Path("d"), train=rows, validation=rows, test=wrong)
    assert main(train, [*flags, "--data", "d"]) == 2
    assert f"error: test, row 13, 'it [PAD] is': {why}\n" in capsys.readouterr().err
    write_rows(Path("d"), train=wrong, validation=rows, test=rows)
    assert main(train, [*flags, "--data", "d"]) == 2
    assert f"error: train, row 13, 'it [PAD] is': {why}\n" in capsys.readouterr().err
    write_rows(Path("d"), train=rows, validation=rows, test=rows)
    assert main(train, [*flags, "--data", "d", "--out", "run"]) == 0
    write_rows(Path("d"), train=rows, validation=rows, test=wrong)
    capsys.readouterr()
    assert main(evaluate, ["run"]) == 2
    assert f"error: test, row 13, 'it [PAD] is': {why}\n" in capsys.readouterr().err
