"""Speed and memory of neo_peft, compared with its peers: python -m benchmarks.peers"""

from neo_peft.system.openmp import wait_passively

wait_passively()  # before a benchmark imports torch
