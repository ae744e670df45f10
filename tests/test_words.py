"""Docstrings, comments and messages use the field's terms: a short list of words that they avoid."""

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is banned, and what to write. Names in code are free; so are the titles of papers.
BANNED = {
    r"\b(say|says|said|saying|speaks?)\b": "predict, print, name or generate",
    r"\bheld\b(?! out)": "stored",
    r"\bled\b": "name the noun",
    r"\bbare\b": "untuned",
    r"\bfloors?\b": "baseline",
    r"\bbeside\b": "compared with, next to or in addition to",
    r"\bupdates?\b": "step",
    r"\b(prompt|token|embedding)'?s? rows?\b|\brows of (the|a) prompt\b|\brows P\b": "row is for data",
    r"\b(is|are|be) read (at|by|there)\b|\bheads? reads?\b|\bread positions?\b": "target position",
    r"\bstands? in front\b": "is in front",
    r"\bgoes on\b|\bgo on\b|\bwent on\b": "continue or resume",
    r"\binstead of it\b|\bto the same bits\b(?<!resumed)": "plain words",
}
EXCEPTIONS = {
    # file: words that it may use, and why
    "tests": set(),
}


def sentences(path: Path) -> list[tuple[int, str]]:
    """Return the comments and the strings of a file, each with its line number."""
    text = path.read_text("utf-8")
    return [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in (tokenize.COMMENT, tokenize.STRING)
    ]
