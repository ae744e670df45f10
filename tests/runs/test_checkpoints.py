"""Checkpoints: one that does not fit the run is refused, a damaged one is skipped. A full disk, two
runs in one folder, and a loss that is not finite stop a run with one line."""

import ctypes
import json
import math
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killing import SMALL, end, result, resumed, start
from refusals import shown
from safetensors.torch import load_file, save_file
from steps import train as train_steps
from waiting import wait_until

import evaluate
import train
from neo_peft import loop
from neo_peft.commands import export, predict
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.runs import checkpoints, record, training
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.loading import load_untuned
from neo_peft.runs.shared import COMPUTATION, VERSION
from neo_peft.settings import make_settings
from neo_peft.system import files
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

# 5 steps in each epoch
FLAGS = ["--task", "sentiment", "--method", "lora", "--batch-size", "5", *SMALL]
STEP_7 = "checkpoints/step-7"


def stop_at(*steps, number=signal.SIGTERM):
    """Return a patch that sends the process a signal after each of these steps."""

    def patch() -> None:
        real = training.Log.step

        def stopping_at(log, step):
            real(log, step)
            if step.step in steps:
                os.kill(os.getpid(), number)

        training.Log.step = stopping_at

    return patch


@pytest.fixture(scope="module")
def stopped(tiny_folder, tmp_path_factory):
    """Return the folder of a run that was stopped at step 7, with checkpoints of steps 6 and 7, and
    the result of the same run without a stop."""
    folder = tmp_path_factory.mktemp("stopped")
    os.chdir(folder)
    model = folder / "model"
    shutil.copytree(tiny_folder, model)
    argv = [*FLAGS, "--model", str(model)]
    assert end(start([*argv, "--out", "run"])) == 0, Path("stderr").read_text()
    expected = result(Path("run"))
    shutil.rmtree("run")
    assert end(start([*argv, "--out", "run"], stop_at(7))) == 143
    return folder / "run", expected


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    """Return a copy of the stopped run, which a test can damage."""
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run"


def refused(argv: list, script=train) -> str:
    """Run a command that refuses its input. Return its error message, which is one line."""
    printed = []
    assert exit_status(lambda: script.main([str(word) for word in argv]), printed.append) == 2
    assert len(printed) == 1 and "\n" not in printed[0]
    return printed[0]


def test_the_last_two_checkpoints_are_kept_and_a_finished_run_has_none(run, stopped):
    assert [path.name for path in checkpoints.list_checkpoints(run / "checkpoints")] == [
        "step-6",
        "step-7",
    ]
    resumed("run", stopped[1])
    assert not (run / "checkpoints").exists()


def test_the_record_is_written_after_all_other_files(run, stopped):
    """A run with a run.json is finished. A run that is killed just before has all other files."""

    def kill_at_the_record() -> None:
        record.write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert end(start(["--resume", "run"], kill_at_the_record)) == -signal.SIGKILL
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name for name in left if "checkpoints" not in name} == stopped[1].keys() - {"run.json"}
    adapter = (run / "adapter_model.safetensors").read_bytes()
    assert adapter == stopped[1]["adapter_model.safetensors"]
    resumed("run", stopped[1])


def test_a_checkpoint_is_safetensors_and_json(run, tiny_folder):
    names = {path.name for path in run.glob("checkpoints/step-*/*")}
    assert names == {"state.json", "tensors.safetensors", "best.safetensors"}
    tensors = load_file(run / "checkpoints/step-7/tensors.safetensors")
    lora = {name for name in tensors if "lora_" in name}
    # A and B of q and v in four layers: for each the weight and three tensors of AdamW
    assert len(lora) == 2 * 2 * 4 * 4
    assert tensors.keys() - lora == {"random cpu 0"}
    best = load_file(run / "checkpoints/step-7/best.safetensors")
    assert {f"weight {name}" for name in best} < lora and len(best) == 16


def test_a_checkpoint_has_the_weights_of_the_best_epoch(run, stopped, tmp_path):
    """The best epoch is the first, which ends at step 5. Training in the second epoch changes the
    weights, but not those of best.safetensors."""
    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", "first"]
    assert end(start(argv, stop_at(5))) == 143
    at_5, at_7 = (
        load_file(Path(name, "tensors.safetensors"))
        for name in ("first/checkpoints/step-5", run / STEP_7)
    )
    for step in (run / "checkpoints/step-6", run / STEP_7):
        best = load_file(step / "best.safetensors")
        assert all(torch.equal(tensor, at_5[f"weight {name}"]) for name, tensor in best.items())
        assert not any(torch.equal(tensor, at_7[f"weight {name}"]) for name, tensor in best.items())


