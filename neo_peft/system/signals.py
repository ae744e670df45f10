"""Ctrl-C and SIGTERM: they end a command at once, or, while it trains, between two steps.

Python alone would raise KeyboardInterrupt wherever it happens to be, and die of SIGTERM where it
stands. A command that calls `listen` ends by `Stopped` instead, in order. A second signal never
waits. Under torchrun a thread waits for SIGTERM (torchrun.py), and reports it here.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from neo_peft import processes
from neo_peft.errors import Stopped
from neo_peft.progress import Progress

_received = 0  # the signal that came while it had to wait
_delayed = False
_end_requested = False  # by torchrun to end; never taken back


class SignalReceived(Exception):
    """A signal was found waiting between two items."""


def listen() -> None:
    """Take over both signals, in the main thread."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if not _delayed or (_received and processes.world == 1):
        raise Stopped(number)
    _received = number


def request_end() -> bool:
    """Note that torchrun has told this process to end. Return whether it asks for that between its
    steps, and so ends in order."""
    global _end_requested
    _end_requested = True
    return _delayed


@contextmanager
def delayed() -> Iterator[None]:
    """Let a signal wait for whoever asks whether it has come; at the latest for the end of the
    block."""
    global _received, _delayed
    _received, _delayed = 0, True
    try:
        yield
        stop_if_received()
    finally:
        _received, _delayed = 0, False


def received() -> bool:
    """Return whether a signal has come, to this process or another; all of them must ask."""
    return processes.total(int(bool(_received or _end_requested))) > 0


def stop_if_received() -> None:
    """Stop here, where a signal has come."""
    if received():
        raise Stopped(_received or signal.SIGTERM)


def between_items(progress: Progress) -> Progress:
    """Wrap a progress bar, so that a signal is found between its items. Several processes find it
    after them."""

    def watched(items: Iterable) -> Iterator:
        for item in items:
            if _received and processes.world == 1:
                raise SignalReceived
            yield item

    return lambda items, what, total: progress(watched(items), what, total)
