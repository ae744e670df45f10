"""Check a reader's answer to an exercise: `check(2, merged)` compares the function `merged` with
the one of the same name in solutions/02-….py, and prints what is wrong in a sentence."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

OPEN = "still open: replace the `...` and run it again"


@dataclass(frozen=True)
class Exercise:
    """An exercise of a lesson. Its name is the solution's name."""

    solution: Callable  # the function without the hole
    cases: list[tuple]  # the arguments of each call that is compared
    # What is wrong, in a sentence: a function with this mistake, or several. It may raise an error.
    mistakes: dict[str, Callable | tuple[Callable, ...]]
    draw: Callable | None = None  # from a wrong and the right value to a text; None: `drawing`
    compared: Callable = lambda value: value  # what of a returned value is compared


def exercises(lesson: int) -> dict[str, Exercise]:
    """Return the exercises of a lesson by name."""
    (path,) = (Path(__file__).parent / "solutions").glob(f"{lesson:02d}-*.py")
    spec = importlib.util.spec_from_file_location(f"solutions{lesson}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {exercise.solution.__name__: exercise for exercise in module.EXERCISES}


def check(lesson: int, answer: Callable) -> None:
    """Print whether an answer is right. Never raises an exception because the answer is wrong."""
    print(f"{answer.__name__}: {verdict(exercises(lesson)[answer.__name__], answer)}")


def verdict(exercise: Exercise, answer: Callable) -> str:
    """Return "right", or what is wrong with an answer."""
    found = outcome(exercise, answer)
    is_error = isinstance(found, str)
    uses_hole = is_error and "ellipsis" in found
    if uses_hole or any(value is ... for value in found):
        return OPEN
    right = outcome(exercise, exercise.solution)
    if agrees(exercise, found, right):
        return "right"
    for sentence, mistaken in exercise.mistakes.items():
        forms = mistaken if isinstance(mistaken, tuple) else (mistaken,)
        if any(agrees(exercise, found, outcome(exercise, form)) for form in forms):
            return sentence
    if is_error:
        return f"it raises {found}"
    pairs = zip(found, right, strict=True)
    pair = next(pair for pair in pairs if not agrees(exercise, *([value] for value in pair)))
    return (exercise.draw or drawing)(*pair)


def agrees(exercise: Exercise, found: list | str, right: list | str) -> bool:
    """Return whether the outcomes of two functions agree in what the exercise compares."""
    if isinstance(found, str) or isinstance(right, str):
        return found == right
    try:
        return same(*([exercise.compared(value) for value in values] for values in (found, right)))
    except Exception:  # a value of another type
        return same(found, right)


def outcome(exercise: Exercise, function: Callable) -> list | str:
    """Return the value of a function for each case, or its error as a text. It gets copies: it can
    change its arguments."""
    try:
        return [function(*copy.deepcopy(case)) for case in exercise.cases]
    except Exception as error:  # whatever the reader's function raises
        return f"{type(error).__name__}: {error}"


def same(found: object, right: object) -> bool:
    """Return whether values are equal: numbers to 1e-4, tensors in shape, lists item by item."""
    if isinstance(right, list | tuple):
        same_length = isinstance(found, list | tuple) and len(found) == len(right)
        return same_length and all(map(same, found, right))
    if isinstance(right, Tensor | float | int):
        if isinstance(found, np.generic):
            found = found.item()
        if not isinstance(found, Tensor | float | int):
            return False
        found, right = torch.as_tensor(found), torch.as_tensor(right)
        if found.shape != right.shape or (found.dtype == torch.bool) != (right.dtype == torch.bool):
            return False
        return torch.allclose(found.double(), right.double(), rtol=1e-4, atol=1e-6)
    return type(found) is type(right) and found == right


def drawing(found: object, right: object) -> str:
    """Return a text that shows a wrong value next to the right one."""
    if not isinstance(right, Tensor):
        return f"it returns {found!r:.200}; right is {right!r}"
    if not isinstance(found, Tensor):
        shape = tuple(right.shape)
        return f"it returns {found!r:.60}; right is a tensor of the shape {shape}"
    if (found.dtype == torch.bool) != (right.dtype == torch.bool):
        return f"it returns a tensor of the type {found.dtype}; right is {right.dtype}"
    if found.shape != right.shape:
        shapes = f"the shape {tuple(found.shape)}; right is {tuple(right.shape)}"
        return f"it returns a tensor of {shapes}"
    if right.dim() != 2:
        return f"it returns\n{found}\nright is\n{right}"
    rows = [f"   {mine}   {theirs}" for mine, theirs in zip(lines(found), lines(right))]
    width = len(lines(found)[0])
    return "\n".join(["some values are wrong", f"   {'yours':{width}}   right", *rows])


def lines(matrix: Tensor) -> list[str]:
    """Return the rows of a matrix as texts of one width; # and . of a mask."""
    if matrix.dtype == torch.bool:
        return [" ".join("#" if one else "." for one in row) for row in matrix.tolist()]
    return [" ".join(f"{value:7.3f}" for value in row) for row in matrix.tolist()]
