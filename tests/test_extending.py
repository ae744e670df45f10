"""docs/extending.md adds a method, a task, a corpus and a command: its Python blocks run here."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from neo_peft import __main__ as door
from neo_peft.corpora.sources import LOADERS
from neo_peft.encoding import collate
from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.methods import METHODS
from neo_peft.runs.adapter_set import AdapterSet
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.loading import load, load_untuned
from neo_peft.runs.training import run
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/extending.md"
LN_F = {"transformer.ln_f.weight", "transformer.ln_f.bias"}


@pytest.fixture
def add(monkeypatch):
    """Return a function that runs the Python blocks of a section of the page.

    A block that names a file runs in that module. The function returns the variables of the other
    blocks. The registries are restored after the test.
    """
    tables = [(table, dict(table)) for table in (METHODS, TASKS, LOADERS, door.COMMANDS)]
    made = {}

    def run_blocks(section: str) -> dict:
        text = re.split(rf"^## {section}.*$", PAGE.read_text(), flags=re.MULTILINE)[1]
        for block in re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.DOTALL):
            code = compile(block, f"{PAGE.name}, {block.splitlines()[0]}", "exec")
            path = re.match(r"# (neo_peft/\S+)\.py\n", block)
            name = path and path[1].replace("/", ".").removesuffix(".__init__")
            if not name:
                exec(code, made)
            elif (ROOT / f"{path[1]}.py").exists():
                exec(code, dict(vars(import_module(name))))  # as if added at the end of the file
            else:
                module = ModuleType(name)
                monkeypatch.setitem(sys.modules, name, module)
                exec(code, vars(module))
        return made

    yield run_blocks
    for table, before in tables:
        table.clear()
        table.update(before)


def logits(tuned, rows):
    """Return the logits of rows, in evaluation mode."""
    model = tuned.model.eval()
    with torch.no_grad():
        return model.logits(model(collate(tuned.encoder(rows), range(len(rows)))))


def test_every_block_is_in_a_section_that_a_test_runs():
    sections = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
    assert sections == ["A method", "A task", "A corpus, a file format", "A command"]


def test_the_new_method_trains_its_parameters_and_is_saved_and_loaded(add):
    made = add("A method")
    tuned, again, rows = made["tuned"], made["again"], made["rows"]
    trunk = load_base("neo-mini").trunk
    untrained = load_untuned(made["settings"], with_method=True)
    assert torch.equal(logits(untrained, rows), logits(load_untuned(made["settings"]), rows))
    # only the norm and the head change
    before = dict(untrained.model.named_parameters())
    changed = {
        name
        for name, parameter in tuned.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert (
        changed == LN_F | {"classifier.weight", "classifier.bias"} == tuned.model.trainable().keys()
    )
    assert not torch.equal(tuned.model.transformer.ln_f.weight, trunk.ln_f.weight)
    # the loaded run is the saved one
    assert torch.equal(logits(again, rows), logits(tuned, rows))
    assert not torch.equal(logits(again, rows), logits(untrained, rows))
    assert [path.name for path in Path("my-norm").iterdir()] == ["adapter_model.safetensors"]


def test_the_new_method_can_be_combined_with_lora(add):
    made = add("A method")
    assert made["summary"]["method"] == "lora+norm" and made["summary"]["trainable"] == 49152 + 512
    stored = {
        name: load_file(f"both/{name}/adapter_model.safetensors") for name in ("lora", "norm")
    }
    assert stored["norm"].keys() == {f"base_model.model.{name}" for name in LN_F}
    assert all(".lora_A." in name or ".lora_B." in name for name in stored["lora"])
    tuned = load("both")
    assert torch.equal(
        tuned.model.transformer.ln_f.bias, stored["norm"][f"base_model.model.{min(LN_F)}"]
    )
    with pytest.raises(InputError, match="was trained by norm: it cannot share a base"):
        AdapterSet(["both"])


def test_a_stopped_run_is_resumed_to_the_same_bits(add):
    add("A method")

    class Halt(Exception):
        pass

    def print_line(line):
        if line.startswith("epoch 2"):
            raise Halt

    flags = {"task": "ner", "method": "norm", "epochs": 3, "train_limit": 8, "eval_limit": 4}
    run(make_settings(**flags, out="whole"))
    with pytest.raises(Halt):
        run(make_settings(**flags, out="halted"), print_line)
    assert Path("halted/checkpoints/step-1").exists() and not Path("halted/run.json").exists()
    run(settings_to_resume(Path("halted"), json=False))
    name = "adapter_model.safetensors"
    assert Path("halted", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_merged_export_has_the_changes_of_the_method(add, monkeypatch, capsys):
    add("A method")
    rows = [{"sentence": "Profit rose to EUR 5 mn ."}, {"sentence": "Sales fell ."}]
    monkeypatch.setattr(sys, "argv", ["neo_peft", "export", "both", "peft"])
    assert door.main() == 2
    assert "peft has no adapter for the method lora+norm" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["neo_peft", "export", "both", "whole", "--merge"])
    assert door.main() == 0
    whole = load_untuned(make_settings(task="sentiment", method="head", model="whole"))
    assert torch.allclose(logits(whole, rows), logits(load("both"), rows), atol=1e-4)


def test_the_new_task_is_trained_on_the_new_corpus(add):
    folder = Path("DATA/questions")
    folder.mkdir(parents=True)
    lines = [f"{word}: {word} is number {n} ?" for n in range(20) for word in ("who", "where")]
    (folder / "train.txt").write_text("\n".join(lines) + "\n\n")
    (folder / "test.txt").write_text("when: When is it ?\nwho: Who is it ?\n")
    add("A method")
    add("A task")
    made = add("A corpus, a file format")
    splits = made["splits"]
    assert [len(rows) for rows in splits.named().values()] == [36, 4, 2]
    assert splits.test[0] == {"sentence": "When is it ?", "label": "when"}
    settings = make_settings(task="questions", method="lora", data="DATA", max_steps=2, out="run")
    assert run(settings)["after"]["test"].keys() >= {"accuracy", "macro_f1"}
    (folder / "test.txt").write_text("who: Who is it ?\nwhy: Why not ?\n")
    with pytest.raises(InputError, match="test.txt, line 2: unknown label 'why'; expected one of"):
        add("A corpus, a file format")


def test_the_new_command_runs_and_refuses_bad_input(add, monkeypatch, capsys):
    add("A command")
    monkeypatch.setattr(sys, "argv", ["neo_peft", "labels", "sentiment"])
    assert door.main() == 0
    assert capsys.readouterr().out.split() == ["negative", "neutral", "positive"]
    monkeypatch.setattr(sys, "argv", ["neo_peft", "labels", "nonsense"])
    assert door.main() == 2
    assert capsys.readouterr().err.startswith("error: there is no task 'nonsense'; the tasks are ")
