"""Our own files, damaged by chance: the same result, or a refusal in one line that names the file.

In half of the cases every checksum of ours is made right again, as chance would not: then what is
read may differ, but the run still ends finite, or is refused.
"""

import copy
import dataclasses
import json
import math
import os
import random
import re
import shutil
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from damage import (
    CASES,
    Late,
    bounded,
    damaged,
    damaged_header,
    damaged_json,
    damaged_lines,
    has_header,
    is_json,
    mixed,
)
from killing import end, result, start

from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate, score
from neo_peft.errors import InputError
from neo_peft.runs import checkpoints, loading, record, training
from neo_peft.runs.folder import RUN, SETTINGS, flags_of
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.system import files
from neo_peft.tasks import TASKS

SMALL = [
    "--threads",
    "1",
    "--train-limit",
    "4",
    "--eval-limit",
    "2",
    "--epochs",
    "2",
    "--batch-size",
    "2",
]
SMALL += ["--task", "sentiment", "--method", "lora", "--prompt-length", "8"]
# The run, a step, a setting, or a base that the settings name.
NAMED = "{}|at step|^--|not finite|no linear layer matches|is not in the cache"
JSON = mixed(damaged, damaged_json, damaged_json)
TENSORS = mixed(damaged_header, damaged, lambda whole, draw: damaged(whole, draw, 2000))


def sealed(path: Path) -> None:
    """Make a JSON file's checksum of itself right again, where it is still an object."""
    if is_json(content := path.read_bytes()):
        value = json.loads(content)
        value.pop("sha256", None)
        files.write_checked_json(path, value)


def right_again(run: Path, name: str) -> None:
    """Make all our checksums right again after one file of a run was changed."""
    path = run / name
    if path.suffix == ".json" and path.name != "adapter_config.json":
        sealed(path)
    keeper = next(
        (p for p in (run / RUN, path.parent / checkpoints.STATE) if p.exists() and p != path), None
    )
    if name == "metrics.jsonl":
        keeper = run / "checkpoints/step-3" / checkpoints.STATE
    if keeper is None or path.name == SETTINGS:
        return
    kept = files.read_json(keeper)
    if name == "metrics.jsonl":
        content = path.read_bytes()
        kept["log"] |= {"bytes": len(content), "sha256": files.sha256(path)}
    for key in {name, path.name} & kept["files"].keys():
        kept["files"][key] = files.sha256(path)
    files.write_json(keeper, kept)
    sealed(keeper)


def survive(run: Path, whole: Path, name: str, damage, use, passes) -> None:
    """Damage CASES copies of a run in one file, and use each."""
    outcomes, wrong, content = Counter(), [], (whole / name).read_bytes()
    for number in range(CASES):
        case, mended = f"{name} {number}", number % 2 == 0
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        changed = damage(content, random.Random(case))
        (run / name).write_bytes(changed)
        if mended:
            right_again(run, name)
        outcomes["behind the checksum"] += mended and bool(passes(changed))
        try:
            with bounded(), warnings.catch_warnings(action="ignore"):
                same = use(run)
            outcome = "same" if same else "another" if mended else "ANOTHER THOUGH NOT MENDED"
        except InputError as error:
            outcome, line = "refused", " ".join(str(error).split())
            if (
                not re.search(
                    NAMED.format(re.escape(str(run))) if mended else re.escape(str(run)), line
                )
                or "\n" in line
            ):
                wrong.append((case, "names no file", line[:200]))
        except (Exception, Late) as error:
            outcome = "FAILED"
            wrong.append((case, type(error).__name__, str(error)[:200]))
        outcomes[outcome] += 1
    print(f"{name}: {dict(outcomes)}")
    assert not wrong, f"{len(wrong)} of {CASES}: " + "\n".join(map(str, wrong[:20]))
    assert not outcomes["ANOTHER THOUGH NOT MENDED"]
    assert outcomes["refused"] and outcomes["behind the checksum"] >= CASES / 5


