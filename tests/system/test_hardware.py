"""The choice of device, precision and threads, on simulated machines."""

import os
from pathlib import Path

import pytest
import torch

from neo_peft.errors import InputError
from neo_peft.system import hardware, processes
from neo_peft.system.hardware import (
    SMALL,
    find_device,
    find_precision,
    slow_precision,
    thread_count,
)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine: accelerators, number of CPUs, limits of CPUs."""

    def make(cuda=False, mps=False, cpus=16, quota=None, omp=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
        monkeypatch.setattr(hardware, "_container_quota", lambda: quota)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if omp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)

    return make


@pytest.mark.parametrize(
    ("accelerators", "flag", "device"),
    [
        ({"cuda": True, "mps": True}, "auto", "cuda"),
        ({"mps": True}, "auto", "cpu"),  # mps is never chosen by auto
        ({}, "auto", "cpu"),
        ({"cuda": True}, "cpu", "cpu"),
        ({"cuda": True}, "cuda", "cuda"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_auto_is_cuda_or_the_cpu_and_other_values_are_the_device(
    machine, accelerators, flag, device
):
    machine(**accelerators)
    assert find_device(flag) == device


def test_a_missing_device_is_refused_with_the_available_ones(machine):
    machine(mps=True)
    with pytest.raises(
        InputError, match="^--device cuda is not available to torch here; available: mps, cpu$"
    ):
        find_device("cuda")
    machine(cuda=False)
    with pytest.raises(
        InputError, match="^--device mps is not available to torch here; available: cpu$"
    ):
        find_device("mps")


def test_auto_precision_is_fp16_on_cuda_only():
    assert [find_precision("auto", device) for device in ("cuda", "cpu", "mps")] == [
        "fp16",
        "fp32",
        "fp32",
    ]
    assert [find_precision(flag, "cuda") for flag in ("fp32", "bf16", "fp16")] == [
        "fp32",
        "bf16",
        "fp16",
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cpu_without_products_in_half_precision_gets_a_warning(monkeypatch, precision):
    for supported in (False, True):
        monkeypatch.setattr(
            torch.ops.mkldnn,
            f"_is_mkldnn_{precision}_supported",
            lambda supported=supported: supported,
        )
        warning = slow_precision(precision, "cpu")
        assert warning == (
            None
            if supported
            else f"this CPU has no {precision} matrix products: --precision fp32 is many times "
            "faster here"
        )
        assert slow_precision("fp32", "cpu") is None and slow_precision(precision, "cuda") is None


@pytest.mark.parametrize(
    ("limits", "threads"),
    [
        ({}, 16),
        ({"cpus": 3}, 3),
        ({"quota": 5}, 5),
        ({"omp": "6"}, 6),
        ({"omp": "7,2"}, 7),  # OpenMP's list of nested levels: the first one is used
        ({"omp": "0"}, 16),
        ({"omp": "all"}, 16),
        ({"omp": ""}, 16),
        ({"quota": 20, "omp": "30"}, 16),  # a limit never adds threads
        ({"cpus": 12, "quota": 9, "omp": "11"}, 9),
    ],
)
def test_auto_threads_are_the_minimum_of_cpus_quota_and_openmp_and_one_for_a_small_model(
    machine, limits, threads
):
    machine(**limits)
    assert thread_count("auto", SMALL) == threads
    assert thread_count("auto", SMALL - 1) == 1


def test_small_is_below_50_million_parameters():
    assert SMALL == 50_000_000


def test_a_given_number_of_threads_is_used(machine):
    machine(cpus=2, quota=1, omp="1")
    assert thread_count(7, 1000) == 7


@pytest.mark.parametrize(("count", "threads"), [(6, 6), (None, 1)])
def test_without_cpu_affinity_all_cpus_are_used(machine, monkeypatch, count, threads):
    machine()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert thread_count("auto", SMALL) == threads


def test_the_processes_of_a_host_share_its_cores_and_the_default_1_of_torchrun_is_ignored(
    machine, monkeypatch
):
    monkeypatch.setattr(processes, "local_world", 3)
    machine(cpus=16, quota=12, omp="1")
    assert thread_count("auto", SMALL) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert thread_count("auto", SMALL) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert thread_count("auto", SMALL) == 2
    machine(cpus=2)
    assert thread_count("auto", SMALL) == 1
    assert thread_count(7, SMALL) == 7


def test_several_processes_need_one_gpu_each_and_cannot_share_mps(machine, monkeypatch):
    machine(cuda=True, mps=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes, "world", 6)
    monkeypatch.setattr(processes, "local_world", 2)
    assert find_device("auto") == "cuda"
    monkeypatch.setattr(processes, "local_world", 3)
    for flag in ("auto", "cuda"):
        with pytest.raises(
            InputError,
            match="^3 processes on a host with 2 GPUs: start fewer, or use --device cpu$",
        ):
            find_device(flag)
    assert find_device("cpu") == "cpu"
    with pytest.raises(
        InputError, match="^--device mps works with one process only; for several use cuda or cpu$"
    ):
        find_device("mps")


V2, V1_QUOTA, V1_PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({V2: "300000 100000\n"}, 3),
        ({V2: "250000 100000\n"}, 2),  # rounded down: a thread that waits delays all others
        ({V2: "50000 100000\n"}, 1),
        ({V2: "max 100000\n"}, None),
        ({V2: ""}, None),
        ({V1_QUOTA: "150000\n", V1_PERIOD: "50000\n"}, 3),
        ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, None),
        ({V1_QUOTA: "200000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_is_read_from_both_versions_of_control_groups(
    tmp_path: Path, files, quota
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware._container_quota(tmp_path) == quota
