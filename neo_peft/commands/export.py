"""Write a finished run for other programs: python -m neo_peft export runs/ner-lora DIR

DIR gets an adapter for peft, or with --merge a whole model, which transformers loads without peft.
Its README.md shows how to load the model and what its predictions mean. `runs/export.py` writes the
files.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from neo_peft.commands.flags import (
    ADAPTER_FLAGS,
    OneLineParser,
    add_run_flags,
    add_text,
    settings_of_run,
)
from neo_peft.runs.folder import newest_run
from neo_peft.system.files import new_folder, write_folder


def main(argv: Sequence[str]) -> None:
    """Write the folder, and print which library loads it."""
    parser = OneLineParser(
        prog="python -m neo_peft export",
        description="Write a finished run as a folder for peft, or for transformers without peft.",
    )
    add_text(parser, "run", "RUN", "a run's folder (default: the newest finished one)", nargs="?")
    add_text(parser, "folder", "DIR", "a new or empty folder to write to")
    parser.add_argument(
        "--merge", action="store_true", help="write a whole model, for transformers without peft"
    )
    add_run_flags(parser, ADAPTER_FLAGS)
    flags = parser.parse_intermixed_args(argv)
    folder = Path(flags.folder)
    new_folder(folder)  # so that a bad folder is refused before the base is loaded
    run = Path(flags.run) if flags.run else newest_run(flags.task)
    settings = settings_of_run(run, flags)
    from neo_peft.runs import export  # after the flags: torch takes seconds to import
    from neo_peft.runs.loading import load

    export.check_exportable(run, settings, flags.merge)
    # Always fp32: LoRA merged in half precision would give a different model.
    tuned = load(run, dataclasses.replace(settings, precision="fp32", device="cpu"))
    for note in (*tuned.notes, export.quantized_note(tuned, flags.merge)):
        if note:
            print(f"note    {note}", file=sys.stderr)
    write = export.write_model if flags.merge else export.write_adapter
    write_folder(folder, lambda temporary: write(temporary, tuned, run))
    print(
        f"{folder} has {run} for {'transformers' if flags.merge else 'peft'}; its README.md shows "
        "how to load it"
    )
