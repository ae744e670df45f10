"""The README and the pages of docs/: the flags, files and links in them exist."""

import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import pages

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "README.zh.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"python (train\.py|evaluate\.py|-m neo_peft (\w+))([^\n`;|]*)")


@cache
def help_of(command: str) -> str:
    """Return the `--help` of a command."""
    texts = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(
            "sys.stdout", type("Out", (), {"write": lambda _, text: texts.append(text)})()
        )
        import_module(f"neo_peft.commands.{command}").main(["--help"])
    return "".join(texts)


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_a_command_of_a_page_exists(page):
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    for script, command, rest in COMMAND.findall(text):
        name = command or script.removesuffix(".py")
        if name == "COMMAND":
            continue
        for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest.partition("#")[0]):
            assert re.search(rf"{flag}\b", help_of(name)), f"{page}: {name} has no {flag}"


def test_the_readmes_are_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
    assert len((ROOT / "README.zh.md").read_text("utf-8").splitlines()) <= 80


def test_every_file_that_a_page_links_to_exists():
    for page in PAGES:
        path = ROOT / page
        text = pages.BLOCK.sub("", path.read_text("utf-8"))
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), f"{page} links to {link}"


def test_every_test_that_the_readme_names_exists():
    for name in re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def test_renewing_a_page_replaces_the_output_of_each_command(tmp_path):
    page = (
        "Before.\n\n```console\n$ echo one; echo two\nold\n\n$ cat n 2>&1 || true\n```\n\n"
        "<!-- lines: ^t -->\n```console\n$ printf 'two\\nsix\\n' \\\n    | cat > n; cat n\n```\n"
        "```bash\n$ untouched\n```\n"
    )
    first = pages.renew(page, tmp_path)
    assert first == (
        "Before.\n\n```console\n$ echo one; echo two\none\ntwo\n\n$ cat n 2>&1 || true\n"
        "cat: n: No such file or directory\n```\n\n"
        "<!-- lines: ^t -->\n```console\n$ printf 'two\\nsix\\n' \\\n    | cat > n; cat n\ntwo\n"
        "```\n```bash\n$ untouched\n```\n"
    )
    (tmp_path / "n").unlink()
    assert pages.renew(first, tmp_path) == first


def test_renewing_a_page_stops_at_a_command_that_fails(tmp_path):
    with pytest.raises(SystemExit, match="exit status 3: exit 3"):
        pages.renew("```console\n$ exit 3\n```", tmp_path)


def test_each_requirement_has_a_pin_and_the_same_bound_in_pyproject():
    """requirements.txt has lower bounds, to keep an installed torch. constraints.txt pins the
    versions that the tests ran with."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    bounds = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text().splitlines()
        bounds[name] = [line for line in lines if not line.startswith(("-r", "#"))]
        assert not any("==" in line for line in bounds[name])
    names = {re.split(r"[>=]", line)[0] for lines in bounds.values() for line in lines}
    assert names == pins.keys()
    project = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"([a-z-]+>=[\d.]+)"', project)) - {"setuptools>=77"}
    assert listed == {*bounds["requirements.txt"], *bounds["requirements-dev.txt"]}


def test_the_help_of_the_pages_command_describes_its_argument():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pages", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a Markdown file" in done.stdout
