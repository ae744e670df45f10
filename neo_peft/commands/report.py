"""Show finished runs as a page: python -m neo_peft report runs/ner-lora. The page is made by
`analysis/report.py`."""

from collections.abc import Sequence
from pathlib import Path

from neo_peft.analysis.report import write_report
from neo_peft.commands.flags import OneLineParser, add_text
from neo_peft.runs.folder import newest_run


def main(argv: Sequence[str]) -> None:
    """Write the page, and print where it is."""
    parser = OneLineParser(
        prog="python -m neo_peft report",
        description="Write a page on finished runs: scores, curves, errors to browse, and the "
        "recipe.",
    )
    add_text(parser, "runs", "RUN", "folders (default: the newest finished run)", nargs="*")
    add_text(parser, "--out", "FILE", "the page (default: RUN/report.html, of one run)")
    flags = parser.parse_intermixed_args(argv)
    if len(flags.runs) > 1 and not flags.out:
        parser.error("several runs need --out FILE, the page that compares them")
    folders = [Path(folder) for folder in flags.runs] or [newest_run()]
    out = Path(flags.out) if flags.out else folders[0] / "report.html"
    write_report(folders, out)
    print(f"{out} shows {', '.join(map(str, folders))}; open it in a browser")
