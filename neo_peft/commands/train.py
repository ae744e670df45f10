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


def parse_flags(argv: Sequence[str], prog: str = PROG) -> Settings:
    """Return the settings of a run from the flags.

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
    given = vars(parser.parse_args(argv))
    return resumed_settings(given) if "resume" in given else settings_from(given)


def main(argv: Sequence[str], prog: str = PROG) -> None:
    """Train, and print the progress and the scores."""
    settings = processes.on_first_process(lambda: parse_flags(argv, prog))
    is_first = processes.process_index == 0
    with LoadingLine(with_size(settings.model) if is_first else None) as loading:
        # Imported here, since torch takes seconds: --help and errors in flags do not wait for it.
        with signals.delayed():  # an interrupted import can raise any error
            from neo_peft.runs.training import run
            from neo_peft.system.bars import show_progress

        print_line = partial(print, file=sys.stderr if settings.json else sys.stdout, flush=True)
        summary = run(settings, loading.before(print_line), loading.before(show_progress))
    if settings.json and is_first:
        print(json.dumps(summary))
