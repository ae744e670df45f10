"""Run a command and measure its whole process: python -m benchmarks.process FILE COMMAND …

FILE gets a JSON object with the seconds (`wall`), the processor's seconds in user and system mode
of the process and all that it started (`cpu`), and the resident memory in bytes at its peak, of the
largest process (`memory`). The command's output goes to FILE.log.

This is a process of its own, and imports nothing large: Linux counts the memory of the process that
starts a command as memory of the command, too.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(file: str, command: list[str]) -> int:
    """Run a command, write what it took, and return its exit status."""
    with open(f"{file}.log", "wb") as log:
        started = time.perf_counter()
        status = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024}
    Path(file).write_text(json.dumps(taken))
    return status.returncode


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1], sys.argv[2:]))
