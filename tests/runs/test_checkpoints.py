"""What a run goes on from: refused where it does not fit, passed over where it is damaged; a full
disk; two at once."""

import ctypes
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import SMALL, end, result, resumed, start
from safetensors.torch import load_file, save_file
from steps import train as train_steps

import evaluate
import train
from neo_peft import loop
from neo_peft.commands import export, predict
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.runs import checkpoints, record, training
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.system import files
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

# 5 updates an epoch
FLAGS = ["--task", "sentiment", "--method", "lora", "--batch-size", "5", *SMALL]
STEP_7 = "checkpoints/step-7"


def stop_at(*steps, number=signal.SIGTERM):
    """Make what sends the process a signal after these steps."""

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
    """A run that was stopped at step 7, with checkpoints of 6 and 7; and what it comes to when
    nothing stops it."""
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
    """A copy of the stopped run, to be harmed."""
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run"


def refused(argv: list, script=train) -> str:
    """Return the one line with which a command refuses its input."""
    said = []
    assert exit_status(lambda: script.main([str(word) for word in argv]), said.append) == 2
    assert len(said) == 1 and "\n" not in said[0]
    return said[0]


def test_the_last_two_are_kept_and_a_finished_run_keeps_none(run, stopped):
    assert [path.name for path in checkpoints.list_checkpoints(run / "checkpoints")] == [
        "step-6",
        "step-7",
    ]
    resumed("run", stopped[1])
    assert not (run / "checkpoints").exists()


def test_the_record_is_written_after_all_other_files(run, stopped):
    """A run that has a run.json is finished: a kill before it is written leaves all else."""

    def kill_at_the_record() -> None:
        record.write_record = lambda *what: os.kill(os.getpid(), signal.SIGKILL)

    assert end(start(["--resume", "run"], kill_at_the_record)) == -signal.SIGKILL
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name for name in left if "checkpoints" not in name} == stopped[1].keys() - {"run.json"}
    adapter = (run / "adapter_model.safetensors").read_bytes()
    assert adapter == stopped[1]["adapter_model.safetensors"]
    resumed("run", stopped[1])


def test_a_checkpoint_is_safetensors_and_json(run, tiny_folder):
    names = {path.name for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert names == {"state.json", "tensors.safetensors", "best.safetensors"}
    tensors = load_file(run / "checkpoints/step-7/tensors.safetensors")
    lora = {name for name in tensors if "lora_" in name}
    # A and B of q and v in four layers; the weight and three of AdamW's
    assert len(lora) == 2 * 2 * 4 * 4
    assert tensors.keys() - lora == {"random cpu 0"}
    best = load_file(run / "checkpoints/step-7/best.safetensors")
    assert {f"weight {name}" for name in best} < lora and len(best) == 16


def test_a_checkpoint_holds_the_weights_of_the_best_epoch(run, stopped, tmp_path):
    """The first, which step 5 ended: what trains on in the second is another."""
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


def test_an_epoch_that_none_has_beaten_stays_the_best_one(run):
    best = load_file(run / STEP_7 / "best.safetensors")
    change_state(run, lambda record: record["best"].update(score=1.0))
    assert end(start(["--resume", "run"])) == 0, Path("stderr").read_text()
    assert json.loads((run / "run.json").read_text())["kept_epoch"] == 1
    kept = load_file(run / "adapter_model.safetensors")
    assert len(kept) == len(best)
    assert all(
        torch.equal(kept[f"base_model.model.{name}"], tensor) for name, tensor in best.items()
    )


def test_each_number_of_a_checkpoint_is_restored(run):
    change_state(run, lambda record: record.update(skipped=4, skipped_last=3))
    settings = settings_to_resume(run, json=False)
    model = load_untuned(settings, with_method=True).model
    state, checkpoint = loop.make_state(model, settings), checkpoints.newest_checkpoint(run)
    checkpoints.restore(checkpoint, model, state)
    assert (state.step, state.epoch, state.done, state.skipped, state.skipped_last) == (
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
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, stopped, name):
    path = run / "checkpoints/step-7" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may have a second name
    path.write_bytes(content)
    resumed("run", stopped[1])
    assert (
        "step-7" in Path("stdout").read_text()
        and "trying the checkpoint before it" in Path("stdout").read_text()
    )


def test_a_run_is_not_begun_anew_where_all_its_checkpoints_are_damaged(run):
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text(path.read_text()[:-9])
    assert "step-7/state.json is not a JSON file" in refused(["--resume", run])


def change_state(run: Path, change) -> None:
    """Change the newest state.json, and make its checksum right again."""
    path = run / "checkpoints/step-7/state.json"
    record = files.read_checked_json(path)
    change(record)
    files.write_checked_json(path, record)


def change_tensors(run: Path, change) -> None:
    path = run / "checkpoints/step-7/tensors.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    change_state(run, lambda record: record["files"].update({path.name: files.sha256(path)}))


A = "transformer.h.0.attn.attention.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_tensors_that_do_not_fit_the_run_are_refused(run, change, said):
    change_tensors(run, change)
    assert said in refused(["--resume", run])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: r.update(step=-1),
            "state.json is not the state of a checkpoint: ValueError: step is -1",
        ),
        (lambda r: r.pop("best"), "state.json is not the state of a checkpoint: KeyError: 'best'"),
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
            lambda r: r["computed"].update(precision="bf16"),
            "was written (bf16, now fp32): a run can only be resumed with the same precision",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_refused(run, change, said):
    shutil.rmtree(run / "checkpoints/step-6")
    change_state(run, change)
    assert said in refused(["--resume", run])