def test_the_best_epoch_is_kept_after_resuming(run):
    best = load_file(run / STEP_7 / "best.safetensors")
    change_state(run, lambda record: record["kept"].update(score=1.0))
    assert end(start(["--resume", "run"])) == 0, Path("stderr").read_text()
    assert json.loads((run / "run.json").read_text())["kept_epoch"] == 1
    kept = load_file(run / "adapter_model.safetensors")
    assert len(kept) == len(best)
    assert all(
        torch.equal(kept[f"base_model.model.{name}"], tensor) for name, tensor in best.items()
    )


def test_each_number_of_the_training_state_is_restored(run):
    change_state(run, lambda record: record.update(skipped=4, consecutive_skips=3))
    settings = settings_to_resume(run, json=False)
    model = load_untuned(settings, with_method=True).model
    state, checkpoint = loop.make_state(model, settings), checkpoints.newest_checkpoint(run)
    checkpoints.restore(checkpoint, model, state)
    assert (state.step, state.epoch, state.done, state.skipped, state.consecutive_skips) == (
        7,
        2,
        2,
        4,
        3,
    )
    assert (state.loss_sum, state.labelled) == (
        checkpoint.record["loss_sum"],
        checkpoint.record["labelled"],
    )
    assert state.loss_sum > 0 < state.labelled


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "best.safetensors"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(run, stopped, name):
    path = run / "checkpoints/step-7" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # other checkpoints can have hard links to the same file
    path.write_bytes(content)
    resumed("run", stopped[1])
    assert (
        "step-7" in Path("stdout").read_text()
        and "trying the checkpoint before it" in Path("stdout").read_text()
    )


def test_a_run_does_not_start_again_if_all_its_checkpoints_are_damaged(run):
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text(path.read_text()[:-9])
    assert "step-7/state.json is not a JSON file" in refused(["--resume", run])


def change_state(run: Path, change) -> None:
    """Change the newest state.json, and correct its checksum."""
    path = run / "checkpoints/step-7/state.json"
    record = files.read_checked_json(path)
    change(record)
    files.write_checked_json(path, record)


def change_tensors(run: Path, change) -> None:
    """Change the newest tensors.safetensors, and correct its checksum."""
    path = run / "checkpoints/step-7/tensors.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    change_state(run, lambda record: record["files"].update({path.name: files.sha256(path)}))


