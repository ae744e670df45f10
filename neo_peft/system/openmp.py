"""How the threads of torch wait for each other. No torch here."""

import os


def wait_passively() -> None:
    """Let threads sleep while they wait for each other, unless OMP_WAIT_POLICY is set.

    By default they wait in a loop. If another process needs the core of one thread, the others then
    wait in a loop for it at the end of each operation, and a small model trains many times slower:
    see docs/performance.md. The results are the same. Call it before torch is imported, which reads
    the variable once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
