"""Tune a GPT-Neo for a task, and score it before and after: python -m neo_peft train --task ner
--method lora, or python train.py in a checkout."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

from neo_peft import processes
from neo_peft.commands.flags import OneLineParser, add_settings
from neo_peft.runs.from_flags import resumed_settings, settings_from
from neo_peft.settings import Settings
from neo_peft.system import signals

PROG = "python -m neo_peft train"
USUAL_COMMANDS = """\
Two usual commands:
  {prog} --task ner --method lora           LoRA on the bundled model and sample: a minute
  {prog} --task sentiment --preset paper    the study's recipe, GPT-Neo 1.3B and hub data
All flags: {prog} --help"""


def parse_flags(argv: Sequence[str], prog: str = PROG) -> Settings:
    """Read the flags into the settings of a run. Without any, print the two usual commands and
    leave with status 2."""
    if not argv:
        print(USUAL_COMMANDS.format(prog=prog), file=sys.stderr)
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
    """Train, and print the run's progress and scores."""
    settings = processes.on_first_process(lambda: parse_flags(argv, prog))
    # torch takes seconds to import: --help and a bad flag answer without it.
    with signals.delayed():  # an import that is interrupted may say anything
        from neo_peft.progress import show_progress
        from neo_peft.runs.training import run

    summary = run(
        settings,
        partial(print, file=sys.stderr if settings.json else sys.stdout, flush=True),
        show_progress,
    )
    if settings.json and processes.process_index == 0:
        print(json.dumps(summary))
