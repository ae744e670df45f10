"""Every lesson has the form of lessons/README.md, and prints what stands in it."""

import ast
import inspect
import os
import re
import subprocess
import sys

import check
import numpy as np
import pytest
import refresh
import torch

import neo_peft

LESSONS = refresh.lessons()
# Lessons that train for more than a few seconds, by number.
SLOW = {3, 4, 5, 6, 7, 8, 9, 10}


def number(path) -> int:
    return int(path.name[:2])


def names(path) -> str:
    return path.stem


every_lesson = pytest.mark.parametrize("path", LESSONS, ids=names)
MARKED = [
    pytest.param(path, marks=[pytest.mark.slow] if number(path) in SLOW else []) for path in LESSONS
]
EXERCISES = [
    pytest.param(exercise, id=f"{number(path)}-{name}")
    for path in LESSONS
    for name, exercise in check.exercises(number(path)).items()
]
every_exercise = pytest.mark.parametrize("exercise", EXERCISES)


def cells_of(path) -> list[str]:
    return refresh.split(path.read_text("utf-8"))


# ---- Lessons


@pytest.mark.parametrize("path", MARKED, ids=names)
def test_a_run_prints_the_outputs_that_stand_in_the_lesson(path):
    """In a process that has imported nothing before."""
    cells, (all_printed, _) = cells_of(path), refresh.run_in_new_process(path)
    for cell, printed in zip(cells, all_printed, strict=True):
        stated = refresh.output(cell) if refresh.is_code(cell) else ""
        assert refresh.agree(stated, printed), f"{cell}\nprints\n{printed}"


@pytest.mark.parametrize("start", ["script", "root", "lessons"])
def test_a_lesson_runs_as_a_script_and_cell_by_cell_in_two_folders(start):
    path = LESSONS[1]
    # Python adds the current folder to sys.path for `-`, as for a notebook's cells.
    arguments = [path] if start == "script" else ["-"]
    folder = path.parent if start == "lessons" else path.parents[1]
    text = None if start == "script" else path.read_text("utf-8")
    done = subprocess.run(
        [sys.executable, *arguments], input=text, cwd=folder, capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, check=True,
    )  # fmt: skip
    stated = [refresh.output(cell) for cell in cells_of(path)]
    assert refresh.agree("\n".join(filter(None, stated)), done.stdout)


@pytest.mark.slow
def test_lesson_3_goes_on_without_peft(monkeypatch):
    (path,) = (path for path in LESSONS if number(path) == 3)
    monkeypatch.setitem(sys.modules, "peft", None)  # so that importing it raises ImportError
    monkeypatch.setattr(neo_peft, "fit", lambda *given: 0)  # training takes most of the time
    printed = "\n".join(refresh.run(path))
    assert "peft is not installed" in printed and "peft: equal" not in printed
    assert f"together: {check.OPEN}" in printed  # in the last cell


@every_lesson
def test_each_number_with_decimals_in_the_prose_is_printed_by_the_lesson(path):
    assert refresh.unprinted(cells_of(path)) == []


@every_lesson
def test_a_lesson_has_the_form(path):
    text, cells = path.read_text("utf-8"), cells_of(path)
    assert "".join(cells) == text  # nothing stands in front of the first cell
    assert len(text.splitlines()) <= 150
    assert cells[0].startswith(f"# %% [markdown]\n# # Lesson {number(path)}: ")
    for needed in ("You will be able to", "et al. 20", "section"):
        assert needed in " ".join(cells[0].replace("\n#", "").split())
    assert '\nsys.path[:0] = [".", "..", "lessons"]' in cells[1]
    assert re.search(r"!\[|[│█▇#*] ?[│█▇#*.─]", text)  # a picture: drawn in characters, or linked
    for cell in cells:
        if not refresh.is_code(cell):
            assert all(line.startswith("#") or not line for line in cell.splitlines()), cell


@every_lesson
def test_a_lesson_has_two_or_three_open_exercises_with_solutions(path):
    code = "\n".join(cell for cell in cells_of(path) if refresh.is_code(cell))
    holes = [
        node.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef) and "..." in ast.unparse(node)
    ]
    found = check.exercises(number(path))
    assert holes == list(found) and 2 <= len(holes) <= 3
    outputs = "\n".join(map(refresh.output, cells_of(path)))
    for name in holes:
        assert f"{name}: {check.OPEN}" in outputs


