"""The layout that the README promises: imports go strictly to lower levels, and slow ones wait."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import neo_peft

ROOT = Path(__file__).parents[1]
LEVELS = (
    ("errors", "defaults", "rows", "elementwise", "metrics", "progress", "viterbi", "markup"),
    ("tasks", "files", "hub", "processes", "gptneo", "lora", "prompt", "mistakes"),
    (
        "hardware",
        "stopping",
        "settings",
        "base",
        "readers",
        "tables",
        "peft_config",
        "uncertainty",
        "floors",
    ),
    ("model", "own_rows", "runs", "plots"),
    ("data", "flags", "sources", "predictions"),
    ("adapter", "decoding", "loop", "plan", "browse"),
    ("loading", "checkpoints"),
    ("adapter_set", "job", "log"),
    ("summary",),
    ("training", "study_results", "study_page"),
    ("study",),
    (
        "train",
        "evaluate",
        *(
            f"commands.{name}"
            for name in ("predict", "export", "study", "report", "compare", "sizes")
        ),
    ),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}


def imported(path: Path) -> set[str]:
    """Name the project's modules that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "neo_peft":
            names |= {alias.name for alias in node.names}
        elif (
            isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("neo_peft.")
        ):
            names.add(node.module.removeprefix("neo_peft."))
    return names


def test_imports_go_strictly_to_lower_levels():
    files = {path.stem: path for path in (ROOT / "train.py", ROOT / "evaluate.py")}
    for path in (ROOT / "neo_peft").rglob("*.py"):
        if path.stem not in ("__init__", "__main__"):
            files[".".join(path.relative_to(ROOT / "neo_peft").with_suffix("").parts)] = path
    found = {name: imported(path) for name, path in files.items()}
    assert found.keys() == LEVEL.keys()
    for module, others in found.items():
        for other in others:
            assert LEVEL[other] < LEVEL[module], f"{module} imports {other}"


def test_the_loop_and_the_run_name_no_task_and_no_method():
    texts = [
        (ROOT / "neo_peft" / name).read_text()
        for name in ("loop.py", "job.py", "checkpoints.py", "summary.py", "training.py")
    ]
    names = [
        node.value
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
    ]
    forbidden = {"ner", "sentiment", "similarity", "lora", "prompt", "full", "head", "lora+prompt"}
    assert not forbidden & {name for name in names if isinstance(name, str)}


def test_help_and_a_bad_flag_answer_without_torch():
    for command in (
        ["train.py", "--help"],
        ["evaluate.py", "--help"],
        ["train.py", "--task", "nre"],
        ["train.py"],
        ["neo_peft/__main__.py"],
        ["neo_peft/__main__.py", "predict", "--help"],
        ["neo_peft/__main__.py", "predict", "x"],
        ["neo_peft/__main__.py", "export", "x"],
        ["neo_peft/__main__.py", "study", "--help"],
        ["neo_peft/__main__.py", "study", "--task", "ner", "--rank", "0"],
        ["neo_peft/__main__.py", "report", "--help"],
        ["neo_peft/__main__.py", "report", "x", "y"],
        ["neo_peft/__main__.py", "compare", "--help"],
        ["neo_peft/__main__.py", "compare", "x", "y"],
        ["neo_peft/__main__.py", "sizes", "--jsn"],
        ["neo_peft/__main__.py", "sizes", "--help"],
    ):
        code = (
            "import sys, runpy; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
        )
        # In an empty folder: the checkout's own may hold runs, of which predict would load the
        # newest.
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, "-c", code, str(ROOT / command[0]), *command[1:]], check=True, env=env
        )


def test_every_public_name_is_there():
    for name in neo_peft.__all__:
        assert callable(getattr(neo_peft, name))


@pytest.mark.slow
def test_the_readmes_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len(block.strip().splitlines()) <= 12
    exec(compile(block, "README.md", "exec"), {})
    assert "'B-" in capsys.readouterr().out


def test_the_readmes_tree_names_every_file():
    text = (ROOT / "README.md").read_text()
    for path in [*(ROOT / "neo_peft").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        if path.stem != "__init__":
            assert path.name in text, path.name
