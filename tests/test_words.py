"""Docstrings, comments and messages use the field's terms: a list of words that they avoid."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A regular expression for what is avoided, and what to write.
AVOIDED = {
    r"\b(say|says|said|saying|speaks?)\b": "predict, print, name or generate",
    r"\bheld\b(?![ -]*out)": "stored",
    r"\bled\b": "(the verb that is meant)",
    r"\bbare\b": "untuned",
    r"\bfloors?\b": "baseline",
    r"\bbeside\b": "compared with, next to, in addition to",
    r"\bupdates?\b": "step",
    r"\b(prompt|token|embedding)('s|s')? rows?\b": "embeddings, tokens",
    r"\b(is|are|be) read (at|by)\b|\bheads? reads?\b|\bread positions?\b": "target position",
}
EXCEPTIONS = {
    # file: the phrases in which a word of the list is right
    "neo_peft/formats/base.py": ["They are read at their first use"],  # tensors of a file
    "neo_peft/loop.py": ["update the state"],
    "benchmarks/peers.py": ["beside"],  # a field of the recorded results
}
FILES = sorted(
    [
        *ROOT.glob("*.py"),
        *ROOT.glob("neo_peft/**/*.py"),
        *ROOT.glob("scripts/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("lessons/**/*.py"),
        *ROOT.glob("docs/drawings/*.py"),
    ]
)


def prose(path: Path) -> list[tuple[int, str]]:
    """Return the comments and the strings of a file, on one line each, with their line numbers."""
    text = path.read_text("utf-8")
    comments = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# >")  # a model's words
    ]
    strings = [  # not by tokens: from Python 3.12 on an f-string is no STRING token
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [(line, " ".join(found.split())) for line, found in comments + strings]


def avoided_words(text: str) -> list[str]:
    """Return what is wrong in a text, a line for each word."""
    return [
        f"{found.group()!r}: write {better}"
        for pattern, better in AVOIDED.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_comment_or_message_uses_a_word_of_the_list(path):
    wrong = []
    for line, text in prose(path):
        for phrase in EXCEPTIONS.get(str(path.relative_to(ROOT)), []):
            text = text.replace(phrase, "")
        wrong += [f"{path.name}:{line}: {word}" for word in avoided_words(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "What the model says.",
        "weights held in fp16",
        "the bare base",
        "a floor of 0.5",
        "trained beside LoRA",
        "500 updates",
        "The prompt's rows train.",
        "where a tag is read at its word",
    ],
)
def test_each_kind_of_word_is_found(text):
    assert len(avoided_words(text)) == 1


def test_right_uses_are_not_found():
    assert not avoided_words(
        "rows of data are read from a file; held-out text; weights are updated"
    )


def test_every_exception_is_still_needed():
    for name, phrases in EXCEPTIONS.items():
        texts = " ".join(text for _, text in prose(ROOT / name))
        assert all(phrase in texts for phrase in phrases), name


def test_no_line_is_longer_than_100_columns():
    for path in [*FILES, *ROOT.glob("tests/**/*.py")]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            assert len(line) <= 100, f"{path.relative_to(ROOT)}:{number}"


def undocumented_fields(path: Path) -> list[str]:
    """Return the fields of dataclasses and named tuples that have no comment and no line in the
    docstring."""
    lines, found = path.read_text("utf-8").splitlines(), []
    for node in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(node, ast.ClassDef):
            continue
        kinds = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
        doc = ast.get_docstring(node) or ""
        for field in node.body if "dataclass" in kinds or "NamedTuple" in kinds else ():
            if isinstance(field, ast.AnnAssign):
                near = (
                    lines[field.lineno - 2].strip().startswith("#")
                    or any(
                        "#" in line or "_flag(" in line  # a flag's help is its documentation
                        for line in lines[field.lineno - 1 : field.end_lineno]
                    )
                )
                named = re.search(rf"\b{field.target.id}\b[\w, `]*:|`{field.target.id}`", doc)
                if not near and not named:
                    found.append(f"{path.name}: {node.name}.{field.target.id}")
    return found


def test_every_field_of_a_dataclass_is_documented():
    assert not [field for path in FILES for field in undocumented_fields(path)]


def test_an_undocumented_field_is_found(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("class A(NamedTuple):\n    '''`c` is documented.'''\n    b: int\n    c: int\n")
    assert undocumented_fields(path) == ["file.py: A.b"]