A = "transformer.h.0.attn.attention.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"weight {A}"),
            f"{A} is missing, has another shape than the run's, or is not finite",
        ),
        (
            lambda t: t.update({f"weight {A}": torch.ones(3, 24)}),
            f"{A} is missing, has another shape",
        ),
        (
            lambda t: t[f"weight {A}"].fill_(math.nan),
            f"{A} is missing, has another shape than the run's, or is not",
        ),
        (
            lambda t: t.pop(f"exp_avg {A}"),
            f"exp_avg of {A} is missing, has another shape than the run's, or is not finite",
        ),
        (lambda t: t[f"exp_avg_sq {A}"].fill_(math.inf), f"exp_avg_sq of {A} is missing"),
        (
            lambda t: t.update({"random cpu 0": torch.zeros(7, dtype=torch.uint8)}),
            "step-7 does not fit this run",
        ),
        (lambda t: t.pop("random cpu 0"), "step-7 does not fit this run"),
        (
            lambda t: t.update(more=torch.ones(2)),
            "tensors.safetensors has 1 unexpected tensors, the first is more",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_run_are_refused(run, change, message):
    change_tensors(run, change)
    assert message in refused(["--resume", run])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.update(step=-1),
            "state.json is not the state of a checkpoint: ValueError: step is -1",
        ),
        (
            lambda r: r["computed"].update(threads=2**31),
            "state.json is not the state of a checkpoint: ValueError: threads is 2147483648",
        ),
        (lambda r: r.pop("kept"), "state.json is not the state of a checkpoint: KeyError: 'kept'"),
        (lambda r: r["log"].pop("sha256"), "metrics.jsonl was changed, or cut short, since"),
        (
            lambda r: r["computed"].update(examples=[]),
            "step-7 was written: a run can only be resumed with the same examples",
        ),
        (
            lambda r: r["scores"]["before"].pop("test"),
            "step-7 has no scores before tuning for this task",
        ),
        (
            lambda r: r["computed"].update({"base model": "0"}),
            "step-7 was written: a run can only be resumed with the same base model",
        ),
        (
            lambda r: r["computed"].update({"version of torch": "2.0.1"}),
            f"was written (2.0.1, now {torch.__version__}): a run can only be resumed with the "
            "same version of torch",
        ),
        (  # as all were before this number was recorded
            lambda r: r["computed"].pop(VERSION) and r["computed"].update(settings="0"),
            "step-7 was written by another version of neo_peft: its computation has the number 1, "
            f"here it is {COMPUTATION}; finish the run with that version, or start anew",
        ),
        (
            lambda r: r["computed"].update({VERSION: 999}),
            f"its computation has the number 999, here it is {COMPUTATION}; finish the run",
        ),
        (
            lambda r: r["computed"].update(precision="bf16"),
            "was written (bf16, now fp32): a run can only be resumed with the same precision",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_refused(run, change, message):
    shutil.rmtree(run / "checkpoints/step-6")
    change_state(run, change)
    assert message in refused(["--resume", run])


def test_another_base_and_a_changed_log_of_steps_are_refused(run, stopped):
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace('"step": 3', '"step": 4', 1))
    assert (
        f"{run}/metrics.jsonl was changed, or cut short, since {run}/checkpoints/step-7 was"
        in refused(["--resume", run])
    )
    (run / "metrics.jsonl").write_text(metrics)
    model = stopped[0].parent / "model" / "model.safetensors"
    content = model.read_bytes()
    try:
        tensors = load_file(model)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, model, {"format": "pt"})
        assert "step-7 was written: a run can only be resumed with the same base model" in refused(
            ["--resume", run]
        )
    finally:
        model.write_bytes(content)
    config = model.with_name("config.json")
    content = config.read_text()
    try:
        config.write_text(content.replace('"num_heads": 3', '"num_heads": 4'))
        assert (
            "the base model's num_heads changed since "
            f"{run}/checkpoints/step-7 was written (3, now 4): a run can only be resumed"
        ) in refused(["--resume", run])
    finally:
        config.write_text(content)
    resumed("run", stopped[1])


def test_log_lines_after_the_checkpoint_are_removed(run, stopped):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1')
    resumed("run", stopped[1])


def test_changed_or_missing_settings_are_refused(run):
    text = (run / "settings.json").read_text()
    (run / "settings.json").write_text(text.replace('"epochs": 3', '"epochs": 4'))
    assert "settings.json was changed since it was written, or cut short" in refused(
        ["--resume", run]
    )
    settings = files.read_json(run / "settings.json")
    files.write_checked_json(
        run / "settings.json", {n: v for n, v in settings.items() if n != "sha256"}
    )
    assert "step-7 was written: a run can only be resumed with the same settings" in refused(
        ["--resume", run]
    )
    (run / "settings.json").unlink()
    assert (
        refused(["--resume", run])
        == f"error: --resume {run} holds no settings.json: no run was started there"
    )


def test_commands_refuse_an_unfinished_run_and_name_resume(run):
    message = (
        f"error: {run} is a run that is not finished; resume it: python -m neo_peft train --resume "
        f"{run}"
    )
    assert refused([run], evaluate) == message
    assert refused([run, "a text"], predict) == message
    assert refused([run, "out"], export) == message
    assert refused(["--task", "sentiment", "--adapter", run]) == message
    assert refused([*FLAGS, "--out", run]).startswith(
        f"error: --out {run} already has a run; resume it with --resume {run}, or name another "
        "folder"
    )