@every_lesson
def test_the_solutions_have_the_parameters_of_the_holes(path):
    code = ast.parse("\n".join(filter(refresh.is_code, cells_of(path))))
    for name, exercise in check.exercises(number(path)).items():
        (hole,) = (n for n in ast.walk(code) if isinstance(n, ast.FunctionDef) and n.name == name)
        parameters = [argument.arg for argument in hole.args.args]
        assert parameters == list(inspect.signature(exercise.solution).parameters)


def test_the_readme_lists_the_lessons_in_order():
    readme = (refresh.FOLDER / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\d+)\. (.+)\]\((.+)\) \|", readme, re.MULTILINE)
    titles = [re.search(r"# # Lesson (\d+): (.+)", path.read_text("utf-8")) for path in LESSONS]
    assert rows == [(*title.groups(), path.name) for title, path in zip(titles, LESSONS)]


# ---- Exercises


@every_exercise
def test_the_solution_is_right(exercise):
    assert check.verdict(exercise, exercise.solution) == "right"


@every_exercise
def test_each_likely_mistake_is_named(exercise):
    assert exercise.mistakes
    for sentence, mistaken in exercise.mistakes.items():
        for form in mistaken if isinstance(mistaken, tuple) else (mistaken,):
            assert check.verdict(exercise, form) == sentence


@every_exercise
def test_an_open_hole_or_an_error_never_stops_the_lesson(exercise):
    def fails(*arguments):
        raise IndexError("no such token")

    assert check.verdict(exercise, lambda *arguments: ...) == check.OPEN
    assert check.verdict(exercise, lambda *arguments: 2 * ...) == check.OPEN
    assert check.verdict(exercise, fails) == "it raises IndexError: no such token"
    assert check.verdict(exercise, lambda *arguments: None).startswith("it returns None; right is")


def unequal(A, B):
    return 2 * A, B / 2


def test_two_corrections_are_right_in_either_order():
    exercise = check.exercises(3)["together"]
    assert check.verdict(exercise, lambda a, b: exercise.solution(b, a)) == "right"
    halved = check.verdict(exercise, lambda a, b: unequal(*exercise.solution(a, b)))
    assert halved == "B A is right, but all factors must be in B, so that A is unchanged"
    three = check.verdict(exercise, lambda a, b: (*exercise.solution(a, b), 1.0))
    assert three.startswith("it returns (tensor")
    other = check.verdict(exercise, lambda a, b: (a[0], a[1]))
    assert other.startswith("it returns A (2, 6) and B (4, 2) with (B A)[0, 0] =")


def test_another_wrong_answer_is_drawn_next_to_the_right_one():
    mask = torch.tensor([[True, False], [True, True]])
    assert check.drawing(~mask, mask).splitlines() == [
        "some values are wrong", "   yours   right", "   . #   # .", "   . .   # #"
    ]  # fmt: skip
    assert check.drawing(mask[0], mask).startswith("it returns a tensor of the shape (2,); right")
    matrix = torch.tensor([[1.0, -2.5]])
    assert check.drawing(matrix, 2 * matrix).splitlines()[-1].split() == [
        "1.000", "-2.500", "2.000", "-5.000"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "equal", "other"),
    [
        (0.5, 0.50001, 0.51), (7, torch.tensor(7), 8),
        (torch.ones(2), torch.ones(2) + 1e-6, [1, 1]),
        (torch.ones(2), torch.ones(2).long(), torch.ones(2, 1)), ("a", "a", "b"),
        (torch.ones(2), torch.ones(2), np.ones(2)), ((1, [2.0]), (1, (2,)), (1,)),
        (torch.tensor(True), True, 1), (None, None, 0), (torch.ones(1), torch.ones(1), "a"),
    ],
)  # fmt: skip
def test_answers_are_equal_in_value_and_shape(right, equal, other):
    assert check.same(equal, right) and not check.same(other, right)


def test_check_prints_a_line_with_the_exercises_name(capsys):
    def switch(W, old, new):
        return W

    check.check(2, switch)
    assert capsys.readouterr().out.startswith("switch: some values are wrong\n   yours")


# ---- refresh.py

