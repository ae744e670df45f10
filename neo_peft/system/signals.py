"""Ctrl-C and SIGTERM: they stop a command at once, or between two steps while it trains.

By default Python raises KeyboardInterrupt at any line for Ctrl-C, and is killed by SIGTERM. After
`listen`, both raise `Stopped`. Within `delayed`, the first signal waits; in a single process, a
second one raises `Stopped` at once. Under torchrun a thread waits for SIGTERM (torchrun.py), and
calls `request_end`.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from neo_peft.errors import Stopped
from neo_peft.progress import Progress
from neo_peft.system import processes

_received = 0  # number of the signal that arrived within `delayed`; 0 if none
_delayed = False  # True within `delayed`
_end_requested = False  # torchrun has told this process to end; stays True


class SignalReceived(Exception):
    """Raised between two items of a progress bar if a signal has arrived."""


def listen() -> None:
    """Install the handler of both signals. Call it in the main thread."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if not _delayed or (_received and processes.world == 1):
        raise Stopped(number)
    _received = number


def request_end() -> bool:
    """Record that torchrun has told this process to end. Return True if the process is within
    `delayed`, so that it will end by itself after its step."""
    global _end_requested
    _end_requested = True
    return _delayed


@contextmanager
def delayed() -> Iterator[None]:
    """Delay signals until `received` or `stop_if_received` is called, at the latest until the end
    of the block."""
    global _received, _delayed
    _received, _delayed = 0, True
    try:
        yield
        stop_if_received()
    finally:
        _received, _delayed = 0, False


def received() -> bool:
    """Return whether a signal has arrived in any process. All processes must call this together."""
    return processes.total(int(bool(_received or _end_requested))) > 0


def stop_if_received() -> None:
    """Raise Stopped if a signal has arrived."""
    if received():
        raise Stopped(_received or signal.SIGTERM)


def between_items(progress: Progress) -> Progress:
    """Return a progress bar that raises SignalReceived between two items if a signal has arrived.

    Several processes have to check together, so with more than one it does nothing.
    """

    def checked(items: Iterable) -> Iterator:
        for item in items:
            if _received and processes.world == 1:
                raise SignalReceived
            yield item

    return lambda items, *about: progress(checked(items), *about)
