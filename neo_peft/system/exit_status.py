"""How a command ends: bad input is one line on standard error and status 2, never a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Callable

from neo_peft.errors import InputError, Stopped


def print_error(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr)


def describe_error(error: Exception) -> str:
    """Return an error's text; for one of the operating system the file and the reason, no
    number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    advice = "; make room, and start again" if error.errno == errno.ENOSPC else ""
    return (f"{error.filename}: " if error.filename else "") + error.strerror + advice


def exit_status(main: Callable[[], None], print_error: Callable[[str], None] = print_error) -> int:
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
        print_error(f"error: {' '.join(describe_error(error).split())}")
        return 2
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        print_error(stopped.advice)
        return 128 + stopped.number
    return 0
