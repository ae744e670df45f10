"""The CPU seconds of training in timings.jsonl."""

import json
import time
from types import SimpleNamespace

from neo_peft.loop import Step
from neo_peft.runs.log import Log, cpu_seconds
from neo_peft.system.files import sha256

STEP = Step(*range(1, 1 + len(Step._fields)))


def compute(seconds: float) -> None:
    """Use the CPU for this time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_seconds_count_from_the_start_of_training_and_on_after_a_resume(tmp_path):
    log = Log(tmp_path, None)
    time.sleep(0.05)  # costs no CPU time
    compute(0.02)
    log.step(STEP)
    position = log.position()
    log.step(STEP)  # after the checkpoint, so a resumed run cuts this line off
    log.close()
    first = json.loads((tmp_path / "timings.jsonl").read_text().splitlines()[0])
    assert 0.02 <= first["cpu_seconds"] < first["seconds"]
    assert "cpu_seconds" not in (tmp_path / "metrics.jsonl").read_text()

    timings = tmp_path / "timings.jsonl"
    text = timings.read_text().replace(
        f'"cpu_seconds": {first["cpu_seconds"]}', '"cpu_seconds": 7.5'
    )
    timings.write_text(text)
    position["timings"] = len(text.splitlines()[0]) + 1
    log = Log(tmp_path, SimpleNamespace(record={"log": position, "seconds": 1.0}, folder=tmp_path))
    compute(0.01)
    log.step(STEP)
    log.close()
    lines = [json.loads(line) for line in timings.read_text().splitlines()]
    assert len(lines) == 2 and 7.51 <= lines[1]["cpu_seconds"] == cpu_seconds(timings) < 15
    assert position["sha256"] != sha256(tmp_path / "metrics.jsonl")


def test_a_run_of_an_older_version_has_no_cpu_seconds(tmp_path):
    path = tmp_path / "timings.jsonl"
    assert cpu_seconds(path) is None
    path.write_text('{"step": 1, "seconds": 0.1, "tokens": 5}\n')
    assert cpu_seconds(path) is None
