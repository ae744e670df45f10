"""Look inside a finished run's adapter: python -m neo_peft look runs/ner-lora

`look/look.py` computes what is shown, `look/page.py` writes the page.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from neo_peft.commands.flags import (
    OneLineParser,
    add_json,
    add_run_flags,
    add_text,
    argument,
    settings_of_run,
)
from neo_peft.commands.loading_line import LoadingLine, run_with_base
from neo_peft.corpora.new_text import parse_example
from neo_peft.errors import InputError
from neo_peft.runs.folder import newest_run
from neo_peft.settings import Settings, task_of, whole
from neo_peft.system.bars import show_progress


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = OneLineParser(
        prog="python -m neo_peft look",
        description="Look inside a finished run: what its score consists of, and what its adapter "
        "has learned. Writes an HTML page.",
    )
    add_text(
        parser, "run", "RUN", "a run folder (default: the newest finished one in runs/)", nargs="?"
    )
    add_text(
        parser,
        "--against",
        "RUN",
        "compare the directions of the weight changes with those of these runs",
        nargs="+",
        default=[],
    )
    add_text(
        parser,
        "--text",
        "TEXT",
        "show this text layer by layer, in the form of predict's lines (default: a row of the "
        "split)",
    )
    parser.add_argument(
        "--rows",
        metavar="N",
        type=argument(whole(1)),
        help="score N evenly spaced rows of test, or of validation without a test split (default: "
        "all on neo-mini, unless it takes long)",
    )
    add_text(parser, "--out", "FILE", "file of the page (default: RUN/look.html)")
    add_json(parser)
    add_run_flags(parser, ("model", "device", "threads", "batch_size"))
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    """Write the page, and print its tables."""
    flags = parse_flags(argv)
    folder = Path(flags.run) if flags.run else newest_run()
    out = Path(flags.out) if flags.out else folder / "look.html"
    with LoadingLine(run_with_base(folder, flags.model)) as line:
        # imported after the flags are checked, since torch takes seconds to import
        from neo_peft.look.as_text import as_text
        from neo_peft.look.look import look
        from neo_peft.look.page import write_page
        from neo_peft.look.subject import read_record_of_run
        from neo_peft.reports.report import refuse_other_file

        refuse_other_file(out)
        read_record_of_run(folder)
        settings = settings_of_run(folder, flags)
        row = row_of_text(flags.text, settings) if flags.text else None
        against = [Path(run) for run in flags.against]
        progress = line.before(show_progress)
        result = look(folder, settings, flags.rows, row, against, progress)
    write_page(result, out)
    if flags.json:
        print(json.dumps(result))
    else:
        print(as_text(result))
    stream = sys.stderr if flags.json else sys.stdout
    print(f"{out} shows all of it; open it in a browser", file=stream)


def row_of_text(text: str, settings: Settings) -> dict:
    """Return the row of a text, which is read like a line of `predict`."""
    task = task_of(settings)
    if text.lstrip().startswith("{"):
        raise InputError(
            "--text: give plain text (for a pair, with a tab between the two), not JSON"
        )
    try:
        row = parse_example(text.encode(), task, False, settings.columns)
    except ValueError as error:
        raise InputError(f"--text: {error}") from None
    return {field: row[field] for field in task.fields if field in row}
