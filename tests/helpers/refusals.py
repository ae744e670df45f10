"""Run commands with bad input and check how they refuse it."""

import re
import shlex
from pathlib import Path

import pytest

import evaluate
import train
from neo_peft.commands import compare, export, look, predict, report, study
from neo_peft.formats import base
from neo_peft.system.exit_status import exit_status

SCRIPTS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "study": study,
    "report": report,
    "compare": compare,
    "look": look,
}

NER, TEXT = "train --task ner --method lora", "train --task sentiment --method prompt"


def run(command: str) -> int:
    """Run a command line in this process; return its exit status."""
    script, *argv = shlex.split(command)
    try:
        return exit_status(lambda: SCRIPTS[script].main(argv))
    except SystemExit as stop:
        return stop.code


def shown(err: str) -> str:
    """Return what a terminal shows of standard error: what comes after a carriage return overwrites
    a progress bar, or the line "loading neo-mini"."""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in err.split("\n"))


def refused(capfd, command: str, message: str) -> None:
    """Assert that a command prints one error line, exits with status 2 and writes no file.

    In `message`, {here} is the current folder and … is any text.
    """
    before = sorted(Path().rglob("*"))
    capfd.readouterr()
    status = run(command)
    out, err = capfd.readouterr()
    line = shown(err)
    expected = f"error: {message.replace('{here}', str(Path().resolve()))}\n"
    assert line == expected or re.fullmatch(re.escape(expected).replace("…", r"[^\n]*"), line)
    assert (status, out, sorted(Path().rglob("*"))) == (2, "", before)


def cases(table: list) -> pytest.MarkDecorator:
    """Parametrize a test with the cases of a table; the first item of a case is its id."""
    return pytest.mark.parametrize(
        "case", table, ids=[str(case[0]).removeprefix(NER).strip() for case in table]
    )


def forbid_loading(monkeypatch) -> None:
    """Fail the test if a base model is loaded: `load_base` first calls `find_folder`."""
    monkeypatch.setattr(base, "find_folder", lambda *_: pytest.fail("a base was loaded"))


TASKS = (
    "ner, sentiment, similarity, tagging, classification, pairs, "
    "glue/cola, glue/sst2, glue/mrpc, glue/qqp, glue/mnli, glue/qnli, glue/rte, glue/wnli"
)

METHODS = "lora, prompt, prefix, full, head, lora+prompt, lora+prefix"

TAGS = (
    "O, B-DNA, I-DNA, B-protein, I-protein, B-cell_type, I-cell_type, B-cell_line, I-cell_line, "
    "B-RNA, I-RNA"
)
