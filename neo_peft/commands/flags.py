"""What the command lines share: a flag for each setting of a run, and the flags of a finished run's
commands.

No torch here: `--help` and a bad flag are answered at once.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from neo_peft.errors import InputError
from neo_peft.methods import METHODS
from neo_peft.settings import (
    OF_TAGS,
    Settings,
    filled,
    flag_name,
    names,
    one_of,
    require_tags,
    threads,
    whole,
)
from neo_peft.tasks import TASKS


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def add_settings(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add a flag for each setting of a run, in their groups; leave out those that are named."""
    groups = {}
    for item in dataclasses.fields(Settings):
        if item.name not in without:
            name = item.metadata["group"]
            groups[name] = groups.get(name) or parser.add_argument_group(name)
            _add_flag(groups[name], item)


def _add_flag(group: Any, item: dataclasses.Field) -> None:
    meta, name = item.metadata, flag_name(item.name)
    text = meta["help"].replace("%", "%%")
    of_methods, on_bundled = (
        ", ".join(
            f"{method} {values[item.name]:g}"
            for method, values in defaults.items()
            if item.name in values
        )
        for defaults in (
            {method: parts[0].defaults for method, parts in METHODS.items()},
            {method: parts[0].on_bundled for method, parts in METHODS.items()},
        )
    )
    if of_methods or on_bundled:
        on_bundled = on_bundled and f"; on neo-mini: {on_bundled}"
        text += f" (default: {of_methods or item.default}{on_bundled})"
    elif item.name in ("task", "method"):
        text += " (required)" if item.name == "task" else " (required without --preset)"
    elif item.default is not None and meta["read"] is not bool:
        shown = ",".join(item.default) if isinstance(item.default, tuple) else item.default
        text += f" (default: {shown})"
    if meta["read"] is bool:
        group.add_argument(name, action="store_true", help=text + " (default: off)")
    elif meta["choices"]:
        group.add_argument(name, metavar="{" + ",".join(meta["choices"]) + "}", help=text)
    else:
        group.add_argument(name, metavar=item.name.split("_")[-1].upper(), help=text)


# ---- What the commands on a finished run share


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Adapt a reader of settings.py to argparse, which wants an error of its own kind."""

    def parse(text: str) -> Any:
        try:
            filled(text)
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_choice(parser: Any, name: str, choices: Sequence[str], help: str) -> None:
    """Add a flag that takes one of several words; argparse's own message changes with Python's
    version."""
    parser.add_argument(
        name, metavar="{" + ",".join(choices) + "}", type=argument(one_of(*choices)), help=help
    )


def add_run_flags(parser: argparse.ArgumentParser) -> Any:
    """Add the flags that take the place of what a run's own settings say; return their group."""
    group = parser.add_argument_group("otherwise as in RUN's run.json")
    add_choice(group, "--task", tuple(TASKS), "the task, where there is no run.json")
    group.add_argument(
        "--labels", type=argument(names), help="the labels in order, where there is no run.json"
    )
    group.add_argument(
        "--label-words",
        type=argument(names),
        help="what is said for each, where there is no run.json",
    )
    group.add_argument(
        "--model",
        type=argument(filled),
        help="the base model: neo-mini, a folder, or a hub id (owner/name@revision)",
    )
    add_choice(
        group, "--read", ("first", "last"), "the sub-token of a word at which its tag is read"
    )
    group.add_argument(
        "--echo",
        action="store_true",
        default=None,
        help="give a sentence twice, tag its second copy",
    )
    add_choice(
        group,
        "--tag-decoding",
        ("greedy", "viterbi"),
        "each word's best tag, or the best that BIO allows",
    )
    add_choice(group, "--precision", ("auto", "fp32", "bf16", "fp16"), "compute dtype")
    add_choice(group, "--device", ("auto", "cuda", "mps", "cpu"), "where to compute")
    group.add_argument(
        "--threads", metavar="N", type=argument(threads), help="CPU threads, or auto"
    )
    group.add_argument(
        "--batch-size", metavar="N", type=argument(whole(1)), help="examples in a batch"
    )
    return group


# what an adapter of peft's own does not say of itself
OF_AN_ADAPTER = ("model", "task", "labels", "label_words")


def of_an_adapter(flags: argparse.Namespace) -> dict[str, Any]:
    """Take what the flags say of an adapter that does not say it itself."""
    return {name: getattr(flags, name) for name in OF_AN_ADAPTER}


def changed(settings: Settings, flags: argparse.Namespace) -> Settings:
    """Take what the flags say in place of a run's own settings."""
    settable = {field.name for field in dataclasses.fields(Settings)} - {
        *OF_AN_ADAPTER,
        "json",
        "out",
    }
    given = {
        name: value for name, value in vars(flags).items() if name in settable and value is not None
    }
    for name in OF_TAGS & given.keys():
        require_tags(name, settings.task)
    return dataclasses.replace(settings, **given)
