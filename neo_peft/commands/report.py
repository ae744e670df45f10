"""Show finished runs as an HTML page: python -m neo_peft report runs/ner-lora

`reports/report.py` makes the page.
"""

from collections.abc import Sequence
from pathlib import Path

from neo_peft.commands.flags import OneLineParser, add_text
from neo_peft.reports.report import write_report
from neo_peft.runs.folder import newest_run


def main(argv: Sequence[str]) -> None:
    """Write the page, and print its path."""
    parser = OneLineParser(
        prog="python -m neo_peft report",
        description="Write an HTML page on finished runs: scores, learning curves, wrong "
        "predictions, and all settings.",
    )
    add_text(parser, "runs", "RUN", "run folders (default: the newest finished run)", nargs="*")
    add_text(parser, "--out", "FILE", "file of the page (default for one run: RUN/report.html)")
    flags = parser.parse_intermixed_args(argv)
    if len(flags.runs) > 1 and not flags.out:
        parser.error("several runs need --out FILE for the page that compares them")
    folders = [Path(folder) for folder in flags.runs] or [newest_run()]
    out = Path(flags.out) if flags.out else folders[0] / "report.html"
    write_report(folders, out)
    print(f"{out} shows {', '.join(map(str, folders))}; open it in a browser")
