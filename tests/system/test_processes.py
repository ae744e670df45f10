"""Two processes have the same results as one: losses, gradients, weights, scores, files. They end
together.

Each process has its own folder, as on two hosts without a shared disk.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repeats import first_quick
from safetensors.torch import load_file
from waiting import HANG, wait_until

from neo_peft import loop
from neo_peft.runs import training
from neo_peft.settings import make_settings
from neo_peft.system import processes, torchrun

ROOT = Path(__file__).parents[2]
SMALL = {"epochs": 2, "eval_limit": 13, "head_dropout": 0, "threads": 1, "precision": "fp32"}
# With 21 examples in batches of 8 the last step has 5. With 17 it has 1, so one process has none.
RUNS = {  # name: the settings for one process; each of two processes has half of the batch size
    "lora": {"task": "ner", "method": "lora", "batch_size": 8, "train_limit": 21, "bias": "all"},
    "prompt": {"task": "sentiment", "method": "prompt", "batch_size": 8, "train_limit": 21},
    "both": {
        "task": "similarity",
        "method": "lora+prompt",
        "batch_size": 6,
        "train_limit": 21,
        "prompt_length": 5,
    },
    "full": {
        "task": "sentiment",
        "method": "full",
        "batch_size": 8,
        "train_limit": 17,
        "learning_rate": 1e-4,
    },
    "accumulated": {
        "task": "ner",
        "method": "lora",
        "batch_size": 4,
        "gradient_accumulation": 2,
        "train_limit": 21,
    },
    "an empty last batch": {
        "task": "ner",
        "method": "lora",
        "batch_size": 8,
        "train_limit": 17,
        "max_steps": 5,
    },
    "fp16": {
        "task": "ner",
        "method": "lora",
        "batch_size": 8,
        "train_limit": 17,
        "precision": "fp16",
    },
    "windows": {
        "task": "ner",
        "method": "lora",
        "batch_size": 8,
        "train_limit": 21,
        "max_length": 24,
        "stride": 6,
    },
    "one example in fp16": {
        "task": "sentiment",
        "method": "head",
        "batch_size": 2,
        "train_limit": 1,
        "precision": "fp16",
    },
}
WORKER = """
import json, sys
from neo_peft.system import processes
from neo_peft.system import torchrun

def main():
    import torch
    from neo_peft import decoding
    from neo_peft.runs import training
    from neo_peft.settings import make_settings
    scored, collate = [], decoding.collate
    def watch(examples, chosen):
        scored.extend(chosen)
        return collate(examples, chosen)
    decoding.collate = watch
    both, one, none = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    both.grad = torch.full((2, 3), 1.0 + processes.process_index)
    one.grad = torch.ones(2, 3) if processes.process_index else None
    processes.sum_gradients([both, one, none])
    assert both.grad.tolist() == [[3.0] * 3] * 2
    assert one.grad.tolist() == [[1.0] * 3] * 2 and none.grad is None
    results = {}
    for name, flags in json.loads(sys.argv[1]).items():
        scored.clear()
        summary = training.run(make_settings(**flags), print_line=lambda line: print(line))
        parts = processes.gather((len(scored), torch.initial_seed(), summary))
        counts, seeds, summaries = zip(*parts)
        results[name] = {"scored": counts, "seeds": seeds, "same": summaries[0] == summaries[1]}
        if processes.process_index == 0:
            print("results " + json.dumps(results), flush=True)

