"""The memory and the number of open files of a long run stay constant. Encoded rows are flat arrays
of integers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from killing import end, start
from repeats import first_quick

from neo_peft.corpora.sources import load_splits
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.runs import training
from neo_peft.runs.loading import make_encoder
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

STEPS, WARM_UP = 2_000, 400  # memory is compared after the warm-up and at the end
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_two_thousand_steps(tiny_folder, tmp_path):
    """The run has many epochs and checkpoints, and records each step."""
    flags = [
        "--task",
        "ner",
        "--method",
        "lora",
        "--model",
        tiny_folder,
        "--threads",
        1,
        "--batch-size",
        2,
    ]
    flags += [
        "--dropout",
        0.1,
        "--train-limit",
        200,
        "--eval-limit",
        8,
        "--max-steps",
        STEPS,
        "--epochs",
        STEPS,
    ]
    flags += ["--checkpoint-every", 150, "--out", "run"]

    def measure() -> None:
        original_step, measurements = training.Log.step, []

        def measured_step(log, step):
            original_step(log, step)
            if step.step % 100 == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
                measurements.append(
                    {
                        "step": step.step,
                        "bytes": resident,
                        "files": len(os.listdir("/proc/self/fd")),
                    }
                )
                Path("measurements").write_text(json.dumps(measurements))

        training.Log.step = measured_step

    assert end(start([str(flag) for flag in flags], measure)) == 0, Path("stderr").read_text()
    measurements = json.loads(Path("measurements").read_text())
    assert measurements[-1]["step"] == STEPS
    warmed_up = next(line for line in measurements if line["step"] == WARM_UP)
    last = measurements[-1]
    print(f"step {WARM_UP}: {warmed_up['bytes']:,} bytes; step {STEPS}: {last['bytes']:,} bytes")
    assert last["bytes"] <= 1.02 * warmed_up["bytes"]
    assert {line["files"] for line in measurements} == {warmed_up["files"]}


@pytest.mark.parametrize("task", first_quick(["ner", "sentiment"]))
def test_a_hundred_thousand_rows_are_stored_as_flat_integers(task):
    settings = make_settings(task=task, method="lora")
    rows = load_splits(TASKS[task], "sample").train
    rows = (rows * (100_000 // len(rows) + 1))[:100_000]
    folder = BUNDLED["neo-mini"]
    encoder = make_encoder(
        TASKS[task], load_tokenizer(folder), read_config(folder), settings, with_head=task == "ner"
    )
    examples = encoder(rows)
    assert (examples.word_counts is None) == (task != "ner")  # words are counted only for tagging
    fields = vars(examples).values()
    arrays = [value for value in fields if value is not None and not isinstance(value, int)]
    assert len(examples) == 100_000 and examples.ids.dtype == np.int32
    assert all(isinstance(array, np.ndarray) and array.dtype.kind == "i" for array in arrays)
    stored = sum(array.nbytes for array in arrays)
    print(f"{stored:,} bytes for {examples.ids.nbytes:,} of ids")
    assert all(array.base is None for array in arrays)  # not views of larger arrays
    assert stored <= 3 * examples.ids.nbytes
