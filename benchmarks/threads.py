"""Seconds of training steps on two threads over those on one: python -m benchmarks.threads

Waiting threads sleep (passive, see system/openmp.py) or keep their core busy (active). The machine
is idle, or another process keeps one core busy. Prints the median of the ratios of some rounds.
"""

import argparse
import atexit
import os
import subprocess
import sys
import time
from statistics import median

WORK = {"neo-mini": ("ner", 12), "125m": ("sentiment", 3)}  # a task, and the number of its steps
WAYS = {"1": ("1", "passive"), "2, passive": ("2", "passive"), "2, active": ("2", "active")}


def time_steps(shape: str, threads: int) -> float:
    """Return the seconds of the steps in this process, after one that is not counted."""
    import torch

    from benchmarks.sides import Job, Ours, as_batches

    torch.set_num_threads(threads)
    task, count = WORK[shape]
    job = Job(task, shape)
    step = as_batches(job, Ours(job), count + 1)
    step(0)
    start = time.perf_counter()
    for number in range(1, count + 1):
        step(number)
    return time.perf_counter() - start


def seconds(shape: str, threads: str, policy: str) -> float:
    """Return the seconds of the steps in a new process."""
    command = [sys.executable, "-m", "benchmarks.threads", "--shape", shape, "--time", threads]
    env, root = os.environ | {"OMP_WAIT_POLICY": policy}, f"{os.path.dirname(__file__)}/.."
    return float(subprocess.check_output(command, env=env, cwd=root))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads")
    parser.add_argument("--shape", default="neo-mini", choices=WORK)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--busy", action="store_true", help="while another process computes")
    parser.add_argument("--time", type=int, metavar="N", help="time the steps on N threads, here")
    flags = parser.parse_args()
    if flags.time:
        return print(time_steps(flags.shape, flags.time))
    if flags.busy:
        atexit.register(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
    rounds = [[seconds(flags.shape, *way) for way in WAYS.values()] for _ in range(flags.rounds)]
    for index, way in enumerate(WAYS):
        print(f"{way:12} {median(times[index] / times[0] for times in rounds):.2f}")


if __name__ == "__main__":
    main()
