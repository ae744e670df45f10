"""Wait for what another process does.

No test is decided by seconds, because another program can take the cores. The only limit is HANG,
which ends a test that would wait forever.
"""

import time
from collections.abc import Callable

HANG = 15 * 60  # seconds


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait until this has happened."""
    until = time.monotonic() + HANG
    while not happened():
        assert time.monotonic() < until, "this never happens"
        time.sleep(0.02)
