"""Run lessons and write what they print under their cells.

    python lessons/refresh.py                   all lessons
    python lessons/refresh.py 2                 lesson 2
    python lessons/refresh.py --notebooks       .ipynb files too; needs `pip install jupytext`

A lesson is plain Python in cells. A cell starts with `# %% [markdown]` or `# %%` and ends at the
next one. Under the code of a cell stands what it prints, each line behind `# > `.
"""

import argparse
import contextlib
import io
import itertools
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?!\.?\d)")
SECTIONS = re.compile(r"[Ss]ections? \d[\d.]*(?:(?:,| and) \d[\d.]*)*")  # a paper's, no results


def lessons() -> list[Path]:
    return sorted(FOLDER.glob("[0-9][0-9]-*.py"))


# ---- A file and its cells
def split(text: str) -> list[str]:
    """Return the cells of a lesson; joined they are the text again."""
    return re.split(r"^(?=# %%)", text, flags=re.MULTILINE)[1:]  # nothing stands before the first


def is_code(cell: str) -> bool:
    return not cell.startswith("# %% [markdown]")


def source(cell: str) -> str:
    """Return a cell without its output."""
    return re.sub(r"^# >.*\n?", "", cell, flags=re.MULTILINE)


def output(cell: str) -> str:
    """Return the output that stands in a cell."""
    return "\n".join(re.findall(r"^# > ?(.*)", cell, flags=re.MULTILINE))


def with_output(cell: str, printed: str) -> str:
    """Return a cell with this output in place of its old one."""
    code = source(cell)
    printed = "".join(f"# > {line}".rstrip() + "\n" for line in printed.splitlines())
    return code.rstrip() + "\n" + printed + code[len(code.rstrip()) + 1 :]


# ---- Running
def run(path: Path) -> list[str]:
    """Run a lesson's cells in order, on one thread, and return what each one prints."""
    import torch

    torch.set_num_threads(1)
    torch.set_printoptions(profile="default")  # whatever the last lesson has set
    cells = split(path.read_text("utf-8"))
    places = itertools.accumulate((cell.count("\n") for cell in cells), initial=0)
    names, printed, before = {"__name__": path.stem}, [], sys.path.copy()
    try:
        for cell, place in zip(cells, places):
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                if is_code(cell):  # empty lines in front: errors name the file's lines
                    exec(compile("\n" * place + cell, path, "exec"), names)
            printed.append(stream.getvalue())
    finally:
        sys.path[:] = before
    return printed


def run_in_new_process(path: Path) -> tuple[list[str], float]:
    """Return what `run` returns, and its CPU seconds. The process has imported nothing before."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned) as pool:
        return pool.submit(timed_run, path).result()


def timed_run(path: Path) -> tuple[list[str], float]:
    printed = run(path)
    return printed, time.process_time()


def agree(old: str, new: str) -> bool:
    """Return whether outputs are equal: floats to one in their last printed digit, the rest
    exactly, without regard to spaces."""
    olds, news = NUMBER.findall(old), NUMBER.findall(new)
    words = [["".join(part.split()) for part in NUMBER.split(text)] for text in (old, new)]
    return words[0] == words[1] and all(map(close, olds, news))


def close(old: str, new: str) -> bool:
    digits = [len(re.sub(r"e.*", "", number).partition(".")[2]) for number in (old, new)]
    if digits[0] != digits[1] or not digits[0]:
        return old == new
    exponent = max(int(number.partition("e")[2] or 0) for number in (old, new))
    return abs(float(old) - float(new)) < 1.5 * 10.0 ** (exponent - digits[0])


# ---- The prose
def prose(cells: list[str]) -> str:
    return "\n".join(cell for cell in cells if not is_code(cell))


def unprinted(cells: list[str]) -> list[str]:
    """Return the numbers with decimals that stand in the prose and in no output."""
    printed = set(DECIMAL.findall("\n".join(output(cell) for cell in cells if is_code(cell))))
    stated = DECIMAL.findall(SECTIONS.sub("", prose(cells)))
    return [number for number in stated if number not in printed]


# ---- The command
def notebook(text: str) -> str:
    """Return a lesson as the text of a Jupyter notebook, with its outputs."""
    import jupytext
    from nbformat.v4 import new_output

    cells = split(text)
    made = jupytext.reads("".join(map(source, cells)), fmt="py:percent")
    for cell, theirs in zip(cells, made.cells, strict=True):
        if is_code(cell) and output(cell):
            theirs.outputs = [new_output("stream", text=output(cell))]
    return jupytext.writes(made, fmt="ipynb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lesson", type=int, nargs="*", help="numbers of lessons; all if none")
    parser.add_argument("--notebooks", action="store_true", help="write .ipynb files too")
    flags = parser.parse_args()
    for path in lessons():
        if flags.lesson and int(path.name[:2]) not in flags.lesson:
            continue
        old = path.read_text("utf-8")
        all_printed, seconds = run_in_new_process(path)
        cells = [
            with_output(cell, printed) if is_code(cell) else cell
            for cell, printed in zip(split(old), all_printed, strict=True)
        ]
        new = "".join(cells)
        path.write_text(new, "utf-8")
        state = "the same" if new == old else "rewritten"
        print(f"{path.name}: {state}, {seconds:.1f} CPU seconds")
        for number in unprinted(cells):
            print(f"    the text has {number}, which no output has: change the text")
        if flags.notebooks:
            path.with_suffix(".ipynb").write_text(notebook(new), "utf-8")


if __name__ == "__main__":
    main()
