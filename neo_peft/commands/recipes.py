"""Read the recipes of a study from a file: one a line, `NAME: train.py's flags`. No torch here.

# a comment
LoRA, r 8: --method lora --rank 8
prompt: --method prompt --prompt-length 20
"""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from neo_peft.commands.flags import OneLineParser, add_settings
from neo_peft.errors import InputError
from neo_peft.settings import flag_name

# Flags that are the same for all recipes, because they decide which rows are scored. And those that
# a study sets itself.
OF_THE_STUDY = (
    *("task", "data", "columns", "protocol", "labels", "eval_limit"),
    *("seed", "out", "resume", "json", "generate"),
)


class RecipeParser(OneLineParser):
    """An argument parser that raises an error for a bad line."""

    def error(self, message: str):
        raise InputError(message)


def read_recipes(path: Path) -> dict[str, dict[str, Any]]:
    """Return the flags of each recipe in a file, by its name.

    Raises InputError with the number of a line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file in UTF-8"
        raise InputError(f"--recipes {path} cannot be opened: {reason}") from None
    recipes: dict[str, dict[str, Any]] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            name, flags = read_recipe(line)
            if name in recipes:
                raise InputError(f"the recipe {name} is also in line {line_of[name]}")
        except (InputError, ValueError) as error:  # shlex raises ValueError for an open quote
            raise InputError(f"--recipes {path}, line {number}: {error}") from None
        recipes[name], line_of[name] = flags, number
    if not recipes:
        raise InputError(f"--recipes {path} has no recipe: a line is NAME: train.py's flags")
    return recipes


def read_recipe(line: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the flags in a line."""
    name, colon, rest = line.partition(":")
    name = " ".join(name.split())
    if not colon or not re.match(r"\w", name):
        raise InputError("is not NAME: train.py's flags, with a name that starts with a letter")
    parser = RecipeParser(
        prog="", usage="", add_help=False, argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    add_settings(parser)
    try:
        flags = vars(parser.parse_args(shlex.split(rest, comments=True)))
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    for given in flags:
        if given in OF_THE_STUDY:
            raise InputError(f"{flag_name(given)} is not a recipe's; all recipes have the study's")
    return name, flags