CELLS = """# %% [markdown]
# In section 4.1 it is 0.25.

# %%
x = 1 / 4
print(x)
# > 0.5
# >
# > old

# %%
for _ in range(2):
    print(f"[ {x:.3f}]\\n")


# %%
x = 3
"""


def write(path, text=CELLS):
    path.write_text(text, "utf-8")
    return path


def test_a_file_is_the_sum_of_its_cells_and_gets_the_outputs_of_a_run(tmp_path):
    path = write(tmp_path / "01-x.py")
    before = sys.path.copy()
    printed = refresh.run(path)
    assert printed == ["", "0.25\n", "[ 0.250]\n\n[ 0.250]\n\n", ""] and sys.path == before
    cells = refresh.split(CELLS)
    assert "".join(cells) == CELLS and refresh.output(cells[1]) == "0.5\n\nold"
    made = "".join(map(refresh.with_output, cells, printed))
    assert made == CELLS.replace("# > 0.5\n# >\n# > old", "# > 0.25").replace(
        '\\n")\n', '\\n")\n# > [ 0.250]\n# >\n# > [ 0.250]\n# >\n'
    )
    assert "".join(map(refresh.with_output, refresh.split(made), printed)) == made


def test_the_command_rewrites_lessons_and_names_numbers_that_are_not_printed(
    tmp_path, monkeypatch, capsys
):
    first, second = (write(tmp_path / name, CELLS) for name in ("01-x.py", "02-y.py"))
    write(tmp_path / "whole.py", "1 / 0")  # no lesson
    monkeypatch.setattr(refresh, "FOLDER", tmp_path)
    for expected in ("rewritten", "the same"):
        monkeypatch.setattr(sys, "argv", ["refresh.py", "2"])
        refresh.main()
        assert re.match(rf"02-y.py: {expected}, \d+\.\d CPU seconds", capsys.readouterr().out)
    assert "# > 0.25\n" in second.read_text("utf-8") and first.read_text("utf-8") == CELLS
    write(second, CELLS.replace("it is 0.25", "it is 0.75"))
    refresh.main()
    assert "the text has 0.75, which no output has" in capsys.readouterr().out


def test_an_error_in_a_cell_names_the_line_of_the_file(tmp_path):
    path = write(tmp_path / "01-x.py", CELLS + "\n# %%\n\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        refresh.run(path)
    assert caught.traceback[-1].lineno + 1 == path.read_text().splitlines().index("1 / 0") + 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 2.413", "loss  2.412"), ("[-0.000, 1]", "[ 0.001, 1]"), ("1.20e-05", "1.21e-05"),
        ("1.00e-05", "9.99e-06"), ("a\nb", "a b"), ("2,048 tokens", "2,048 tokens"),
    ],
)  # fmt: skip
def test_outputs_agree_to_one_in_the_last_digit(old, new):
    assert refresh.agree(old, new) and refresh.agree(new, old)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 2.414", "loss 2.412"), ("2.4", "2.41"), ("12 tokens", "13 tokens"), ("a", "b"),
        ("1.20e-05", "1.20e-06"), ("0.1", "0.1 0.1"), ("", "1"), ("nan", "0.1"), ("1 2", "12"),
    ],
)  # fmt: skip
def test_other_outputs_do_not_agree(old, new):
    assert not refresh.agree(old, new) and not refresh.agree(new, old)


def test_a_number_in_the_prose_that_no_cell_prints_is_found():
    assert refresh.unprinted(refresh.split(CELLS)) == ["0.25"]
    right = CELLS.replace("# > 0.5", "# > 0.25")
    assert refresh.unprinted(refresh.split(right)) == []


def test_a_notebook_has_the_cells_and_outputs_of_a_lesson():
    pytest.importorskip("jupytext", reason="jupytext is not installed; notebooks are optional")
    import nbformat

    made = nbformat.reads(refresh.notebook(CELLS), as_version=4)
    nbformat.validate(made)
    kinds = [cell.cell_type for cell in made.cells]
    assert kinds == ["markdown", "code", "code", "code"]
    assert made.cells[0].source == "In section 4.1 it is 0.25."
    assert made.cells[1].source == "x = 1 / 4\nprint(x)"
    assert [output.text for output in made.cells[1].outputs] == ["0.5\n\nold"]
    assert not made.cells[3].outputs
