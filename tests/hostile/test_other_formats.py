"""Our own JSON files in the format of another version: refused in one line, whatever their
checksum."""

import json
from pathlib import Path

import pytest
from refusals import forbid_loading, refused, run

from neo_peft.analysis.plan import PLAN, RESULTS, make_plan
from neo_peft.runs.checkpoints import STATE
from neo_peft.runs.folder import RUN, SETTINGS, flags_of, write_record
from neo_peft.settings import make_settings
from neo_peft.system.files import FORMAT, read_json, sha256_of, write_checked_json

FLAGS = make_settings(task="sentiment", method="head")


@pytest.fixture(autouse=True)
def folders():
    """A finished run, one that has begun, and a finished study, as far as their JSON files go."""
    for name in ("run", "begun/checkpoints/step-2", "study"):
        Path(name).mkdir(parents=True)
    record = {"task": "sentiment", "labels": [], "flags": flags_of(FLAGS), "base": {}, "files": {}}
    write_record(Path("run"), record)
    for name in ("run", "begun"):
        write_checked_json(Path(name) / SETTINGS, flags_of(FLAGS))
    write_checked_json(Path("begun/checkpoints/step-2") / STATE, {"step": 2})
    write_checked_json(Path("study") / PLAN, make_plan({"task": "sentiment"}, seeds=1))
    write_checked_json(Path("study") / RESULTS, {"protocols": {}, "runs": []})


def give_format(path: Path, version: object) -> None:
    """Change the format that a file says it has, None to none at all; its checksum is right."""
    record = {name: value for name, value in read_json(path).items() if name != "sha256"}
    record["format"] = version
    if version is None:
        del record["format"]
    path.write_text(json.dumps(record | {"sha256": sha256_of(record)}))


FILES = {
    f"run/{RUN}": [
        "evaluate run",
        "predict run 'Profit rose .'",
        "export run out",
        "report run",
        "compare run run",
        "train --resume run",
        "train --adapter run",
    ],
    f"run/{SETTINGS}": ["train --resume run"],
    f"begun/{SETTINGS}": ["train --resume begun"],
    f"study/{PLAN}": ["study --resume study", "compare run study"],
    f"study/{RESULTS}": ["compare run study"],
}


VERSIONS = [None, 1, FORMAT + 1, str(FORMAT), [FORMAT]]


def refusal(file: str, version: object) -> str:
    return (
        f"{file} has format {version}, but this version of neo_peft reads only {FORMAT}: use the "
        "version that wrote it, or run it again"
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("file", "command"),
    [(file, command) for file, commands in FILES.items() for command in commands],
)
def test_another_format_is_refused_by_name(capfd, monkeypatch, file, command, version):
    forbid_loading(monkeypatch)
    give_format(Path(file), version)
    refused(capfd, command, refusal(file, version))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_in_another_format_is_refused_by_name(capfd, monkeypatch, version):
    """A note goes before it, as for any checkpoint that is passed over: no other one is there."""
    forbid_loading(monkeypatch)
    file = f"begun/checkpoints/step-2/{STATE}"
    give_format(Path(file), version)
    before = sorted(Path().rglob("*"))
    assert run("train --resume begun") == 2
    assert capfd.readouterr().err == f"error: {refusal(file, version)}\n"
    assert sorted(Path().rglob("*")) == before