# ---- A finished run


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """A finished run, and the same one as it was before its last step."""
    folder = tmp_path_factory.mktemp("runs")
    os.chdir(folder)
    argv = [flag for flag in SMALL if flag not in ("--prompt-length", "8")] + [
        "--model",
        str(tiny_folder),
    ]

    def last() -> None:
        real = training.Log.step

        def stopping_at(log, step):
            real(log, step)
            if step.step == 3:
                os.kill(os.getpid(), 15)

        training.Log.step = stopping_at

    assert end(start([*argv, "--out", "finished"])) == 0, Path("stderr").read_text()
    assert end(start([*argv, "--out", "stopped"], last)) == 143
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", RUN])
def test_a_finished_run_is_loaded_as_it_was_or_refused(runs, base, tmp_path, name):
    rows = load_splits(TASKS["sentiment"], "sample").train[:2]

    def answers(run: Path) -> list[list[float]]:
        fresh = dataclasses.replace(base, trunk=copy.deepcopy(base.trunk))
        tuned = loading.load(run, loading.settings_in(run), fresh)
        found = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows)).probabilities
        assert all(math.isfinite(value) for row in found for value in row)
        return found

    expected = answers(Path(shutil.copytree(runs / "finished", tmp_path / "first")))
    use = lambda run: answers(run) == expected  # noqa: E731
    damage, passes = (TENSORS, has_header) if name.endswith(".safetensors") else (JSON, is_json)
    survive(tmp_path / "run", runs / "finished", name, damage, use, passes)


@pytest.mark.slow
def test_a_runs_answers_are_read_as_they_were_or_refused(runs, tmp_path):
    def use(run: Path) -> bool:
        rows = read_predictions(run, PredictionKind("after"), "test")
        scores = score(TASKS["sentiment"], rows, [row["predicted"] for row in rows])
        assert 0 <= scores["accuracy"] <= 1
        return rows == expected

    expected = read_predictions(runs / "finished", PredictionKind("after"), "test")
    name, passes = "predictions/after-test.jsonl", lambda content: content.startswith(b"{")
    damage = mixed(damaged, damaged_lines, partial(damaged_lines, damage=damaged_json))
    survive(tmp_path / "run", runs / "finished", name, damage, use, passes)


# ---- A run that goes on


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        SETTINGS,
        "metrics.jsonl",
        *(
            f"checkpoints/step-3/{name}"
            for name in (checkpoints.STATE, checkpoints.TENSORS, checkpoints.BEST)
        ),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_result_or_is_refused(
    runs, tiny_folder, tmp_path, monkeypatch, name
):
    """The base and the data, which are sound, are loaded once; the plot is left out."""
    monkeypatch.setattr(
        record, "learning_curves", lambda metrics, plot, task: plot.write_bytes(b"")
    )
    monkeypatch.setattr(record, "commit", lambda: None)
    sound = settings_to_resume(runs / "stopped", json=False)
    job = training.prepare(sound, training.Output(Path(), print, training.no_progress, 0.0))
    start_weights = {name: p.detach().clone() for name, p in job.tuned.model.trainable().items()}

    def prepare(settings, output, resumed_threads):
        # which a change of the settings themselves may ask for
        if flags_of(settings) != flags_of(sound):
            return real(settings, output, resumed_threads)
        torch.set_num_threads(resumed_threads or 1)
        with torch.no_grad():
            for key, parameter in job.tuned.model.trainable().items():
                parameter.copy_(start_weights[key])
        return dataclasses.replace(job, output=output)

    real = training.prepare
    monkeypatch.setattr(training, "prepare", prepare)

    def use(run: Path) -> bool:
        torch.manual_seed(0)
        done = training.run(settings_to_resume(run, json=False), print_line=lambda line: None)
        assert math.isfinite(done["after"]["validation"]["accuracy"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
        return expected is None or found(run) == expected

    def found(run: Path) -> dict:
        content = result(run)
        content.pop(SETTINGS)  # which may hold a space more
        content["run.json"]["files"].pop(SETTINGS)
        return content

    expected = None
    first = Path(shutil.copytree(runs / "stopped", tmp_path / "run"))
    use(first)
    expected = found(first)
    damage, passes = (TENSORS, has_header) if name.endswith(".safetensors") else (JSON, is_json)
    if name == "metrics.jsonl":
        damage, passes = damaged, lambda content: content.startswith(b"{")
    survive(first, runs / "stopped", name, damage, use, passes)
