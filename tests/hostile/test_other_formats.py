"""JSON files in the format of another version are refused, although their checksum is right."""

import json
from pathlib import Path

import pytest
from refusals import forbid_loading, refused, run, shown

from neo_peft.runs.checkpoints import STATE
from neo_peft.runs.folder import RUN, SETTINGS, flags_of, write_record
from neo_peft.settings import make_settings
from neo_peft.studies.plan import PLAN, RESULTS, make_plan
from neo_peft.system.files import FORMAT, read_json, sha256_of, write_checked_json

FLAGS = make_settings(task="sentiment", method="head")


@pytest.fixture(autouse=True)
def folders():
    """Write the JSON files of a finished run, of a started run and of a finished study."""
    for name in ("run", "started/checkpoints/step-2", "study"):
        Path(name).mkdir(parents=True)
    record = {"task": "sentiment", "labels": [], "flags": flags_of(FLAGS), "base": {}, "files": {}}
    write_record(Path("run"), record)
    for name in ("run", "started"):
        write_checked_json(Path(name) / SETTINGS, flags_of(FLAGS))
    write_checked_json(Path("started/checkpoints/step-2") / STATE, {"step": 2})
    write_checked_json(Path("study") / PLAN, make_plan({"task": "sentiment"}, seeds=1))
    write_checked_json(Path("study") / RESULTS, {"protocols": {}, "runs": []})


def set_format(path: Path, version: object) -> None:
    """Change the format of a file, or remove it if `version` is None. The checksum is corrected."""
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
    f"started/{SETTINGS}": ["train --resume started"],
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
def test_a_file_in_another_format_is_refused_by_name(capfd, monkeypatch, file, command, version):
    forbid_loading(monkeypatch)
    set_format(Path(file), version)
    refused(capfd, command, refusal(file, version))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_in_another_format_is_refused_by_name(capfd, monkeypatch, version):
    """It is the only checkpoint of the run."""
    forbid_loading(monkeypatch)
    file = f"started/checkpoints/step-2/{STATE}"
    set_format(Path(file), version)
    before = sorted(Path().rglob("*"))
    assert run("train --resume started") == 2
    assert shown(capfd.readouterr().err) == f"error: {refusal(file, version)}\n"
    assert sorted(Path().rglob("*")) == before