def test_another_base_and_a_changed_record_of_steps_are_refused(run, stopped):
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace('"step": 3', '"step": 4', 1))
    assert (
        f"{run}/metrics.jsonl was changed, or cut short, since {run}/checkpoints/step-7 was"
        in refused(["--resume", run])
    )
    (run / "metrics.jsonl").write_text(metrics)
    model = stopped[0].parent / "model" / "model.safetensors"
    whole = model.read_bytes()
    try:
        tensors = load_file(model)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, model, {"format": "pt"})
        assert "step-7 was written: a run can only be resumed with the same base model" in refused(
            ["--resume", run]
        )
    finally:
        model.write_bytes(whole)
    resumed("run", stopped[1])


def test_lines_after_the_checkpoint_are_cut(run, stopped):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1')
    resumed("run", stopped[1])


def test_settings_that_were_changed_or_are_gone_are_refused(run):
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


def test_an_unfinished_run_is_refused_naming_resume(run):
    said = (
        f"error: {run} is a run that is not finished; resume it: python -m neo_peft train --resume "
        f"{run}"
    )
    assert refused([run], evaluate) == said
    assert refused([run, "a text"], predict) == said
    assert refused([run, "out"], export) == said
    assert refused(["--task", "sentiment", "--adapter", run]) == said
    assert refused([*FLAGS, "--out", run]).startswith(
        f"error: --out {run} already has a run; resume it with --resume {run}, or name another "
        "folder"
    )


def test_a_finished_run_prints_its_table_again(run, stopped, capsys):
    resumed("run", stopped[1])
    table = Path("stdout").read_text()
    table = table[table.index("majority  before  after") :].strip()
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
        training.Log.step = lambda *_: (Path("there").touch(), time.sleep(60))

    first = start(["--resume", "run"], wait)
    until = time.monotonic() + 60
    while not Path("there").exists() and time.monotonic() < until:
        time.sleep(0.05)
    try:
        said = refused(["--resume", run])
        assert (
            said
            == f"error: {run} is in use by another run; wait for its end, or name another folder"
        )
    finally:
        os.kill(first, signal.SIGKILL)
        end(first)


def test_a_signal_before_the_first_step_and_one_while_an_epoch_is_scored(run, stopped, tmp_path):
    def at_once() -> None:
        training.prepare = lambda *_: os.kill(os.getpid(), signal.SIGINT)

    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", "new"]
    assert end(start(argv, at_once)) == 130
    assert (
        Path("stderr").read_text() == "stopped; resume it: python -m neo_peft train --resume new\n"
    )
    assert [path.name for path in Path("new").iterdir()] == ["settings.json"]
    resumed("new", stopped[1])  # from step 0

    def while_scoring() -> None:
        real = training.evaluate

        def scored(*args, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **named)

        training.evaluate = scored

    assert end(start(["--resume", "run"], while_scoring)) == 143
    state = checkpoints.newest_checkpoint(run).record
    # the epoch is done and not scored
    assert (state["step"], state["epoch"], state["done"]) == (10, 2, 5)
    resumed("run", stopped[1])


def test_a_second_signal_does_not_wait(run, stopped):
    def two() -> None:
        stop_at(8, number=signal.SIGINT)()
        checkpoints.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)

    assert end(start(["--resume", "run"], two)) == 130
    assert checkpoints.newest_checkpoint(run).record["step"] == 7
    resumed("run", stopped[1])


# ---- A disk that is full


