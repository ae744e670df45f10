"""A long run holds no more memory and no more files at its end than at its beginning; rows are flat
integers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from killing import end, start

from neo_peft.corpora.sources import load_splits
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.runs import training
from neo_peft.runs.loading import make_encoder
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

STEPS, WARM = 2_000, 400
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_two_thousand_steps(tiny_folder, tmp_path):
    """Epochs, checkpoints and the record of each step among them."""
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

    def watch() -> None:
        real, seen = training.Log.step, []

        def watched(log, step):
            real(log, step)
            if step.step % 100 == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
                seen.append(
                    {
                        "step": step.step,
                        "bytes": resident,
                        "files": len(os.listdir("/proc/self/fd")),
                    }
                )
                Path("seen").write_text(json.dumps(seen))

        training.Log.step = watched

    assert end(start([str(flag) for flag in flags], watch)) == 0, Path("stderr").read_text()
    seen = json.loads(Path("seen").read_text())
    assert seen[-1]["step"] == STEPS
    first = next(one for one in seen if one["step"] == WARM)
    print(f"step {WARM}: {first['bytes']:,} bytes; step {STEPS}: {seen[-1]['bytes']:,} bytes")
    assert seen[-1]["bytes"] <= 1.02 * first["bytes"]
    assert {one["files"] for one in seen} == {first["files"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_a_hundred_thousand_rows_are_held_as_flat_integers(task):
    settings = make_settings(task=task, method="lora")
    rows = load_splits(TASKS[task], "sample").train
    rows = (rows * (100_000 // len(rows) + 1))[:100_000]
    folder = BUNDLED["neo-mini"]
    encoder = make_encoder(
        TASKS[task], load_tokenizer(folder), read_config(folder), settings, with_head=task == "ner"
    )
    examples = encoder(rows)
    assert (examples.words is None) == (task != "ner")  # an answer's text has no words to count
    fields = vars(examples).values()
    arrays = [value for value in fields if value is not None and not isinstance(value, int)]
    assert len(examples) == 100_000 and examples.ids.dtype == np.int32
    assert all(isinstance(array, np.ndarray) and array.dtype.kind == "i" for array in arrays)
    held = sum(array.nbytes for array in arrays)
    print(f"{held:,} bytes for {examples.ids.nbytes:,} of ids")
    assert all(array.base is None for array in arrays)  # nothing larger is held behind them
    assert held <= 3 * examples.ids.nbytes
