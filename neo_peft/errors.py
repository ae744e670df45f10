"""The one error that a user can cause, and how a command ends with it: one line, exit status 2."""

import errno
import os
import signal
import sys
from collections.abc import Callable


class InputError(Exception):
    """Bad input from outside: a flag, a file, a folder. Its text says what came, what is allowed,
    what to do."""


class DivergedError(InputError):
    """Numbers that have gone wrong in training: a loss, or gradients, that are not finite."""


class Stopped(BaseException):
    """A signal that ends the command, in order. `advice` says how to go on, where one can."""

    def __init__(self, number: int, advice: str = "stopped before the end"):
        self.number, self.advice = number, advice


def complain(text: str) -> None:
    print(text, file=sys.stderr)


def in_words(error: Exception) -> str:
    """Say what went wrong; of the system's own errors the file and the reason, without a number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    advice = "; make room, and start again" if error.errno == errno.ENOSPC else ""
    return (f"{error.filename}: " if error.filename else "") + error.strerror + advice


def exit_status(main: Callable[[], None], complain: Callable[[str], None] = complain) -> int:
    """Run a command's `main` and return its exit status: 0, 2 after one line for bad input or a
    full disk, or 128 and the number of the signal that stopped it."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads our output has seen enough, as `| head` has
        # or Python complains as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        complain(f"error: {' '.join(in_words(error).split())}")
        return 2
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        complain(stopped.advice)
        return 128 + stopped.number
    return 0
