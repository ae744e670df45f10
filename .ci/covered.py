"""Compare the lines of neo_peft that the quick tests run with those that all tests run.

python .ci/covered.py QUICK SLOW: two data files of coverage. The exit status is 1 below 95 %. A
process that is killed writes no data, so lines that run only there are not counted.
"""

import os
import sys

from coverage import CoverageData


def lines(path: str) -> set[tuple[str, int]]:
    """Return the lines in a data file: (source file, number)."""
    data = CoverageData(path)
    data.read()
    files = filter(
        os.path.isfile, data.measured_files()
    )  # a test runs code from a page of docs/ too
    return {(file, line) for file in files for line in data.lines(file)}


quick, slow = map(lines, sys.argv[1:])
share = len(quick) / len(quick | slow)
print(f"quick tests: {len(quick):,} of the {len(quick | slow):,} lines of all tests ({share:.1%})")
sys.exit(share < 0.95)
