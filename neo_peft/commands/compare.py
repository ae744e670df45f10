"""Compare two finished runs, or studies: python -m neo_peft compare RUN RUN. The work is done by
`analysis/compare.py`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from neo_peft.analysis.compare import as_json, as_text, compare
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.settings import filled


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the two folders, and what is to be compared and printed."""
    parser = OneLineParser(
        prog="python -m neo_peft compare",
        allow_abbrev=False,
        description="Compare what two runs, or two studies, answered on the same rows: scores and "
        "their difference.",
    )
    parser.add_argument(
        "runs", nargs=2, metavar="RUN", type=argument(filled), help="a run's folder, or a study's"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        type=argument(filled),
        help="validation, test or another that there is (default: test, else validation)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the comparison of two runs or studies."""
    flags = parse_flags(argv)
    found = compare(*map(Path, flags.runs), flags.split)
    print(json.dumps(as_json(found)) if flags.json else as_text(found))
