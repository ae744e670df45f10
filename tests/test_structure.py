"""The structure of the package: which folder imports which, short files, and fast help."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import neo_peft

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neo_peft"
# The files that a new reader sees first. Do not add a file directly in neo_peft/ without need.
READING_PATH = (
    *("tasks", "packing", "gptneo", "lora", "prompt", "model"),
    *("methods", "encoding", "loop", "decoding", "viterbi", "metrics"),
)
TOP_LEVEL = {
    *READING_PATH,
    *("prefix", "settings", "defaults", "progress", "errors"),
    *("__init__", "__main__"),
}
# The top-level files that can use a method's name; the files in formats/ can too.
USE_METHOD_NAMES = {"lora", "prompt", "prefix", "methods", "defaults", "__init__"}
# Without "head", which is also a value of --readout.
METHOD_NAMES = {"lora", "prompt", "prefix", "full", "lora+prompt", "lora+prefix"}
TENSOR_NAMES = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "prompt_embeddings"}
# A folder can import the top-level files ("") and these folders. Of system/, the top level imports
# processes.py alone.
MAY_IMPORT = {
    "": "kernels long_texts system",
    "kernels": "",
    "long_texts": "",
    "system": "",
    "formats": "system kernels",
    "corpora": "system",
    "runs": "long_texts system formats corpora kernels",
    "reports": "system formats corpora runs",
    "studies": "system formats corpora runs reports",
    "look": "system formats corpora runs reports",
    "commands": "kernels system formats corpora runs reports studies look",
}


def imported_folders(path: Path) -> set[str]:
    """Return the folders that a file imports from, in functions too; "" is the top level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "neo_peft":
            names.add(node.module.split(".")[1] if "." in node.module else "")
    return {name if name in MAY_IMPORT else "" for name in names}


def test_a_folder_imports_only_the_allowed_folders():
    for path in PACKAGE.rglob("*.py"):
        folder = path.parent.name if path.parent != PACKAGE else ""
        if path.name != "__main__.py":
            allowed = {"", folder, *MAY_IMPORT[folder].split()}
            assert imported_folders(path) <= allowed, f"{path} imports {imported_folders(path)}"
    at_the_top = "".join(path.read_text() for path in PACKAGE.glob("[!_]*.py"))
    assert {*re.findall(r"neo_peft\.system.*", at_the_top)} == {"neo_peft.system import processes"}


def test_the_top_level_has_these_files_and_no_others():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP_LEVEL


def test_the_top_level_and_the_reading_path_stay_short():
    lines = {path.stem: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    assert sum(lines.values()) <= 3000
    assert sum(lines[name] for name in READING_PATH) <= 2100


def test_a_folders_docstring_lists_its_files():
    for folder in filter(None, MAY_IMPORT):
        text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
        listed = re.findall(r"^(\w+\.py)  +\S", text, re.MULTILINE)
        files = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
        assert set(listed) == files and len(listed) == len(files), folder


def test_the_loop_and_the_run_do_not_depend_on_names_of_tasks_and_methods():
    texts = [
        (ROOT / "neo_peft" / name).read_text()
        for name in (
            "loop.py",
            "runs/job.py",
            "runs/checkpoints.py",
            "runs/head_alone.py",
            "runs/before.py",
            "runs/summary.py",
            "runs/training.py",
            "runs/verdict.py",
        )
    ]
    constants = [
        node.value
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
    ]
    forbidden = {"ner", "sentiment", "similarity", "lora", "prompt", "full", "head", "lora+prompt"}
    assert not forbidden & {value for value in constants if isinstance(value, str)}


def test_method_names_are_used_only_in_the_methods_own_files():
    """Other files use the fields of `Method`."""
    for path in PACKAGE.rglob("*.py"):
        folder = path.parent.name if path.parent != PACKAGE else ""
        if folder == "formats" or (not folder and path.stem in USE_METHOD_NAMES):
            continue
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        parts = {part for text in constants for part in text.split(".")}
        names = (constants & METHOD_NAMES) | (parts & TENSOR_NAMES)
        assert not names, f"{path} has {names}"


def test_help_and_bad_flags_do_not_import_torch():
    for command in (
        ["train.py", "--help"],
        ["evaluate.py", "--help"],
        ["train.py", "--task", "nre"],
        ["train.py"],
        ["neo_peft/__main__.py"],
        ["neo_peft/__main__.py", "train"],
        ["neo_peft/__main__.py", "train", "--help"],
        ["neo_peft/__main__.py", "train", "--task", "nre"],
        ["neo_peft/__main__.py", "evaluate", "--help"],
        ["neo_peft/__main__.py", "evaluate", "--split"],
        ["neo_peft/__main__.py", "predict", "--help"],
        ["neo_peft/__main__.py", "predict", "x"],
        ["neo_peft/__main__.py", "export", "x"],
        ["neo_peft/__main__.py", "study", "--help"],
        ["neo_peft/__main__.py", "study", "--task", "ner", "--rank", "0"],
        ["neo_peft/__main__.py", "report", "--help"],
        ["neo_peft/__main__.py", "report", "x", "y"],
        ["neo_peft/__main__.py", "compare", "--help"],
        ["neo_peft/__main__.py", "compare", "x", "y"],
        ["neo_peft/__main__.py", "look", "--help"],
        ["neo_peft/__main__.py", "look", "x", "--rows", "0"],
        ["neo_peft/__main__.py", "sizes", "--jsn"],
        ["neo_peft/__main__.py", "sizes", "--help"],
    ):
        code = (
            "import sys, runpy; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
        )
        # In an empty folder: predict would load the newest run of the repository, if it has one.
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, "-c", code, str(ROOT / command[0]), *command[1:]], check=True, env=env
        )


def test_every_public_name_can_be_imported():
    for name in neo_peft.__all__:
        assert callable(getattr(neo_peft, name))


@pytest.mark.slow
def test_the_python_block_of_the_usage_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = re.search(
        r"```python\n(.*?)```", (ROOT / "docs" / "usage.md").read_text(), re.DOTALL
    ).group(1)
    assert len(block.strip().splitlines()) <= 12
    exec(compile(block, "usage.md", "exec"), {})
    assert "'B-" in capsys.readouterr().out


def test_the_readme_lists_the_reading_path_in_order_and_the_folders():
    text = (ROOT / "README.md").read_text()
    listed = re.findall(r"^    neo_peft/(\w+)\.py ", text, re.MULTILINE)
    assert listed == list(READING_PATH)
    for name in filter(None, MAY_IMPORT):
        assert f" {name}/ " in text, name