def test_a_finished_run_prints_its_table_again(run, stopped, capsys):
    resumed("run", stopped[1])
    table = Path("stdout").read_text()
    table = table[table.index("majority  baseline") :].strip()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train.main(["--resume", str(run)])
    assert capsys.readouterr().out.replace(str(run), "run").strip() == table
    train.main(["--resume", str(run), "--json"])
    assert (
        json.loads(capsys.readouterr().out)["after"]["test"]
        == json.loads((run / "run.json").read_text())["scores"]["after"]["test"]
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_second_of_two_runs_in_one_folder_is_refused(run, tmp_path):
    def wait() -> None:
        training.Log.step = lambda *_: (Path("started").touch(), signal.pause())

    first = start(["--resume", "run"], wait)
    wait_until(Path("started").exists)
    try:
        assert refused(["--resume", run]) == (
            f"error: {run} is in use by another run; wait for its end, or name another folder"
        )
    finally:
        os.kill(first, signal.SIGKILL)
        end(first)


def test_a_run_can_be_stopped_before_its_first_step_and_while_an_epoch_is_scored(
    run, stopped, tmp_path
):
    def at_once() -> None:
        training.prepare = lambda *_: os.kill(os.getpid(), signal.SIGINT)

    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", "new"]
    assert end(start(argv, at_once)) == 130
    with open("stderr", newline="") as file:
        text = shown(file.read())
    assert text == "stopped; resume it: python -m neo_peft train --resume new\n"
    assert [path.name for path in Path("new").iterdir()] == ["settings.json"]
    resumed("new", stopped[1])  # from step 0

    def while_scoring() -> None:
        real = training.evaluate

        def evaluate_stopped(*args, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **named)

        training.evaluate = evaluate_stopped

    assert end(start(["--resume", "run"], while_scoring)) == 143
    state = checkpoints.newest_checkpoint(run).record
    # all steps of the epoch are done, but it is not scored
    assert (state["step"], state["epoch"], state["done"]) == (10, 2, 5)
    resumed("run", stopped[1])


def test_a_run_that_is_stopped_while_a_step_is_scored_or_after_its_patience_ends_the_same(
    stopped, tmp_path
):
    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--eval-every", "3"]
    argv += ["--learning-rate", "1e-30", "--patience", "2"]  # every score is the first one
    assert end(start([*argv, "--out", "whole"])) == 0, Path("stderr").read_text()
    expected = result(Path("whole"))
    assert expected["run.json"]["kept_step"] == 3 and expected["run.json"]["steps"] == 9

    def at_call(call: int, module, function: str):
        def patch() -> None:
            real, calls = getattr(module, function), 0

            def stopping(*args, **named):
                nonlocal calls
                if (calls := calls + 1) == call:
                    os.kill(os.getpid(), signal.SIGTERM)
                return real(*args, **named)

            setattr(module, function, stopping)

        return patch

    for place in (
        at_call(2, training, "evaluate"),  # while step 6 is scored
        at_call(1, training, "patience_line"),  # in the scoring that ends the training
        at_call(1, training, "score_model"),  # after the training
    ):
        assert end(start([*argv, "--out", "run"], place)) == 143
        resumed("run", expected)
        shutil.rmtree("run")


def test_the_space_that_is_looked_for_is_that_of_the_files(tiny_folder, tmp_path, monkeypatch):
    needed = []
    monkeypatch.setattr(checkpoints, "require_space", lambda _, size, what: needed.append(size))
    written = checkpoints.write_folder

    def write_folder(folder, fill, overwrite):
        written(folder, fill, overwrite)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert size - 20_000 < needed[-1] < size  # without the headers of the files
        sizes.append(size)

    sizes = []
    monkeypatch.setattr(checkpoints, "write_folder", write_folder)
    flags = ["--task", "ner", "--method", "lora", "--rank", "64", "--model", str(tiny_folder)]
    train.main([*flags, *SMALL, "--epochs", "1", "--out", str(tmp_path / "run")])
    assert len(sizes) == len(needed) > 1


def test_a_second_signal_stops_the_run_without_a_checkpoint(run, stopped):
    def two_signals() -> None:
        stop_at(8, number=signal.SIGINT)()
        checkpoints.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)

    assert end(start(["--resume", "run"], two_signals)) == 130
    assert checkpoints.newest_checkpoint(run).record["step"] == 7
    resumed("run", stopped[1])


# ---- A full disk


