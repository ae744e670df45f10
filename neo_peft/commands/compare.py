"""Compare two finished runs or studies: python -m neo_peft compare RUN RUN

`studies/compare.py` computes the comparison.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from neo_peft.commands.flags import OneLineParser, add_json, add_text
from neo_peft.studies.compare import as_json, as_text, compare


def main(argv: Sequence[str]) -> None:
    """Print the comparison of two runs or studies."""
    parser = OneLineParser(
        prog="python -m neo_peft compare",
        description="Compare two runs or studies by their predictions on the same rows: scores, "
        "their difference, and which is better.",
    )
    add_text(parser, "runs", "RUN", "the folder of a run or study", nargs=2)
    add_text(
        parser,
        "--split",
        "NAME",
        "validation, test or another split (default: test, or validation without a test split)",
    )
    add_json(parser)
    flags = parser.parse_intermixed_args(argv)
    comparison = compare(*map(Path, flags.runs), flags.split)
    print(json.dumps(as_json(comparison)) if flags.json else as_text(comparison))
