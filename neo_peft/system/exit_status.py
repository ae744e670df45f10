"""Exit status of a command. Bad input gives one line on standard error and status 2."""

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
    """Return the text of an error. For an OSError: the file and the reason, without the number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    advice = "; free some space, and start again" if error.errno == errno.ENOSPC else ""
    return (f"{error.filename}: " if error.filename else "") + error.strerror + advice


def exit_status(main: Callable[[], None], print_error: Callable[[str], None] = print_error) -> int:
    """Run a command's `main` and return its exit status.

    0: success. 2: bad input or a full disk, after one line. 128 + n: stopped by signal n.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it, for example `| head`
        # Without this, Python prints an error when it flushes standard output at its end.
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