def test_what_a_run_makes_is_on_the_disk_with_its_name(stopped, tmp_path, monkeypatch):
    """A name is its folder's content: after an fsync of a file alone, losing power may lose the
    file."""
    real, names = os.fsync, {}

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
    """Mount a small disk at `disk`, for this process alone. Raise OSError where that is not
    allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, 1 << 18 | 0x4000
    size = f"size={kilobytes}k".encode()
    for done in (
        libc.unshare(new_mounts | (new_user if os.getuid() else 0)),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", b"disk", b"tmpfs", 0, size),
    ):
        if done:
            raise OSError(ctypes.get_errno(), "no disk can be mounted here")


def may_mount(tmp_path) -> bool:
    if child := os.fork():
        return end(child) == 0
    try:
        Path("disk").mkdir(exist_ok=True)
        on_a_disk_of(64)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line_and_what_was_saved_stays_valid(stopped, tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("no disk can be mounted here")
    argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", "disk/run"]
    ends = []
    # kilobytes; a finished run takes about 150, a checkpoint 70
    for left in (0, 12, 60, 120, 200, 290, 400):

        def fill(left=left) -> None:
            on_a_disk_of(1000)
            Path("disk/filler").write_bytes(bytes(1000 * (1000 - left)))
            said = []
            status = exit_status(lambda: train.main(argv), said.append)
            there = sorted(str(path) for path in Path("disk").rglob("*"))
            Path("disk/filler").unlink()
            again = ["--resume", "disk/run"] if Path("disk/run/settings.json").exists() else argv
            then = (
                exit_status(lambda: train.main(again))
                if not Path("disk/run/run.json").exists()
                else 0
            )
            shutil.copytree("disk/run", f"run-{left}")
            Path(f"told-{left}").write_text(json.dumps([status, said, there, then]))
            os._exit(0)

        assert end(start([], fill)) == 0, Path("stderr").read_text()
        status, said, there, then = json.loads(Path(f"told-{left}").read_text())
        assert then == 0 and (
            not said if status == 0 else len(said) == 1 and "No space left on device" in said[0]
        )
        assert not [path for path in there if ".tmp" in path]
        assert result(Path(f"run-{left}")) == stopped[1]
        ends.append((status, any("step-" in path for path in there)))
    assert (2, False) in ends and (2, True) in ends and (0, False) in ends


@pytest.mark.slow
def test_a_file_that_may_not_grow_stops_the_run_with_one_line_and_what_was_saved_stays_valid(
    stopped, tmp_path
):
    """A quota, so to speak: where no disk can be mounted, too."""
    ends = set()
    # bytes; the settings take 1,000, an adapter 20,000
    for most in (0, 2000, 12_000, 30_000, 10**6):

        def limited(most=most) -> None:
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(os.devnull, "w")  # noqa: SIM115, which have no end
            whole, said, out = resource.getrlimit(resource.RLIMIT_FSIZE), [], f"run-{most}"
            argv = [*FLAGS, "--model", str(stopped[0].parent / "model"), "--out", out]
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, whole[1]))
            status = exit_status(lambda: train.main(argv), said.append)
            resource.setrlimit(resource.RLIMIT_FSIZE, whole)
            there = sorted(str(path) for path in Path(out).rglob("*"))
            argv = ["--resume", out] if Path(out, "settings.json").exists() else argv
            then = exit_status(lambda: train.main(argv))
            Path(f"told-{most}").write_text(json.dumps([status, said, there, then]))
            os._exit(0)

        assert end(start([], limited)) == 0, Path("stderr").read_text()
        status, said, there, then = json.loads(Path(f"told-{most}").read_text())
        assert then == 0 and (
            not said if status == 0 else len(said) == 1 and "File too large" in said[0]
        ), said
        assert not [path for path in there if ".tmp" in path]
        assert result(Path(f"run-{most}")) == stopped[1]
        ends.add(
            (
                status,
                any("settings" in path for path in there),
                any("step-" in path for path in there),
            )
        )
    assert ends >= {(2, False, False), (2, True, False), (0, True, False)}


@pytest.mark.slow
def test_a_read_only_folder_stops_the_run_with_one_line(run, tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("no disk can be mounted here")

    def fill() -> None:
        on_a_disk_of(2000)
        shutil.copytree("run", "disk/run")
        # read-only, mounted again
        ctypes.CDLL(None).mount(b"tmpfs", b"disk", b"tmpfs", 1 | 32, None)
        Path("told").write_text(refused(["--resume", "disk/run"]))
        os._exit(0)

    assert end(start([], fill)) == 0, Path("stderr").read_text()
    assert "Read-only file system" in Path("told").read_text()


# ---- Numbers gone wrong


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


def test_fp16_skips_what_is_not_finite_and_goes_on(tiny_folder):
    model, examples, settings = fp16(tiny_folder, epochs=1)
    bad, weights = {2, 3, 7}, [model.prompt.embeddings.detach().clone()]
    state = loop.make_state(model, settings)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model.prompt.embeddings.register_hook(lambda g: g * math.inf if state.step + 1 in bad else g)

    def after(step):
        weights.append(model.prompt.embeddings.detach().clone())

    for number, step in enumerate(
        train_steps(model, examples, settings, after, state=state), start=1
    ):
        assert (step.gradient_norm is None) == (number in bad)
        assert torch.equal(weights[number - 1], weights[number]) == (number in bad)
        # The schedule goes on.
        assert step.learning_rate == loop.learning_rate_at(number - 1, 15, settings)
    assert (state.step, state.skipped, state.skipped_last) == (15, 3, 0)


def test_ten_on_end_stop_the_run(tiny_folder):
    model, examples, settings = fp16(tiny_folder, epochs=2)
    model.prompt.embeddings.register_hook(lambda gradient: gradient * math.nan)
    taken = []
    with pytest.raises(
        InputError,
        match=r"10 consecutive gradients were not finite, the last one at step 10 \(epoch 1\): try",
    ):
        train_steps(model, examples, settings, taken.append)
    assert len(taken) == 9
