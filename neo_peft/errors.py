"""Errors that a user can cause, and the exception for a signal that stops a command."""


class InputError(Exception):
    """Bad input: a flag, a file, a folder. The message states the input, what is allowed, and what
    to do."""


class DivergedError(InputError):
    """The loss or a gradient in training is not finite."""


class Stopped(BaseException):
    """A signal (`number`) that stops the command cleanly. `advice` is printed: how to resume, if
    that is possible."""

    def __init__(self, number: int, advice: str = "stopped before the end"):
        self.number, self.advice = number, advice
