"""The errors that a user can cause, and the signal that ends a command."""


class InputError(Exception):
    """Bad input from outside: a flag, a file, a folder. Its text says what came, what is allowed,
    what to do."""


class DivergedError(InputError):
    """Numbers that have gone wrong in training: a loss, or gradients, that are not finite."""


class Stopped(BaseException):
    """A signal that ends the command, in order. `advice` says how to go on, where one can."""

    def __init__(self, number: int, advice: str = "stopped before the end"):
        self.number, self.advice = number, advice
