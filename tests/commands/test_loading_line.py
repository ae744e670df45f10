"""What a command says while it loads, and what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from neo_peft import loop
from neo_peft.commands import study
from neo_peft.commands.loading_line import LoadingLine, run_with_base
from neo_peft.formats.base_folder import with_size
from neo_peft.runs import shared
from neo_peft.runs.folder import write_record

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("train.py --task ner --method lora", "neo-mini"),
        ("train.py --task ner --method lora --json", "neo-mini"),
        ("evaluate.py --task ner --model neo-mini", "neo-mini"),
        ("evaluate.py run", "run"),
        ("neo_peft/__main__.py predict run text", "run"),
        ("neo_peft/__main__.py study --task sentiment", "neo-mini"),
    ],
)
def test_a_command_says_what_it_loads_before_it_imports_torch(argv, expected):
    """The import of torch ends the process here."""
    code = """if True:
        import os, runpy, sys
        class Finder:
            def find_spec(self, name, path, target=None):
                if name == "torch":
                    os._exit(77)
        sys.meta_path.insert(0, Finder())
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")"""
    Path("run").mkdir()
    Path("run/run.json").write_text("{}")
    script, *flags = argv.split()
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / script), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 77, done.stderr
    assert (done.stdout, done.stderr.strip()) == ("", f"loading {expected}")


def test_the_line_is_removed_before_the_first_output(capsys):
    with LoadingLine("neo-mini") as line:
        assert capsys.readouterr().err == "\rloading neo-mini"
        print_line = line.before(print)
        print_line("a line")
        out, err = capsys.readouterr()
        assert out == "a line\n" and err == f"\r{' ' * len('loading neo-mini')}\r"
        print_line("another one")
    assert capsys.readouterr() == ("another one\n", "")
    with pytest.raises(ValueError), LoadingLine("neo-mini"):
        raise ValueError
    assert capsys.readouterr().err.endswith("\r")
    with LoadingLine(None) as line:
        line.before(print)("x")
    assert capsys.readouterr() == ("x\n", "")


def test_a_terminal_without_a_size_gets_the_line_too(terminal, monkeypatch):
    of_width, written = terminal
    of_width(0)
    with LoadingLine("neo-mini"):
        assert written() == "loading neo-mini\n"
    assert written() == ""


def test_the_bar_of_a_study_names_what_it_loads_until_that_is_loaded(tiny_folder, monkeypatch):
    said, bars, show = [], [], study.show_progress
    monkeypatch.setattr(
        study, "show_progress", lambda *about: bars.append(show(*about)) or bars[-1]
    )

    def look(function):
        def looking(*inputs):
            said.append(bars[0].postfix)
            return function(*inputs)

        return looking

    for module, name in (
        (shared, "load_base_for"),
        (shared, "copy_sharing_matrices"),  # it follows
        (loop, "steps"),
    ):
        monkeypatch.setattr(module, name, look(getattr(module, name)))
    given = ["--task", "ner", "--epochs", "1", "--seeds", "1", "--model", str(tiny_folder)]
    study.main([*given, "--train-limit", "9", "--eval-limit", "5", "--threads", "1"])
    assert bars[0].desc == "study" and said == [f"loading {tiny_folder}"] * 2 + [""]


def test_the_line_of_a_run_names_its_base_with_its_size(tmp_path):
    sparse_folder = tmp_path / "large"
    sparse_folder.mkdir()
    sparse(sparse_folder / "model.safetensors", 5_260_000_000)
    record = {"flags": {"model": str(sparse_folder)}, "labels": [], "base": {}, "files": {}}
    write_record(make("run"), record)
    assert run_with_base(Path("run")) == f"run (5.3 GB of {sparse_folder})"
    assert run_with_base(Path("run"), "neo-mini") == "run (neo-mini)"
    write_record(make("none"), record | {"flags": {}})
    make("damaged").joinpath("run.json").write_text("{}")
    for name in ("none", "damaged", "missing"):
        assert run_with_base(Path(name)) == name


def make(name: str) -> Path:
    Path(name).mkdir()
    return Path(name)


def sparse(path: Path, size: int) -> None:
    """Write a file that has a size, but takes no space."""
    with open(path, "wb") as file:
        file.truncate(size)


def test_the_size_of_large_weights_is_named_where_they_are_on_this_machine(monkeypatch, tmp_path):
    assert with_size("neo-mini") == "neo-mini"
    assert with_size("no/model") == "no/model"
    assert with_size("not a model!") == "not a model!"
    Path("large").mkdir()
    for name, size in (("a", 3_000_000_000), ("b", 2_260_000_000)):
        sparse(Path("large", f"{name}.safetensors"), size)
    assert with_size("large") == "5.3 GB of large"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision, commit, size in (("main", "1" * 40, 100_000_000), ("old", "2" * 40, 7 * 10**8)):
        repository = tmp_path / "hub" / "models--some--model"
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        sparse(repository / "snapshots" / commit / "model.safetensors", size)
    assert with_size("some/model") == "0.1 GB of some/model"
    assert with_size("some/model@old") == "0.7 GB of some/model@old"


def test_a_run_on_the_bundled_model_and_data_imports_only_what_it_needs(tmp_path):
    """Not transformers or datasets, nor torch's compiler, which torch's own optimizers import."""
    code = """if True:
        import json, sys
        from neo_peft.commands import evaluate, predict, train
        limits = "--epochs 1 --max-steps 2 --train-limit 24 --eval-limit 3 --threads 1"
        for flags in ("ner --method lora", "sentiment --method prompt", "similarity --method lora"):
            train.main(["--task", *flags.split(), *limits.split()])
        evaluate.main(["runs/ner-lora"])
        predict.main(["runs/sentiment-prompt", "Profit rose ."])
        unwanted = ("transformers", "datasets", "torch._dynamo", "torch._inductor", "peft")
        print(json.dumps([name for name in unwanted if name in sys.modules]))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
