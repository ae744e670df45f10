"""Hand a finished run to other programs: python -m neo_peft export runs/ner-lora DIR

DIR becomes a folder of peft's, or with --merge a whole model, which transformers loads without
peft. A README.md in it shows how, and says how the model is read. The work is done by
`runs/export.py`.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from neo_peft.commands.flags import (
    OF_AN_ADAPTER,
    OneLineParser,
    add_run_flags,
    add_text,
    settings_of_run,
)
from neo_peft.runs.folder import newest_run
from neo_peft.system.files import new_folder, write_folder


def main(argv: Sequence[str]) -> None:
    """Write the folder, and print what it is for."""
    parser = OneLineParser(
        prog="python -m neo_peft export",
        description="Write a finished run as a folder that peft loads, or transformers alone.",
    )
    add_text(parser, "run", "RUN", "a run's folder (default: the newest finished one)", nargs="?")
    add_text(parser, "folder", "DIR", "the folder to write, new or empty")
    parser.add_argument(
        "--merge", action="store_true", help="write a whole model, for transformers without peft"
    )
    add_run_flags(parser, OF_AN_ADAPTER)
    flags = parser.parse_intermixed_args(argv)
    folder = Path(flags.folder)
    new_folder(folder)  # refused before a base is loaded
    run = Path(flags.run) if flags.run else newest_run(flags.task)
    settings = settings_of_run(run, flags)
    from neo_peft.runs import export  # after the flags: torch takes seconds to import
    from neo_peft.runs.loading import load

    export.check_exportable(run, settings, flags.merge)
    # Whatever the run computed in: a sum in half precision would be another model.
    tuned = load(run, dataclasses.replace(settings, precision="fp32", device="cpu"))
    for note in tuned.notes:
        print(f"note    {note}", file=sys.stderr)
    write = export.write_model if flags.merge else export.write_adapter
    write_folder(folder, lambda temporary: write(temporary, tuned))
    print(
        f"{folder} holds {run} for {'transformers' if flags.merge else 'peft'}; its README.md "
        "shows how to load it"
    )
