"""Tune a GPT-Neo for a task, and score it before and after: python train.py --task ner --method
lora"""

import json
import sys
from collections.abc import Sequence
from functools import partial

from neo_peft import processes
from neo_peft.commands.flags import parse_train_flags
from neo_peft.system import signals as stopping
from neo_peft.system import torchrun


def main(argv: Sequence[str] | None = None) -> None:
    settings = processes.on_first_process(
        lambda: parse_train_flags(sys.argv[1:] if argv is None else argv)
    )
    # torch takes seconds to import: --help and a bad flag answer without it.
    with stopping.held():  # an import that is interrupted may say anything
        from neo_peft.progress import show_progress
        from neo_peft.runs.training import run

    summary = run(
        settings,
        partial(print, file=sys.stderr if settings.json else sys.stdout, flush=True),
        show_progress,
    )
    if settings.json and processes.process_index == 0:
        print(json.dumps(summary))


if __name__ == "__main__":
    stopping.listen()
    sys.exit(torchrun.run_together(main))
