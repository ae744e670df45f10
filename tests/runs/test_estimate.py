"""What a run costs is printed before it starts; too little memory gets advice or is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from trained import make_job

import train
from neo_peft.commands import sizes
from neo_peft.commands.train import parse_flags
from neo_peft.formats.base_config import read_config
from neo_peft.runs import cost, estimate, loading, too_large
from neo_peft.runs.too_large import shown
from neo_peft.system.exit_status import exit_status

pytestmark = pytest.mark.usefixtures("estimates")

FLAGS = "--task ner --method lora --threads 1 --train-limit 12 --eval-limit 6 --batch-size 4"
LARGEST = "EleutherAI/gpt-neo-2.7B"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def lines_of(text, *names):
    return [line for line in text.splitlines() if line.startswith(names)]


def test_a_dry_run_prints_the_lines_of_the_run_and_writes_nothing(tiny_folder, tmp_path, capsys):
    flags = [*FLAGS.split(), "--model", str(tiny_folder)]
    assert exit_status(lambda: train.main([*flags, "--dry-run"])) == 0
    dry = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert exit_status(lambda: train.main(flags)) == 0
    run = capsys.readouterr().out
    names = "task", "model", "method", "disk"
    assert lines_of(dry, *names) == lines_of(run, *names) and len(lines_of(dry, *names)) == 4
    memory = [line.partition("; ")[0] for text in (dry, run) for line in lines_of(text, "memory")]
    assert memory[0] == memory[1]
    (time,) = lines_of(dry, "time")
    assert re.match(r"time    about \d+ seconds: 30 steps of .* seconds, and .* of scoring", time)
    assert len(lines_of(run, "time")) == 1


def test_a_dry_run_as_json_has_all_numbers(tiny_folder, capsys):
    flags = [*FLAGS.split(), "--model", str(tiny_folder), "--dry-run", "--json"]
    assert exit_status(lambda: train.main(flags)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["time"]["steps"] == 30 and record["time"]["cpu_seconds"] > 0
    memory = record["memory"]
    assert memory["peak"] == max(memory["step"], memory["scoring"]) > memory["base"] > 0
    assert record["disk"]["most"] > record["disk"]["kept"] > 0


def test_sizes_with_flags_prints_what_the_dry_run_prints(tiny_folder, capsys):
    flags = [*FLAGS.split(), "--model", str(tiny_folder)]
    train.main([*flags, "--dry-run"])
    dry = capsys.readouterr().out
    sizes.main(flags)
    names = "task", "model", "method", "disk", "memory  "
    found = capsys.readouterr().out
    assert [x.partition("; ")[0] for x in lines_of(found, *names)] == [
        x.partition("; ")[0] for x in lines_of(dry, *names)
    ]


def test_a_published_model_without_weights_has_memory_and_disk_but_no_time(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "available_memory", lambda device: 64 * 10**9)
    sizes.main([*FLAGS.split(), "--model", LARGEST, "--batch-size", "8"])
    printed = capsys.readouterr().out
    assert "2,653,957,131 parameters" in printed and "trains 2,649,611 parameters" in printed
    (memory,) = lines_of(printed, "memory")
    assert "base 10.6 GB" in memory and "64.0 GB are available" in memory
    assert "\ntime    not measured without the weights of the base\n" in printed
    assert "their tokens are those of neo-mini" in printed


def test_the_plan_without_weights_is_that_with_them(tiny_folder, tmp_path, capsys):
    """A folder with a config and a tokenizer is enough for memory and disk."""
    flags = [*FLAGS.split(), "--json"]
    sizes.main([*flags, "--model", str(tiny_folder)])
    loaded = json.loads(capsys.readouterr().out)
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (empty / name).write_bytes((tiny_folder / name).read_bytes())
    sizes.main([*flags, "--model", str(empty)])
    without = json.loads(capsys.readouterr().out)
    assert without["time"] is None and loaded["time"]
    for part in (without, loaded):
        part["memory"].pop("available")
    assert without["memory"] == loaded["memory"] and without["disk"] == loaded["disk"]


def test_an_unknown_model_is_refused_and_nothing_is_downloaded(capsys):
    flags = [*FLAGS.split(), "--model", "someone/some-model"]
    assert exit_status(lambda: sizes.main(flags)) == 2
    assert "the sizes of someone/some-model are not known here" in capsys.readouterr().err


def test_too_little_memory_gets_flags_that_help_each_with_its_number(
    tiny_folder, tmp_path, monkeypatch
):
    """Each number is that of the plan with these flags."""
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=8)
    peak = cost.memory_of(job.tuned.model, job.examples, job.settings).peak
    monkeypatch.setattr(estimate, "available_memory", lambda device: peak - 1)
    found = estimate.plan_of(job)
    note = [line for line in estimate.lines(job, found) if line.startswith("note")]
    assert not found.fits and found.time is None and len(note) == 1
    helping = re.findall(r"([\d.]+ \wB) with ((?:--[^,]+)+)", note[0])
    wanted = ["--quantize int8", "--quantize nf4", "--checkpoint-activations"]
    wanted.append("--batch-size 4 --gradient-accumulation 2")
    assert [flags for _, flags in helping] == wanted
    common = f"--task ner --method lora --model {tiny_folder} --train-limit 40 --eval-limit 9"
    for size, flags in helping:
        batch = "" if "--batch-size" in flags else " --batch-size 8"
        settings = parse_flags(f"{common} {flags}{batch} --threads 1".split())
        memory = cost.memory_of(job.tuned.model, job.examples, settings)
        assert memory.peak < peak and size == shown(memory.peak)


def test_flags_are_combined_only_if_none_suffices_alone(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=4)
    pair = "--quantize nf4 --checkpoint-activations"
    found = dict(estimate.smaller(job, available=10**12))
    assert pair not in found and len(found) == 4
    flags = [flags for flags, _ in estimate.smaller(job, available=0)]
    assert flags[4:] == [pair, f"{pair} --batch-size 1 --gradient-accumulation 4"]


def test_flags_that_need_as_much_memory_are_not_named(tiny_folder, tmp_path, monkeypatch):
    """The peak of a step that trains all weights is that of AdamW."""
    job = make_job(tmp_path, tiny_folder, task="ner", method="full", batch_size=1, train_limit=2)
    monkeypatch.setattr(cost.Peaks, "step", lambda peaks, kept, factor: 10**9)
    monkeypatch.setattr(estimate, "available_memory", lambda device: 1)
    *_, note = estimate.lines(job, estimate.plan_of(job))
    assert note == "note    the memory does not suffice; train fewer weights"


def test_flags_that_do_not_suffice_are_not_named_where_others_do(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=4)
    singles = sorted(its.peak for _, its in estimate.smaller(job, available=10**12))
    available = singles[1]
    peaks = {flags: its.peak for flags, its in estimate.smaller(job, available)}
    text = estimate.advice(job, available)
    enough = [flags for flags, peak in peaks.items() if peak <= available]
    assert 0 < len(enough) < len(peaks)
    named = ", ".join(f"{shown(peaks[flags])} with {flags}" for flags in enough)
    assert text == f"the run needs {named}"
    peaks = {flags: its.peak for flags, its in estimate.smaller(job, 1)}
    least = min(peaks, key=peaks.get)
    text = estimate.advice(job, 1)
    assert text == f"the run needs at least {shown(peaks[least])}, with {least}"


def test_too_little_disk_is_noted(tiny_folder, tmp_path, monkeypatch):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=4)
    plan = estimate.plan_of(job)
    assert not [line for line in estimate.lines(job, plan) if "does not" in line]
    monkeypatch.setattr(estimate, "free_disk", lambda settings: 10)
    lines = list(estimate.lines(job, plan))
    assert "; 0 kB are free" in lines[1]
    assert lines[-1].startswith("note    the disk does not suffice")


def test_an_odd_batch_is_split_so_that_the_steps_stay_the_same(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=5)
    changes = estimate.smaller_batch(job, available=10**12)
    assert changes == {"batch_size": 1, "gradient_accumulation": 5}


def test_a_batch_becomes_as_small_as_it_must(tiny_folder, tmp_path, monkeypatch):
    job = make_job(tmp_path, tiny_folder, task="ner", train_limit=40, batch_size=6)
    changes = estimate.smaller_batch(job, available=0)
    assert changes == {"batch_size": 1, "gradient_accumulation": 6}
    changes = estimate.smaller_batch(job, available=10**12)
    assert changes == {"batch_size": 3, "gradient_accumulation": 2}


@pytest.mark.parametrize("command", ["train", "dry run", "full"])
def test_a_base_that_can_never_fit_is_refused_before_it_is_loaded(
    tiny_folder, tmp_path, monkeypatch, capsys, command
):
    def never(*_):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(loading, "load_base", never)
    monkeypatch.setattr(too_large, "memory_limit", lambda device: too_large.LIBRARIES + 500_000)
    flags = [*FLAGS.split(), "--model", str(tiny_folder)]
    flags += {"dry run": ["--dry-run"], "full": ["--method", "full"]}.get(command, [])
    assert exit_status(lambda: train.main(flags)) == 2
    error = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
    advice = "a method that does not train the base" if command == "full" else "--quantize nf4"
    assert re.search(r"needs at least 32\d MB of memory, without any text", error)
    assert advice in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method, copies", [("lora", 1), ("full", 4)])
def test_a_base_that_just_fits_is_accepted_and_one_byte_less_refused(
    tiny_folder, monkeypatch, method, copies
):
    """Training all weights needs them, their gradients, and two averages of each."""
    settings = parse_flags(f"--task ner --method {method} --model {tiny_folder}".split())
    base = too_large.base_bytes(read_config(Path(tiny_folder)), settings, torch.float32)
    needed = too_large.LIBRARIES + copies * base
    monkeypatch.setattr(too_large, "memory_limit", lambda device: needed)
    too_large.refuse_too_large(settings, training=True)
    monkeypatch.setattr(too_large, "memory_limit", lambda device: needed - 1)
    with pytest.raises(too_large.TooLargeError, match="needs at least"):
        too_large.refuse_too_large(settings, training=True)


def test_a_plan_of_a_base_that_is_too_large_is_made_without_its_weights(
    tiny_folder, monkeypatch, capsys
):
    monkeypatch.setattr(too_large, "memory_limit", lambda device: 10**6)
    monkeypatch.setattr(estimate, "available_memory", lambda device: 10**6)
    sizes.main([*FLAGS.split(), "--model", str(tiny_folder)])
    printed = capsys.readouterr().out
    assert "needs at least" in printed and "the memory does not suffice" in printed


def test_a_dry_run_of_a_stopped_run_is_refused(tmp_path, capsys):
    assert exit_status(lambda: train.main(["--resume", str(tmp_path), "--dry-run"])) == 2
    assert "leave out --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 seconds"), (89, "89 seconds"), (150, "2 min"), (3600 * 3 + 1250, "3 h 21 min")],
)
def test_times_are_shown_for_people(seconds, text):
    assert estimate.duration(seconds) == text
