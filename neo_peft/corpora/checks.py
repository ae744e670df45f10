"""Checks of the labels and tags of your own data, which can be any text."""

import math
from collections.abc import Collection

from neo_peft.corpora import lines
from neo_peft.errors import InputError

NO_LABEL = "-100"  # what other programs write for a row or a word without a label
SEVERAL = (
    "several labels for a text are not supported: train a run for each label, with the labels yes "
    "and no, and give all of them to predict, as --run A --run B"
)
REGRESSION = (
    "numbers as targets (regression) are not supported: make a few classes of them, such as low "
    "and high"
)
MOST_DECIMALS = 10  # labels that are decimal numbers; more of them are targets of a regression


def refuse_regression(name: str, labels: Collection[str]) -> None:
    """Raise InputError if the labels of a file are many decimal numbers."""
    decimals = [label for label in labels if "." in label]
    if len(labels) > MOST_DECIMALS and decimals and all(map(_is_number, labels)):
        raise InputError(
            f"{name}: {len(labels)} different labels, all of them numbers, such as "
            f"{decimals[0][:40]}; {REGRESSION}, or name them as classes with --labels"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def own_label(value: object, column: str) -> str:
    """Return a label as text, without spaces around it. `column` is its column in messages."""
    if type(value) not in (str, int) or not lines.is_text(str(value)):
        reason = {list: f"; {SEVERAL}", float: f"; {REGRESSION}"}.get(type(value), "")
        raise ValueError(
            f"the label is {value!r:.40}; expected in {column!r} a text or a whole number{reason}"
        )
    label = str(value).strip()
    if label[0] == "[" and label[-1] == "]" and "," in label:
        raise ValueError(f"the label is {label!r:.40}; {SEVERAL}")
    if label == NO_LABEL:
        raise ValueError(
            f"the label is {NO_LABEL}, which marks a row without a label in other programs; "
            "leave the row out, or give it a label"
        )
    return label


def own_tags(values: list) -> list[str]:
    """Return tags without spaces around them. Their scheme is not checked."""
    for number, tag in enumerate(values, start=1):
        if str(tag).strip() == NO_LABEL:
            raise ValueError(
                f"tag {number} is {NO_LABEL}, which marks a word without a tag in other programs, "
                "such as the second token of a word; give one tag for each word"
            )
        if not lines.is_text(tag):
            raise ValueError(f"tag {number} is {tag!r:.40}; expected 'O', 'B-type' or 'I-type'")
    return [tag.strip() for tag in values]
