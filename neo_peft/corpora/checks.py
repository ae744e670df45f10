"""Checks of the labels and tags of your own data, which can be any text."""

from neo_peft.corpora import lines

NO_LABEL = "-100"  # what other programs write for a row or a word without a label


def own_label(value: object, column: str) -> str:
    """Return a label as text, without spaces around it. `column` is its column in messages."""
    if type(value) not in (str, int) or not lines.is_text(str(value)):
        raise ValueError(
            f"the label is {value!r:.40}; expected in {column!r} a text or a whole number"
        )
    label = str(value).strip()
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
