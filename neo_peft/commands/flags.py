"""The flags that several commands share: one for each setting of a run, and those that replace the
settings of a finished run.

No torch here, so that `--help` and errors in flags are printed at once.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from neo_peft.errors import InputError
from neo_peft.methods import METHODS
from neo_peft.settings import Settings, filled, flag_name, no_effect

FIELDS = {item.name: item for item in dataclasses.fields(Settings)}
REQUIRED = {"task": " (required)", "method": " (required without --preset or --adapter)"}
# Settings of a finished run that other commands have flags for. The first group is needed for an
# adapter made by peft: it has no run.json, so its task and model must be named.
ADAPTER_FLAGS = ("task", "labels", "label_words", "model")
RUN_FLAGS = (
    *("tag_subtoken", "echo", "tag_decoding", "stride", "truncate"),
    *("precision", "quantize", "device", "threads", "batch_size"),
)
DATA_FLAGS = ("data", "columns", "protocol", "eval_limit")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. Flags cannot be abbreviated."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):
        if re.search("--local[-_]rank", message):
            message = (
                "--local-rank is set by python -m torch.distributed.launch; start with torchrun "
                "in place of it, which needs no such flag"
            )
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Adapt a reader of settings.py to argparse: its InputError becomes argparse's error type."""

    def parse(text: str) -> Any:
        try:
            filled(text)
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_text(
    parser: argparse._ActionsContainer, name: str, metavar: str, help: str, **more: Any
) -> None:
    """Add an argument whose value is a name or a path. An empty value is an error."""
    parser.add_argument(name, metavar=metavar, type=argument(filled), help=help, **more)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )


# ---- Flags of settings


def add_settings(
    parser: argparse.ArgumentParser,
    without: Iterable[str] = (),
    defaults: dict[str, str] | None = None,
) -> None:
    """Add a flag for each setting of a run, except those in `without`. `defaults` are the texts on
    defaults that differ from train.py's, by name.

    The values stay text; `make_settings` checks and converts them.
    """
    groups = {}
    for item in FIELDS.values():
        if item.name not in without:
            title = item.metadata["group"]
            groups[title] = groups.get(title) or parser.add_argument_group(title)
            default = (defaults or {}).get(item.name) or _default(item)
            _add_flag(groups[title], item, item.metadata["help"] + default)


def add_run_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add flags that replace settings of a finished run. Their values are checked at once."""
    group = parser.add_argument_group(
        "settings",
        "default: as in RUN's run.json; a peft adapter has no run.json, so it needs --task "
        "and --model",
    )
    for item in map(FIELDS.get, names):
        text = item.metadata["help"].partition(" (default")[0]
        _add_flag(group, item, text, argument(item.metadata["parse"]))


def _add_flag(
    group: argparse._ArgumentGroup, item: dataclasses.Field, text: str, read: Callable | None = None
) -> None:
    name, text, choices = flag_name(item.name), text.replace("%", "%%"), item.metadata["choices"]
    if item.metadata["parse"] is bool:
        group.add_argument(
            name, dest=item.name, action="store_true", default=group.argument_default, help=text
        )
    else:
        metavar = "N" if item.type in (int, int | None) else item.name.split("_")[-1].upper()
        words = "{" + ",".join(choices) + "}" if 0 < len(choices) < 10 else metavar
        group.add_argument(name, dest=item.name, metavar=words, type=read, help=text)


def _default(item: dataclasses.Field) -> str:
    """Return the part of a flag's help that names its default."""
    if item.name in REQUIRED:
        return REQUIRED[item.name]
    if item.metadata["parse"] is bool:
        return " (default: off)"
    default = ",".join(item.default) if isinstance(item.default, tuple) else item.default
    shown = _method_defaults(item.name, "defaults") or default
    if on_bundled := _method_defaults(item.name, "on_bundled"):
        shown = f"{shown}; on neo-mini {on_bundled}"
    return "" if shown is None else f" (default: {shown})"


def _method_defaults(name: str, where: str) -> str:
    """Return the defaults of a setting for each method, such as `0.001 for lora, 0.03 for prompt`.

    `where` is "defaults" or "on_bundled", a field of Method.
    """
    defaults = {method: getattr(parts[0], where) for method, parts in METHODS.items()}
    return ", ".join(
        f"{values[name]:g} for {method}" for method, values in defaults.items() if name in values
    )


# ---- From flags to the settings of a finished run


def given_settings(flags: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return the settings among `names` that are given as flags."""
    return {
        name: value for name, value in vars(flags).items() if name in names and value is not None
    }


def with_flags(settings: Settings, flags: argparse.Namespace) -> Settings:
    """Return settings in which the given flags replace the recorded values. With `--stride` alone
    a run that cut long texts reads them whole."""
    replaced = given_settings(flags, RUN_FLAGS + DATA_FLAGS)
    if "stride" in replaced:
        replaced.setdefault("truncate", None)
    values = dataclasses.asdict(settings) | replaced
    for name in replaced:
        if reason := no_effect(name, values):
            raise InputError(f"{flag_name(name)} {reason}")
    return dataclasses.replace(settings, **replaced)


def settings_of_run(folder: Path, flags: argparse.Namespace) -> Settings:
    """Return the settings of a finished run or of an adapter made by peft, changed by the flags."""
    from neo_peft.runs.loading import settings_in  # after the flags: torch takes seconds to import

    return with_flags(settings_in(folder, **given_settings(flags, ADAPTER_FLAGS)), flags)
