"""The GPU benchmark: each of its parts measures, here on a CPU at a tiny size, and one that fails
does not stop the others."""

import json

import pytest

from benchmarks import gpu, peers, sides
from neo_peft.errors import InputError
from neo_peft.gptneo import Block

FLAGS = ["--device", "cpu", "--precision", "fp32", "--shapes", "125m", "--pairs", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(sides.SHAPES, "125m", (36, 2, 3))
    monkeypatch.setattr(peers, "RECORDS", tmp_path / "records")


def part(name: str, *flags: str) -> dict:
    return gpu.parts_of(gpu.parse_flags([*FLAGS, *flags]))[name]()


@pytest.mark.parametrize("task", gpu.TASKS)
def test_training_steps_are_compared_with_both_peers(task):
    lines = part(f"steps 125m {task}")
    for line in lines.values():
        assert line["agrees"] and line["ratio"] > 0 and line["tokens_per_second"] > 0
        assert 0 < line["share"] < 1
    assert 0 < lines["the source"]["bytes"] < lines["the source"]["peers_bytes"]


def test_predictions_are_measured():
    assert part("evaluation 125m")["ratio"] > 0


def test_the_step_with_compiled_blocks_is_measured(monkeypatch):
    """Without torch's compiler, which takes half a minute to load."""
    compiled = []
    monkeypatch.setattr(Block, "compile", lambda block, **given: compiled.append((block, given)))
    line = part("compile 125m", "--backend", "eager")
    assert line["agrees"] and line["ratio"] > 0 and line["seconds_to_compile"] > 0
    assert len({id(block) for block, _ in compiled}) == 2  # both layers of one of the two models
    assert all(given == {"backend": "eager", "dynamic": True} for _, given in compiled)


def test_a_record_names_what_failed_and_keeps_the_rest(monkeypatch, tmp_path, capsys):
    def run_part(name, argv, seconds):
        assert argv == FLAGS and seconds <= 480
        return {"failed": "exit status 1: no"} if name.startswith("compile") else {"ratio": 2}

    monkeypatch.setattr(gpu, "run_part", run_part)
    gpu.main(FLAGS)
    record = json.loads((tmp_path / "records/gpu-cpu.json").read_text())
    names = ["tests", "steps 125m ner", "steps 125m sentiment", "evaluation 125m", "compile 125m"]
    assert list(record["parts"]) == names
    assert record["parts"]["compile 125m"] == {"failed": "exit status 1: no"}
    assert 'steps 125m ner: {"ratio": 2}' in capsys.readouterr().out


def test_a_part_is_a_process_that_can_fail_or_have_no_time():
    assert gpu.run_part("tests", FLAGS, 0) == {"failed": "no time was left"}
    assert "stopped after the 1 seconds" in gpu.run_part("tests", FLAGS, 1)["failed"]
    assert gpu.run_part("none", FLAGS, 60) == {"failed": "exit status 1: KeyError: 'none'"}


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU here that torch can use"):
        gpu.main([])


def test_the_tests_are_counted(tmp_path):
    cases = [
        '<testcase name="a"/>',
        '<testcase name="b"><skipped/></testcase>',
        '<testcase name="c"><failure/></testcase>',
        '<testcase name="d"><error/></testcase>',
    ]
    report = tmp_path / "report.xml"
    suite = f'<testsuite tests="4" skipped="1" failures="1" errors="1">{"".join(cases)}</testsuite>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert gpu.counts(report) == {"passed": 1, "skipped": 1, "failures": ["c", "d"]}
