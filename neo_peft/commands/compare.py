"""Compare two finished runs, or studies: python -m neo_peft compare RUN RUN. The work is done by
`analysis/compare.py`."""

import json
from collections.abc import Sequence
from pathlib import Path

from neo_peft.analysis.compare import as_json, as_text, compare
from neo_peft.commands.flags import OneLineParser, add_json, add_text


def main(argv: Sequence[str]) -> None:
    """Print the comparison of two runs or studies."""
    parser = OneLineParser(
        prog="python -m neo_peft compare",
        description="Compare what two runs, or two studies, answered on the same rows: scores and "
        "their difference.",
    )
    add_text(parser, "runs", "RUN", "a run's folder, or a study's", nargs=2)
    add_text(
        parser,
        "--split",
        "NAME",
        "validation, test or another that there is (default: test, else validation)",
    )
    add_json(parser)
    flags = parser.parse_intermixed_args(argv)
    found = compare(*map(Path, flags.runs), flags.split)
    print(json.dumps(as_json(found)) if flags.json else as_text(found))