sys.exit(torchrun.run_together(main))
"""


def start_two(folder: Path, *command) -> list[subprocess.Popen]:
    """Start a Python command as two processes, with the environment that torchrun would set."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    started = []
    for index in (0, 1):
        own_folder = folder / str(index)
        own_folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "RANK": index,
            "LOCAL_RANK": index,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TQDM_DISABLE": 1,
            "PYTHONPATH": ROOT,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={name: str(value) for name, value in env.items()},
                cwd=own_folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def wait_for(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Wait for processes; return the status, standard output and standard error of each."""
    try:
        outputs = [process.communicate(timeout=HANG) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, outputs)]


def any_ended(started: list[subprocess.Popen]) -> bool:
    """Return whether any of the processes has ended."""
    return any(process.poll() is not None for process in started)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.rglob("*.safetensors")
    return {
        f"{file.relative_to(folder)} {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(["lora"], id="lora"),
        pytest.param([*RUNS][1:], id="the others", marks=pytest.mark.slow),
    ],
)
def together(request, tiny_folder, tmp_path_factory) -> dict:
    """Train some of RUNS in two processes, one run in the default folder, and one that diverges.

    Return their folder, the result of each process (`wait_for`), and the results of each run.
    """
    folder = tmp_path_factory.mktemp("together") / "two"
    runs = {
        name: RUNS[name] | {"batch_size": RUNS[name]["batch_size"] // 2, "out": name}
        for name in request.param
    }
    runs["a default folder"] = RUNS["lora"] | {"batch_size": 4, "epochs": 1}
    diverges = {"batch_size": 4, "learning_rate": 1e30, "clip_norm": 0, "out": "bad"}
    runs["not finite"] = RUNS["prompt"] | diverges
    runs = {name: {**SMALL, "model": str(tiny_folder), **flags} for name, flags in runs.items()}
    ended = wait_for(start_two(folder, "-c", WORKER, json.dumps(runs)))
    lines = [line for line in ended[0][1].splitlines() if line.startswith("results ")]
    assert lines, ended[0][2]
    results = json.loads(lines[-1].removeprefix("results "))
    return {"names": request.param, "folder": folder, "ended": ended, "results": results}


def test_two_processes_with_half_the_batch_size_equal_one(together, tiny_folder):
    for name in together["names"]:
        training.run(
            make_settings(**{**SMALL, "model": str(tiny_folder), **RUNS[name], "out": name}),
            print_line=lambda _: None,
        )
        assert_equal(Path(name), together["folder"] / "0" / name, name)


def assert_equal(one: Path, two: Path, name: str) -> None:
    """Assert that the runs in two folders have the same results."""
    # In half precision the rounding of a text's results depends on the other texts of its batch.
    half = RUNS[name].get("precision") == "fp16"
    close = {"gradient_norm": 1e-2 if half else 1e-4}
    assert len(lines_of(one)) == len(lines_of(two)) > 2
    for left, right in zip(lines_of(one), lines_of(two)):
        assert left.keys() == right.keys()
        for key, value in left.items():
            # None: fp16's scaler skipped the step
            if value is None or (key == "validation" and not half):
                assert right[key] == value
            elif key != "validation":
                assert right[key] == pytest.approx(
                    value, rel=close.get(key, 1e-3 if half else 1e-5)
                ), key
    a, b = tensors_of(one), tensors_of(two)
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key] - b[key]).norm() <= (1e-2 if half else 1e-5) * a[key].norm(), (name, key)
    left, right = (json.loads((folder / "run.json").read_text()) for folder in (one, two))
    assert (left["processes"], right["processes"]) == (1, 2) and left["steps"] == right["steps"]
    assert left["scores"] == right["scores"] or half, name


def test_the_work_is_shared_and_each_process_has_its_own_dropout_seed(together):
    for name, result in together["results"].items():
        assert result["same"]  # every process returns the same summary
        assert result["seeds"] == [0, 1]
        first, second = result["scored"]
        assert first + second > 0 and abs(first - second) <= 0.25 * max(first, second), name


def test_only_the_first_process_prints_and_writes(together):
    (_, out, _), (_, second_out, _) = together["ended"]
    assert out.count("Before tuning") == len(together["names"]) + 2 and second_out == ""
    assert list((together["folder"] / "1").iterdir()) == []
    assert [path.name for path in (together["folder"] / "0" / "runs").iterdir()] == ["ner-lora"]


def test_a_loss_that_is_not_finite_ends_both_processes_with_one_error_line(together):
    (first, _, error), (second, _, second_error) = together["ended"]
    assert (first, second, second_error) == (2, 2, "")
    assert error.startswith("error: the loss is nan at step ") and error.count("\n") == 1


@pytest.mark.parametrize("count", [1, 2, 17, 21, 24])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_step_of_several_processes_has_the_examples_of_one_process(
    monkeypatch, count, accumulation
):
    order = loop.epoch_order(count, seed=3, epoch=1)
    flags = {"task": "ner", "method": "lora", "gradient_accumulation": accumulation}
    one = loop.split_into_steps(order, make_settings(batch_size=9, **flags))
    monkeypatch.setattr(processes, "world", 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(processes, "process_index", index)
        shares.append(loop.split_into_steps(order, make_settings(batch_size=3, **flags)))
        assert all(len(batch) <= 3 for step in shares[-1] for batch in step.batches)
    assert [len(share) for share in shares] == [len(one)] * 3
    for whole, *parts in zip(one, *shares):
        expected, *shared = (
            [i for batch in step.batches for i in batch] for step in (whole, *parts)
        )
        assert sorted(expected) == sorted(sum(shared, []))
        assert all(step.all.tolist() == whole.all.tolist() for step in parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "evaluate"),
    [
        ([ROOT / "train.py"], [ROOT / "evaluate.py"]),
        (["-m", "neo_peft", "train"], ["-m", "neo_peft", "evaluate"]),
    ],
)
def test_torchrun_trains_and_evaluates(tiny_folder, tmp_path, train, evaluate):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [
        "--task",
        "ner",
        "--method",
        "lora",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--train-limit",
        "16",
    ]
    flags += ["--eval-limit", "8", "--threads", "1", "--json", "--model", str(tiny_folder)]
    results = []
    for command in ([*train, *flags], [*evaluate, "runs/ner-lora", "--json"]):
        done = subprocess.run(
            [sys.executable, *launch, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    trained, evaluated = results
    assert trained["after"]["test"] == evaluated["scores"] | {"per_label": evaluated["per_label"]}
    assert len((tmp_path / "runs/ner-lora/predictions.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("index", "signal_number"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_if_one_process_ends_the_other_ends_with_one_error_line(
    tiny_folder, tmp_path, index, signal_number
):
    flags = [
        "--task",
        "sentiment",
        "--method",
        "lora",
        "--epochs",
        1000,
        "--batch-size",
        2,
        "--train-limit",
        20,
    ]
    flags += ["--eval-limit", 2, "--threads", 1, "--model", tiny_folder, "--out", tmp_path / "run"]
    started = start_two(tmp_path, ROOT / "train.py", *flags)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: any_ended(started) or metrics.exists() and metrics.stat().st_size > 0)
    assert not any_ended(started)
    started[index].send_signal(signal_number)
    ended = wait_for(started)
    assert not (tmp_path / "run" / "run.json").exists()
    if signal_number == signal.SIGTERM:  # a regular end: all processes finish the step
        assert [status for status, _, _ in ended] == [143, 143]
        assert (
            ended[0][2]
            == f"stopped; resume it: python -m neo_peft train --resume {tmp_path / 'run'}\n"
        )
        assert ended[1][2] == ""
        assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
        return
    status, _, error = ended[1 - index]
    assert status == 1 and error.count("\n") == 1
    assert error.startswith(
        f"error: process {1 - index} of 2 ends, because another one has ended: "
    )


@pytest.mark.slow
def test_two_stopped_processes_are_resumed_to_the_same_bits(tiny_folder, tmp_path):
    flags = [
        "--task",
        "ner",
        "--method",
        "lora",
        "--epochs",
        12,
        "--batch-size",
        2,
        "--train-limit",
        20,
    ]
    flags += [
        "--eval-limit",
        2,
        "--threads",
        1,
        "--model",
        tiny_folder,
        "--dropout",
        0.2,
        "--checkpoint-every",
        2,
    ]
    whole = wait_for(start_two(tmp_path, ROOT / "train.py", *flags, "--out", "whole"))
    assert [end[0] for end in whole] == [0, 0], whole[1][2]
    started = start_two(tmp_path, ROOT / "train.py", *flags, "--out", "run")
    first, other = tmp_path / "0" / "run", tmp_path / "1" / "run"
    wait_until(lambda: any_ended(started) or any(first.glob("checkpoints/step-*")))
    started[0].send_signal(signal.SIGINT)
    assert [end[0] for end in wait_for(started)] == [130, 143]
    # The second host gets what a resumed run reads. The logs stay on the first one.
    shutil.copytree(first / "checkpoints", other / "checkpoints")
    shutil.copy(first / "settings.json", other)
    resumed = wait_for(start_two(tmp_path, ROOT / "train.py", "--resume", "run"))
    assert [end[0] for end in resumed] == [0, 0], resumed[1][2]
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (tmp_path / "0" / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "nre"], "error: --task 'nre' is none of ner, sentiment, similarity"),
        (
            ["--task", "ner", "--method", "lora", "--model", "/none/such"],
            "error: --model /none/such is not a folder",
        ),
    ],
)
def test_bad_input_of_all_processes_is_one_error_line(tmp_path, flags, message):
    (first, _, error), (second, _, second_error) = wait_for(
        start_two(tmp_path, ROOT / "train.py", *flags)
    )
    assert (first, second, second_error) == (2, 2, "")
    assert error.startswith(message) and error.count("\n") == 1


BAD_INPUT = """
import sys, time
from neo_peft.system import processes
from neo_peft.errors import InputError
from neo_peft.system import torchrun

def main():
    if sys.argv[1] in ("late 0", "late 1"):  # one process finds the same bad input later
        time.sleep(3 * (sys.argv[1] == f"late {processes.process_index}"))
        raise InputError("no file on any host")
    if processes.process_index == int(sys.argv[1]):
        raise InputError(f"no file on host {processes.process_index}")
    torchrun.require_same("base", processes.process_index if sys.argv[1] == "9" else 0)

sys.exit(torchrun.run_together(main))
"""


@pytest.mark.parametrize("index", first_quick([1, 0]))
def test_bad_input_of_one_process_is_its_error_line_and_the_other_ends_with_another(
    tmp_path, index
):
    ended = wait_for(start_two(tmp_path, "-c", BAD_INPUT, index))
    assert ended[index] == (2, "", f"error: no file on host {index}\n")
    status, _, error = ended[1 - index]
    assert status == 1 and error.count("\n") == 1
    assert error.startswith(f"error: process {1 - index} of 2 ends, because another")


@pytest.mark.parametrize("late", first_quick([1, 0]))
def test_bad_input_that_the_processes_find_at_different_times_is_one_error_line(tmp_path, late):
    ended = wait_for(start_two(tmp_path, "-c", BAD_INPUT, f"late {late}"))
    assert ended == [(2, "", "error: no file on any host\n"), (2, "", "")]


@pytest.mark.slow
def test_processes_with_different_data_are_refused_with_one_error_line(tmp_path):
    (first, _, error), (second, _, second_error) = wait_for(start_two(tmp_path, "-c", BAD_INPUT, 9))
    assert (first, second, second_error) == (2, 2, "")
    assert (
        error == f"error: process 1 on {socket.gethostname()} has a different base than process 0\n"
    )


def test_one_process_needs_no_torch_distributed_and_no_environment(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    ran = []
    assert torchrun.run_together(lambda: ran.append(processes.world)) == 0
    assert (
        ran == [1]
        and processes.total(3) == 3
        and processes.gather("a") == ["a"]
        and processes.on_first_process(lambda: 5) == 5
    )


def test_an_incomplete_environment_is_one_error_line(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py"],
        env=env | {"RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("error: process 0 of 2 cannot connect to the others: ")
        and "MASTER_ADDR" in done.stderr
    )
