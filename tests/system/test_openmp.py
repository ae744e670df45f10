"""Threads sleep while they wait for each other: every program sets this before it imports torch. It
changes no result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neo_peft.system.openmp import wait_passively

ROOT = Path(__file__).parents[2]
# Ends the process where torch is imported, with the variable as its last line.
STOP_AT_TORCH = """
import os, runpy, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch with", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
"""
RUN_FILE = STOP_AT_TORCH + "runpy.run_path(sys.argv[0], run_name='__main__')"
RUN_MODULE = STOP_AT_TORCH + "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def last_line(code: str, *argv: str, **environment: str) -> str:
    """Return the last line that a process prints, which starts without OMP_WAIT_POLICY."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        env=env | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        (RUN_FILE, "train.py --task ner --method lora --out OUT"),
        (RUN_FILE, "evaluate.py --task ner --model neo-mini"),
        (RUN_FILE, "scripts/pretrain.py --help"),
        (RUN_MODULE, "neo_peft train --task ner --method lora --out OUT"),
        (RUN_MODULE, "neo_peft sizes"),
        (RUN_MODULE, "benchmarks.peers --help"),
        (RUN_MODULE, "benchmarks.growth --help"),
        (RUN_MODULE, "benchmarks.prompt --help"),
    ],
)
def test_every_program_lets_threads_sleep_before_it_imports_torch(code, argv, tmp_path):
    argv = [part.replace("OUT", str(tmp_path / "run")) for part in argv.split()]
    assert last_line(code, *argv) == "torch with passive"


def test_the_users_own_choice_stays_and_the_library_makes_none(monkeypatch):
    argv = ("evaluate.py", "--task", "ner", "--model", "neo-mini")
    assert last_line(RUN_FILE, *argv, OMP_WAIT_POLICY="active") == "torch with active"
    assert last_line(STOP_AT_TORCH + "import neo_peft; neo_peft.load_base") == "torch with None"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_waiting_threads_change_no_bit_of_a_result():
    """Two steps of neo-mini on two threads."""
    code = """if True:
        import hashlib
        from neo_peft import load_splits, get_task, make_settings, fit
        from neo_peft.runs.loading import load_to_train
        settings = make_settings(task="ner", method="lora", max_steps=2, threads=2)
        tuned = load_to_train(settings)
        fit(tuned.model, tuned.encoder(load_splits(get_task("ner"), "sample").train[:32]), settings)
        weights = [p.detach().numpy().tobytes() for p in tuned.model.trainable().values()]
        print(hashlib.sha256(b"".join(weights)).hexdigest())"""
    passive, active = (last_line(code, OMP_WAIT_POLICY=policy) for policy in ("passive", "active"))
    assert passive == active and len(passive) == 64
