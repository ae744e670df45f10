"""Randomly damaged files of a run: the run gives the same result, or is refused in one line.

In half of the cases all checksums are corrected after the damage. Then the result can differ, but
it must be finite.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from damage import (
    PARTS,
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
# What a refusal can name: the run, a step, a setting, or a base of the settings.
NAMED = "{}|at step|^--|not finite|no linear layer matches|is not in the cache"
JSON = mixed(damaged, damaged_json, damaged_json)
TENSORS = mixed(damaged_header, damaged, lambda whole, draw: damaged(whole, draw, 2000))


def correct_own_checksum(path: Path) -> None:
    """Correct the checksum that a JSON file has of itself, if the file still is a JSON object."""
    if is_json(content := path.read_bytes()):
        value = json.loads(content)
        value.pop("sha256", None)
        files.write_checked_json(path, value)


def correct_checksums(run: Path, name: str) -> None:
    """Correct all checksums of a run after one of its files was changed."""
    path = run / name
    if path.suffix == ".json" and path.name != "adapter_config.json":
        correct_own_checksum(path)
    checksum_file = next(
        (
            file
            for file in (run / RUN, path.parent / checkpoints.STATE)
            if file.exists() and file != path
        ),
        None,
    )
    if name == "metrics.jsonl":
        checksum_file = run / "checkpoints/step-3" / checkpoints.STATE
    if checksum_file is None or path.name == SETTINGS:
        return
    checksums = files.read_json(checksum_file)
    if name == "metrics.jsonl":
        content = path.read_bytes()
        checksums["log"] |= {"bytes": len(content), "sha256": files.sha256(path)}
    for key in {name, path.name} & checksums["files"].keys():
        checksums["files"][key] = files.sha256(path)
    files.write_json(checksum_file, checksums)
    correct_own_checksum(checksum_file)


def check_copies(numbers: range, run: Path, original: Path, name: str, damage, use, passes) -> None:
    """Damage one file in copies of a run, those with these numbers, and call `use` with each.

    `use` returns True if the result is the same. A seventh of the copies must have corrected
    checksums and pass `passes(content)`.
    """
    outcomes, failures, content = Counter(), [], (original / name).read_bytes()
    for number in numbers:
        case, corrected = f"{name} {number}", number % 2 == 0
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(original, run)
        changed = damage(content, random.Random(case))
        (run / name).write_bytes(changed)
        if corrected:
            correct_checksums(run, name)
        outcomes["passed the checksums"] += corrected and bool(passes(changed))
        try:
            with bounded(), warnings.catch_warnings(action="ignore"):
                same = use(run)
            outcome = (
                "same" if same else "different" if corrected else "DIFFERENT DESPITE CHECKSUMS"
            )
        except InputError as error:
            outcome, line = "refused", " ".join(str(error).split())
            if (
                not re.search(
                    NAMED.format(re.escape(str(run))) if corrected else re.escape(str(run)), line
                )
                or "\n" in line
            ):
                failures.append((case, "names no file", line[:200]))
        except (Exception, Late) as error:
            outcome = "FAILED"
            failures.append((case, type(error).__name__, str(error)[:200]))
        outcomes[outcome] += 1
    print(f"{name}: {dict(outcomes)}")
    assert not failures, f"{len(failures)} of {len(numbers)}: " + "\n".join(map(str, failures[:20]))
    assert not outcomes["DIFFERENT DESPITE CHECKSUMS"]
    assert outcomes["refused"] and outcomes["passed the checksums"] >= len(numbers) / 7


@pytest.fixture(params=PARTS)
def check_damaged_copies(request) -> Callable:
    """Return `check_copies` of one part of the cases."""
    return partial(check_copies, request.param)


# ---- A finished run


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """Return a folder with a finished run, and with the same run stopped before its last step."""
    folder = tmp_path_factory.mktemp("runs")
    os.chdir(folder)
    argv = [flag for flag in SMALL if flag not in ("--prompt-length", "8")] + [
        "--model",
        str(tiny_folder),
    ]

    def stop_before_last_step() -> None:
        original_step = training.Log.step

        def step_and_stop(log, step):
            original_step(log, step)
            if step.step == 3:
                os.kill(os.getpid(), 15)

        training.Log.step = step_and_stop

    assert end(start([*argv, "--out", "finished"])) == 0, Path("stderr").read_text()
    assert end(start([*argv, "--out", "stopped"], stop_before_last_step)) == 143
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", RUN])
def test_a_damaged_finished_run_predicts_the_same_or_is_refused(
    check_damaged_copies, runs, base, tmp_path, name
):
    rows = load_splits(TASKS["sentiment"], "sample").train[:2]

    def predict(run: Path) -> list[list[float]]:
        fresh = dataclasses.replace(base, trunk=copy.deepcopy(base.trunk))
        tuned = loading.load(run, loading.settings_in(run), fresh)
        probabilities = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows)).probabilities
        assert all(math.isfinite(value) for row in probabilities for value in row)
        return probabilities

    expected = predict(Path(shutil.copytree(runs / "finished", tmp_path / "first")))
    use = lambda run: predict(run) == expected  # noqa: E731
    damage, passes = (TENSORS, has_header) if name.endswith(".safetensors") else (JSON, is_json)
    check_damaged_copies(tmp_path / "run", runs / "finished", name, damage, use, passes)


def test_damaged_predictions_are_read_unchanged_or_refused(check_damaged_copies, runs, tmp_path):
    def use(run: Path) -> bool:
        rows = read_predictions(run, PredictionKind("after"), "test")
        scores = score(TASKS["sentiment"], rows, [row["predicted"] for row in rows])
        assert 0 <= scores["accuracy"] <= 1
        return rows == expected

    expected = read_predictions(runs / "finished", PredictionKind("after"), "test")
    name, passes = "predictions/after-test.jsonl", lambda content: content.startswith(b"{")
    damage = mixed(damaged, damaged_lines, partial(damaged_lines, damage=damaged_json))
    check_damaged_copies(tmp_path / "run", runs / "finished", name, damage, use, passes)


# ---- A stopped run


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
def test_a_damaged_stopped_run_resumes_to_the_same_result_or_is_refused(
    check_damaged_copies, runs, tiny_folder, tmp_path, monkeypatch, name
):
    """The base and the data are not damaged, so they are loaded once."""
    monkeypatch.setattr(record, "commit", lambda: None)
    good_settings = settings_to_resume(runs / "stopped", json=False)
    job = training.prepare(good_settings, training.Output(Path(), print, training.no_progress, 0.0))
    start_weights = {name: p.detach().clone() for name, p in job.tuned.model.trainable().items()}

    def prepare(settings, output, resumed_threads, shared=None):
        # damaged settings can name another base or other data
        if flags_of(settings) != flags_of(good_settings):
            return original_prepare(settings, output, resumed_threads, shared)
        torch.set_num_threads(resumed_threads or 1)
        with torch.no_grad():
            for key, parameter in job.tuned.model.trainable().items():
                parameter.copy_(start_weights[key])
        return dataclasses.replace(job, output=output)

    original_prepare = training.prepare
    monkeypatch.setattr(training, "prepare", prepare)

    def use(run: Path) -> bool:
        torch.manual_seed(0)
        done = training.run(settings_to_resume(run, json=False), print_line=lambda line: None)
        assert math.isfinite(done["after"]["validation"]["accuracy"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
        return expected is None or comparable_result(run) == expected

    def comparable_result(run: Path) -> dict:
        content = result(run)
        content.pop(SETTINGS)  # a damaged copy can have one more space
        content["run.json"]["files"].pop(SETTINGS)
        return content

    expected = None
    first = Path(shutil.copytree(runs / "stopped", tmp_path / "run"))
    use(first)
    expected = comparable_result(first)
    damage, passes = (TENSORS, has_header) if name.endswith(".safetensors") else (JSON, is_json)
    if name == "metrics.jsonl":
        damage, passes = damaged, lambda content: content.startswith(b"{")
    check_damaged_copies(first, runs / "stopped", name, damage, use, passes)
