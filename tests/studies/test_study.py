"""The study command with real runs: finished, stopped, killed, resumed, and refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import computed_until_end, end, killed_after, start
from refusals import METHODS, TASKS, cases, refused

from neo_peft.commands import study as command
from neo_peft.errors import InputError, Stopped
from neo_peft.runs import training
from neo_peft.studies import study
from neo_peft.studies.plan import make_plan, read_plan
from neo_peft.studies.study_results import collect
from neo_peft.system.exit_status import exit_status
from neo_peft.system.files import read_checked_json, write_checked_json

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--train-limit", "20", "--eval-limit", "10", "--threads", "1"]


@pytest.fixture
def small(tiny_folder):
    """Return flags that make each run small."""
    return ["--model", str(tiny_folder), *SMALL]


def numbers(text: str, heading: str, row: str) -> list[str]:
    """Return the cells of a row of the table under a heading, without the name of the row."""
    part = text.split(f"## {heading}")[1].split("\n## ")[0]
    [line] = [line for line in part.splitlines() if re.match(rf"\| {re.escape(row)} +\|", line)]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def shown(values: list[float]) -> str:
    """Return a mean and its standard deviation, formatted as in the tables."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if np.std(values) else ""
    return f"{np.mean(values):.3f}{deviation}"


def test_a_study_of_tagging_has_the_scores_of_its_runs(small, capsys):
    command.main(["--task", "ner", "--epochs", "2", "--seeds", "2", *small])
    out, folder = capsys.readouterr().out, Path("studies/ner-lora")
    assert {path.name for path in folder.iterdir()} == {
        "study.json",
        "results.json",
        "table.md",
        "plot.png",
        "epochs-2-seed-0",
        "epochs-2-seed-0.log",
        "epochs-2-seed-1",
        "epochs-2-seed-1.log",
    }
    text = (folder / "table.md").read_text()
    assert text in out and "2/2  epochs-2-seed-1: validation f1 0." in out
    assert (folder / "plot.png").read_bytes().startswith(PNG)
    assert "epoch 2: train loss" in (folder / "epochs-2-seed-0.log").read_text()
    runs = [folder / f"epochs-2-seed-{seed}" for seed in (0, 1)]
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    metrics = ("f1", "precision", "recall", "span_f1")
    for split in ("validation", "test"):
        for row, kind in (
            ("before", "before"),
            ("tuned, the kept epoch", "after"),
            ("majority", "majority"),
        ):
            run_scores = [record["scores"][kind][split] for record in records]
            expected = [shown([scores[metric] for scores in run_scores]) for metric in metrics]
            cells = numbers(text, f"{split}: 10 rows", row)
            only_epochs = ["–", "–"] if split == "validation" else []  # accuracy and loss
            assert [cells[0], *cells[2:]] == expected + only_epochs
    assert "typed f1 |" in text and "typed recall |" in text and "span-only f1 |" in text
    for epoch in (1, 2):
        lines = [
            [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in runs
        ]
        epoch_scores = [[line for line in run if "validation" in line][epoch - 1] for run in lines]
        epoch_scores = [
            line["validation"]
            | {"accuracy": line["validation_accuracy"], "loss": line["validation_loss"]}
            for line in epoch_scores
        ]
        kept = sum(record["kept_epoch"] == epoch for record in records)
        cells = numbers(
            text, "validation: 10 rows", f"epoch {epoch}" + (f", kept by {kept}" if kept else "")
        )
        assert [cells[0], *cells[2:]] == [
            shown([scores[metric] for scores in epoch_scores])
            for metric in (*metrics, "accuracy", "loss")
        ]
        assert f"epoch {epoch}" not in text.split("## test")[1]
    assert "python -m neo_peft study --task ner --epochs 2 --seeds 2 --model" in text
    log = runs[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"epoch": 2', '"epoch": 1'))
    assert exit_status(lambda: command.main(["--resume", str(folder)])) == 2
    assert (
        f"error: {log} was changed since the run: its sha256 differs\n" in capsys.readouterr().err
    )
    assert (folder / "table.md").read_text() == text


def test_a_study_of_classification_can_be_stopped_and_resumed(small, capsys, monkeypatch):
    argv = ["--task", "sentiment", "--epochs", "1", "2", "--seeds", "1", *small]
    command.main([*argv, "--out", "finished"])
    finished = read_checked_json(Path("finished/results.json"))
    record = json.loads(Path("finished/epochs-2-seed-0/run.json").read_text())
    text = Path("finished/table.md").read_text()
    cells = numbers(text, "test: 10 rows", "before")
    before, generated = (record[field]["before"]["test"] for field in ("scores", "generated"))
    assert [cells[0], *cells[2:4], cells[5]] == [
        f"{value:.3f}"
        for value in (
            before["accuracy"],
            before["macro_f1"],
            generated["accuracy"],
            generated["unanswered"] / generated["total"],
        )
    ]

    real, calls = training.run, []

    def stops_at_the_second(settings, *others):
        calls.append(settings.out or settings.resume)
        if len(calls) == 2:
            raise Stopped(signal.SIGTERM)
        return real(settings, *others)

    monkeypatch.setattr(training, "run", stops_at_the_second)
    capsys.readouterr()
    assert exit_status(lambda: command.main([*argv, "--out", "stopped"])) == 128 + signal.SIGTERM
    advice = "stopped; resume it: python -m neo_peft study --resume stopped"
    assert capsys.readouterr().err.splitlines()[-1].split("\r")[-1] == advice
    assert not Path("stopped/results.json").exists()
    # the same command with --resume
    command.main([*argv, "--out", "stopped", "--resume", "stopped"])
    assert calls == [
        "stopped/epochs-1-seed-0",
        "stopped/epochs-2-seed-0",
        "stopped/epochs-2-seed-0",
    ]
    again = read_checked_json(Path("stopped/results.json"))
    # The results differ only in the folder's name in the command, and in the seconds.
    assert again["command"] == finished["command"].replace("finished", "stopped")
    assert {**again, "seconds": 0, "command": ""} == {**finished, "seconds": 0, "command": ""}
    command.main(["--resume", "stopped"])  # a finished study does no run again
    assert len(calls) == 3 and read_checked_json(Path("stopped/results.json")) == again


def test_a_sweep_reports_runs_that_diverge(small, capsys):
    argv = [
        "--task",
        "ner",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--sweep",
        "learning_rate=1e30,0.001",
        *small,
    ]
    for resume in ([], ["--resume", "studies/ner-lora"]):
        command.main([*argv, *resume])
        out = capsys.readouterr().out
        assert re.search(
            r"\n3/4  learning-rate-1e\+30-seed-1: diverged: the loss is \w+ at step 2 "
            r"\(epoch 1\): try a",
            out,
        )
        cells = numbers(out, "validation: 10 rows", "learning rate 1e+30, 2 of 2 diverged")
        assert cells == ["–", "", "–", "–", "–"]
        assert (
            "\n| learning rate 0.001 *" in out
            and "1e+30" not in out.split("## test")[1].split("\n\n")[1]
        )
    with pytest.raises(InputError, match="no run of studies/ner-lora has a result: diverged"):
        plan = read_plan(Path("studies/ner-lora"))
        collect(Path("studies/ner-lora"), plan, {run["name"]: "diverged" for run in plan["runs"]})


def test_a_removal_of_checkpoints_that_was_killed_is_completed(tmp_path):
    """A folder is renamed before it is deleted; a kill in between leaves it under that name."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = tmp_path / f".checkpoints.tmp{killed.pid}-old"
    for folder in (left / "step-6", tmp_path / "checkpoints" / "step-7"):
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    training.drop_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_that_is_killed_at_any_moment_has_the_same_results(small):
    argv = ["--task", "ner", "--epochs", "2", "--seeds", "2", "--out", "study", *small]
    seconds = computed_until_end(start(argv, main=command.main))
    finished = read_checked_json(Path("study/results.json"))
    for share in (0.3, 0.6, 0.9):
        shutil.rmtree("study")
        killed_after(start(argv, main=command.main), share * seconds)
        assert end(start(["--resume", "study"], main=command.main)) == 0, Path("stderr").read_text()
        again = read_checked_json(Path("study/results.json"))
        assert {**again, "seconds": 0} == {**finished, "seconds": 0}
        assert not [
            path
            for path in Path("study").rglob("*")
            if ".tmp" in path.name or path.name == "checkpoints"
        ]


# ---- Bad input


TAGGING, CLASSIFICATION = "study --task ner", "study --task sentiment"


@cases(
    [
        ("study", f"--task is missing; the tasks are {TASKS}"),
        ("study --task nre", f"there is no task 'nre'; the tasks are {TASKS}"),
        (f"{TAGGING} --method X", f"--method 'X' is none of {METHODS}"),
        (f"{TAGGING} --rank 0", "--rank 0 is not a whole number of at least 1"),
        (
            f"{TAGGING} --prompt-length 4",
            "--prompt-length belongs to the method prompt or prefix; the method here is lora",
        ),
        (f"{TAGGING} --seed 3", "--seed: a study has several seeds; --seeds N uses 0 to N - 1"),
        (f"{TAGGING} --json", "--json: leave it out; a study writes results.json into its folder"),
        (
            f"{TAGGING} --seeds 0",
            "argument --seeds: 0 is not a whole number of at least 1; see --help",
        ),
        (
            f"{TAGGING} --epochs 0",
            "argument --epochs: 0 is not a whole number of at least 1; see --help",
        ),
        (
            f"{TAGGING} --epochs 1 5",
            "--epochs 1 5: a study of ner has one run, which is scored after each epoch; give one "
            "number",
        ),
        (
            f"{CLASSIFICATION} --epochs 5 5",
            "--epochs 5 is given twice, or is too similar to another value; give each value once",
        ),
        (
            f"{TAGGING} --models a/b a/b",
            "--model a/b is given twice, or is too similar to another value; give each value once",
        ),
        (
            f"{TAGGING} --sweep rank=4 --models a b",
            "--sweep and --models are two sweeps; give only one of them",
        ),
        (
            f"{CLASSIFICATION} --epochs 1 5 --sweep rank=4,8",
            "--epochs 1 5: a sweep has one number of epochs; give only one",
        ),
        (
            f"{TAGGING} --epochs 1 --sweep epochs=1,2",
            "--epochs is the swept flag; do not give it as well",
        ),
        (
            f"{TAGGING} --rank 4 --sweep rank=4,8",
            "--rank is the swept flag; do not give it as well",
        ),
        (
            f"{TAGGING} --sweep rank=2 --sweep alpha=4 --sweep dropout=0",
            "--sweep is given 3 times; a study has at most 2",
        ),
        (
            f"{TAGGING} --methods lora head --sweep dropout=0 --sweep alpha=4",
            "--sweep is given 2 times; recipes have at most 1",
        ),
        (
            f"{TAGGING} --sweep rank=2 --sweep rank=4",
            "--rank is swept twice; name all its values in one sweep",
        ),
        (
            f"{TAGGING} --sweep rank=2,2 --sweep alpha=4",
            "--rank 2 is given twice, or is too similar to another value; give each value once",
        ),
        (
            f"{TAGGING} --sweep class_weights=none,A=2",
            "a sweep of --class-weights can have none and balanced, not 'A=2'; give weights of "
            "labels in a file of --recipes",
        ),
        (f"{TAGGING} --methods lora lora", "--methods lora is given twice; name each method once"),
        (
            f"{TAGGING} --methods lora head --method lora",
            "--methods names the methods; leave out --method",
        ),
        (
            f"{TAGGING} --methods lora --recipes x",
            "--recipes and --methods are two comparisons; give only one of them",
        ),
        (
            f"{TAGGING} --methods lora head --models a b",
            "--models cannot be compared together with --methods or --recipes; leave it out",
        ),
        (
            f"{CLASSIFICATION} --methods lora head --epochs 1 5",
            "--epochs 1 5: a comparison has one number of epochs; give only one",
        ),
        (
            f"{TAGGING} --methods lora prompt --rank 4",
            "recipe prompt: --rank belongs to the method lora; the method here is prompt",
        ),
        (
            f"{TAGGING} --methods lora head --learning-rate 1 --sweep learning_rate=1,2",
            "recipe lora: --learning-rate is the swept flag; leave it out",
        ),
        (f"{TAGGING} --model a --models a b", "--model is the swept flag; do not give it as well"),
        (f"{TAGGING} --sweep bias", "'bias' is not NAME=VALUE,VALUE, as in rank=4,8,16"),
        (f"{TAGGING} --sweep rank=4,", "'rank=4,' is not NAME=VALUE,VALUE, as in rank=4,8,16"),
        (
            f"{TAGGING} --sweep seed=1,2",
            "'seed' cannot be swept; the flags that can are wording, …",
        ),
        (f"{TAGGING} --sweep rank=4,x", "--rank x is not a whole number of at least 1"),
        (
            f"{TAGGING} --sweep prompt-length=4,8",
            "--prompt-length belongs to the method prompt or prefix; the method here is lora",
        ),
        (
            f"{TAGGING} --data no",
            "--data no: there is no such file or folder; --data can be sample, hub, a file or a "
            "folder",
        ),
        ("study --resume no", "--resume no has no study.json: no study was started there"),
        (f"{TAGGING} --out ' '", "argument --out: is empty; see --help"),
    ]
)
def test_bad_flags_are_refused(capfd, case):
    refused(capfd, *case)


def test_a_folder_that_is_not_empty_is_refused_without_resume(capfd, small):
    plan = make_plan({"task": "ner"}, seeds=1)
    study.make_study_folder(plan, "old")
    refused(
        capfd,
        f"{TAGGING} --out old",
        "--out old already has a study; resume it with --resume old, or name another folder",
    )
    refused(
        capfd,
        f"{TAGGING} --resume old --rank 4",
        "--resume old was started with other flags; give only --resume, or start a new study",
    )
    refused(
        capfd,
        "study --resume old --seeds 3",
        "--resume old was started with other flags; give only --resume, or start a new study",
    )
    refused(
        capfd,
        "study --resume old --out other",
        "--out other: --resume old continues in that folder; leave out --out",
    )
    Path("used").mkdir()
    Path("used/file").touch()
    refused(
        capfd,
        f"{TAGGING} --out used",
        "--out used exists and is not an empty folder; name a new folder",
    )


def test_a_study_whose_run_fails_keeps_its_files(capsys, small, monkeypatch):
    """The first run fails before it has a folder. The study keeps its plan, and other files in its
    folder."""
    Path("resumed").mkdir()
    plan = make_plan({"task": "ner"}, seeds=1)
    study.make_study_folder(plan, "other")
    shutil.copy("other/study.json", "resumed")
    Path("resumed/notes.log").write_text("mine")

    def fail(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr(study.training, "run", fail)
    with pytest.raises(InputError, match="epochs-10-seed-0: the disk is full"):
        command.main(["--resume", "resumed"])
    assert {path.name for path in Path("resumed").iterdir()} >= {"study.json", "notes.log"}
    assert Path("resumed/notes.log").read_text() == "mine"
    study.remove_unstarted_study(Path("other"), [], plan)
    assert not list(Path("other").iterdir())


def test_a_study_whose_first_run_is_refused_leaves_no_files(capsys, small):
    argv = ["--task", "sentiment", "--prompt-length", "200", *small]
    assert exit_status(lambda: command.main(argv)) == 2
    line = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert line.startswith(
        "error: epochs-1-seed-0: the prefix (a prompt of 200 embeddings"
    ) and line.endswith("use a shorter prompt or shorter label words\n")
    assert not list(Path().iterdir())


def test_a_later_run_that_is_refused_does_not_change_the_results_of_others(capsys, small):
    argv = [
        "--task",
        "sentiment",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--sweep",
        "prompt_length=4,200",
        *small,
    ]
    for resume in ([], ["--resume", "studies/sentiment-prompt"]):
        assert exit_status(lambda resume=resume: command.main([*argv, *resume])) == 2
        out, err = capsys.readouterr()
        assert (
            "\n2/2  prompt-length-200-seed-0: refused: the prefix (a prompt of 200 embeddings"
            in out
        )
        cells = numbers(out, "validation: 10 rows", "prompt length 200, 1 of 1 refused")
        assert {*cells} == {"–", ""} and "| prompt length 4 *" in out
        assert err.rsplit("\r", 1)[-1].startswith(
            "error: 1 of 2 runs were refused and are not in the tables. The first is "
            "prompt-length-200-seed-0: "
        )
    assert Path("studies/sentiment-prompt/table.md").exists()


def test_another_run_in_a_studys_folder_is_refused(small):
    command.main(["--task", "ner", "--epochs", "1", "--seeds", "1", "--out", "study", *small])
    plan = read_plan(Path("study"))
    plan["runs"][0]["flags"]["rank"] = 4
    write_checked_json(Path("study/study.json"), plan)
    with pytest.raises(
        InputError,
        match="epochs-1-seed-0 was started with other settings than those in study/study.json",
    ):
        study.run_study(Path("study"), plan)
