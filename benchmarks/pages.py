"""Run the commands that the documentation shows, and put what they print behind them:

    python -m benchmarks.pages README.md docs/usage.md

A ```console block is one or more commands, each a line that starts with `$ `, with what they print
on standard output. Above a block `<!-- lines: REGEX -->` keeps only the lines in which the regular
expression finds something. All blocks run in order, in one fresh copy of the files that git has
staged, so that a command can use a run of an earlier one.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- lines: (?P<lines>.*) -->\n)?```console\n(?P<body>.*?)```", re.DOTALL)
PROMPT = "$ "


def commands(body: str) -> list[str]:
    """Return the commands of a block, each with its continued lines."""
    return re.findall(rf"^{re.escape(PROMPT)}((?:.*\\\n)*.*)$", body, re.MULTILINE)


def run(command: str, folder: Path) -> str:
    """Run a command with a shell in a folder. Return its standard output, without that path."""
    print(f"{PROMPT}{command}", flush=True)
    environment = os.environ | {"COLUMNS": "100", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 2):
        sys.exit(f"exit status {done.returncode}: {command}")
    return done.stdout.replace(f"{folder}/", "")


def renew(page: str, folder: Path) -> str:
    """Return a page with the output of its commands as they print it in a folder."""

    def block(found: re.Match) -> str:
        keep = re.compile(found["lines"] or "")
        parts = []
        for command in commands(found["body"]):
            lines = [line for line in run(command, folder).splitlines() if keep.search(line)]
            parts.append("\n".join([PROMPT + command, *map(str.rstrip, lines)]).rstrip())
        comment = f"<!-- lines: {found['lines']} -->\n" if found["lines"] else ""
        return f"{comment}```console\n" + "\n\n".join(parts) + "\n```"

    return BLOCK.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the documentation's commands again.")
    parser.add_argument("page", nargs="+", type=Path, help="a Markdown file, changed in place")
    pages = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        copy = ["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={folder}/"]
        subprocess.run(copy, check=True)
        for page in pages:
            page.write_text(renew(page.read_text("utf-8"), Path(folder)), "utf-8")


if __name__ == "__main__":
    main()
