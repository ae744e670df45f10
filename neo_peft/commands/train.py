"""Tune a GPT-Neo for a task, and score it before and after: python -m neo_peft train --task ner
--method lora

In a checkout, python train.py does the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

from neo_peft.commands.flags import OneLineParser, add_settings
from neo_peft.commands.loading_line import LoadingLine
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import with_size
from neo_peft.runs.from_flags import resumed_settings, settings_from
from neo_peft.settings import Settings
from neo_peft.system import processes, signals

PROG = "python -m neo_peft train"
EXAMPLES = """\
Two examples:
  {prog} --task ner --method lora           LoRA on the bundled model and data: a minute or two
  {prog} --task sentiment --preset paper    the original study: GPT-Neo 1.3B, data from the hub
All flags: {prog} --help"""
DRY_RUN = "print what the run costs in memory, disk and time; train nothing and write nothing"


def parse_flags(argv: Sequence[str], prog: str = PROG) -> Settings:
    """Return the settings of a run from the flags, without `--dry-run`."""
    return parse_run(argv, prog)[0]


def parse_run(argv: Sequence[str], prog: str = PROG) -> tuple[Settings, bool]:
    """Return the settings of a run from the flags, and whether `--dry-run` is given.

    Without any flag, print two examples and exit with status 2.
    """
    if not argv:
        print(EXAMPLES.format(prog=prog), file=sys.stderr)
        raise SystemExit(2)
    parser = OneLineParser(
        prog=prog,
        description="Tune a GPT-Neo for a task, and score it before and after.",
        argument_default=argparse.SUPPRESS,
    )
    add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    given = vars(parser.parse_args(argv))
    dry_run = given.pop("dry_run", False)
    if "resume" not in given:
        return settings_from(given), dry_run
    if dry_run:
        raise InputError("--dry-run shows what a new run costs; leave out --resume")
    return resumed_settings(given), False


def main(argv: Sequence[str], prog: str = PROG) -> None:
    """Train, and print the progress and the scores. With `--dry-run`, print the cost only."""
    settings, only_plan = processes.on_first_process(lambda: parse_run(argv, prog))
    is_first = processes.process_index == 0
    with LoadingLine(with_size(settings.model) if is_first else None) as loading:
        # Imported here, since torch takes seconds: --help and errors in flags do not wait for it.
        with signals.delayed():  # an interrupted import can raise any error
            from neo_peft.runs.estimate import dry_run
            from neo_peft.runs.training import run
            from neo_peft.system.bars import show_progress

        print_line = partial(print, file=sys.stderr if settings.json else sys.stdout, flush=True)
        do = dry_run if only_plan else run
        result = do(settings, loading.before(print_line), loading.before(show_progress))
    if settings.json and is_first:
        print(json.dumps(result))