def test_the_names_of_new_files_are_flushed_to_the_disk(stopped, tmp_path, monkeypatch):
    """A file's name belongs to its folder. If only the file is flushed, the file can be missing
    after a power failure. So the folder is flushed, too."""
    real, names = os.fsync, {}  # {path: names in it when it was flushed}

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        names.setdefault(path, set()).update(os.listdir(path) if path.is_dir() else ())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    argv = ["--task", "ner", "--method", "lora+prompt", "--batch-size", "5", *SMALL]
    train.main([*argv, "--model", str(stopped[0].parent / "model")])
    run = tmp_path / "runs/ner-lora+prompt"
    for path in (run, run.parent, run / "checkpoints/step-2", run / "checkpoints", *run.rglob("*")):
        assert path.name in names[path.parent], path
    assert {run / "metrics.jsonl", run / "timings.jsonl"} <= names.keys()


def on_a_disk_of(kilobytes: int, options: str = "") -> None:
    """Mount a small disk at `disk` that only this process sees. Raise OSError if that is not
    allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, 1 << 18 | 0x4000
    size = f"size={kilobytes}k".encode()
    for failed in (
        libc.unshare(new_mounts | (new_user if os.getuid() else 0)),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", b"disk", b"tmpfs", 0, size),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "no disk can be mounted here")


def can_mount(tmp_path) -> bool:
    if child := os.fork():
        return end(child) == 0
    try:
        Path("disk").mkdir(exist_ok=True)
        on_a_disk_of(64)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line_and_its_checkpoints_stay_valid(stopped, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("no disk can be mounted here")
    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", "disk/run"]
    ends, messages = [], ""
    # free kilobytes; a finished run takes about 150, a checkpoint 70
    for free in (0, 12, 60, 120, 200, 290, 400):

        def fill(free=free) -> None:
            on_a_disk_of(1000)
            Path("disk/filler").write_bytes(bytes(1000 * (1000 - free)))
            printed = []
            status = exit_status(lambda: train.main(argv), printed.append)
            paths = sorted(str(path) for path in Path("disk").rglob("*"))
            Path("disk/filler").unlink()
            again = ["--resume", "disk/run"] if Path("disk/run/settings.json").exists() else argv
            second_status = (
                exit_status(lambda: train.main(again))
                if not Path("disk/run/run.json").exists()
                else 0
            )
            shutil.copytree("disk/run", f"run-{free}")
            Path(f"report-{free}").write_text(json.dumps([status, printed, paths, second_status]))
            os._exit(0)

        assert end(start([], fill)) == 0, Path("stderr").read_text()
        status, printed, paths, second_status = json.loads(Path(f"report-{free}").read_text())
        assert second_status == 0
        if status == 0:
            assert not printed
        else:
            assert len(printed) == 1
            messages += printed[0]
        assert not [path for path in paths if ".tmp" in path]
        assert result(Path(f"run-{free}")) == stopped[1]
        ends.append((status, any("step-" in path for path in paths)))
    assert (2, False) in ends and (2, True) in ends and (0, False) in ends
    assert "No space left on device" in messages and "a checkpoint needs 0.0" in messages


def test_a_file_size_limit_stops_the_run_with_one_line_and_its_checkpoints_stay_valid(
    stopped, tmp_path
):
    """This is similar to a full disk, and can also be tested where no disk can be mounted."""
    ends = set()
    # allowed bytes; the settings take 1,000, an adapter 20,000
    for limit in (0, 2000, 12_000, 30_000, 10**6):

        def limited(limit=limit) -> None:
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(os.devnull, "w")  # noqa: SIM115
            no_limit, printed, out = resource.getrlimit(resource.RLIMIT_FSIZE), [], f"run-{limit}"
            argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", out]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, no_limit[1]))
            status = exit_status(lambda: train.main(argv), printed.append)
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
            paths = sorted(str(path) for path in Path(out).rglob("*"))
            argv = ["--resume", out] if Path(out, "settings.json").exists() else argv
            second_status = exit_status(lambda: train.main(argv))
            report = json.dumps([status, printed, paths, second_status])
            Path(f"report-{limit}").write_text(report)
            os._exit(0)

        assert end(start([], limited)) == 0, Path("stderr").read_text()
        status, printed, paths, second_status = json.loads(Path(f"report-{limit}").read_text())
        assert second_status == 0, printed
        if status == 0:
            assert not printed
        else:
            assert len(printed) == 1 and "File too large" in printed[0], printed
        assert not [path for path in paths if ".tmp" in path]
        assert result(Path(f"run-{limit}")) == stopped[1]
        ends.add(
            (
                status,
                any("settings" in path for path in paths),
                any("step-" in path for path in paths),
            )
        )
    assert ends >= {(2, False, False), (2, True, False), (0, True, False)}


def test_a_read_only_folder_stops_the_run_with_one_line(run, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("no disk can be mounted here")

    def resume_read_only() -> None:
        on_a_disk_of(2000)
        shutil.copytree("run", "disk/run")
        # mount the disk again, read-only
        ctypes.CDLL(None).mount(b"tmpfs", b"disk", b"tmpfs", 1 | 32, None)
        Path("message").write_text(refused(["--resume", "disk/run"]))
        os._exit(0)

    assert end(start([], resume_read_only)) == 0, Path("stderr").read_text()
    assert "Read-only file system" in Path("message").read_text()


# ---- A loss or gradient that is not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(run):
    def poison() -> None:
        real = loop.take_step

        def poisoned(model, *args):
            poisoned.calls += 1
            if poisoned.calls == 3:
                with torch.no_grad():
                    next(iter(model.trainable().values())).fill_(math.nan)
            return real(model, *args)

        poisoned.calls = 0
        loop.take_step = poisoned

    assert end(start(["--resume", "run"], poison)) == 2
    assert Path("stderr").read_text().splitlines()[-1].strip() == (
        "error: the loss is nan at step 10 (epoch 2): try a smaller --learning-rate; "
        "the last good checkpoint is run/checkpoints/step-8"
    )
    weights = load_file(run / "checkpoints/step-8/tensors.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def fp16(tiny_folder, **flags):
    settings = make_settings(
        task="sentiment",
        method="prompt",
        model=str(tiny_folder),
        precision="fp16",
        batch_size=1,
        **flags,
    )
    tuned = load_untuned(settings, with_method=True)
    return (
        tuned.model,
        tuned.encoder(load_splits(TASKS["sentiment"], "sample").train[:15]),
        settings,
    )


def test_fp16_skips_a_step_whose_gradients_are_not_finite_and_continues(tiny_folder):
    model, examples, settings = fp16(tiny_folder, epochs=1)
    bad_steps, weights = {2, 3, 7}, [model.prompt.embeddings.detach().clone()]
    state = loop.make_state(model, settings)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model.prompt.embeddings.register_hook(
        lambda g: g * math.inf if state.step + 1 in bad_steps else g
    )

    def after(step):
        weights.append(model.prompt.embeddings.detach().clone())

    for number, step in enumerate(
        train_steps(model, examples, settings, after, state=state), start=1
    ):
        assert (step.gradient_norm is None) == (number in bad_steps)
        assert torch.equal(weights[number - 1], weights[number]) == (number in bad_steps)
        # a skipped step counts in the schedule
        assert step.learning_rate == loop.learning_rate_at(number - 1, 15, settings)
    assert (state.step, state.skipped, state.consecutive_skips) == (15, 3, 0)


def test_ten_skipped_steps_in_a_row_stop_the_run(tiny_folder):
    model, examples, settings = fp16(tiny_folder, epochs=2)
    model.prompt.embeddings.register_hook(lambda gradient: gradient * math.nan)
    taken = []
    with pytest.raises(
        InputError,
        match=r"10 gradients in a row were not finite, the last one at step 10 \(epoch 1\): try",
    ):
        train_steps(model, examples, settings, taken.append)
    assert len(taken) == 9


def test_the_generators_of_every_device_are_saved_and_restored(run, monkeypatch):
    """A device that is not here stands for mps: it has a generator, and a state to set."""
    restored = []
    device = SimpleNamespace(
        get_rng_state=lambda: torch.tensor([7], dtype=torch.uint8),
        set_rng_state=lambda state: restored.append(state.tolist()),
    )
    monkeypatch.setattr(checkpoints, "_accelerators", lambda: {"mps": device})
    states = checkpoints._random_states()
    assert set(states) == {"cpu", "mps"} and states["mps"].tolist() == [7]
    checkpoint = checkpoints.newest_checkpoint(run)
    path = checkpoint.folder / checkpoints.TENSORS
    tensors = files.read_tensors(path) | {"random mps 0": states["mps"]}
    monkeypatch.setattr(checkpoints, "read_tensors", lambda _: dict(tensors))
    settings = settings_to_resume(run, json=False)
    model = load_untuned(settings, with_method=True).model
    checkpoints.restore(checkpoint, model, loop.make_state(model, settings))
    assert restored == [[7]]
