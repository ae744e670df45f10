"""A user's own rows: labelled ones, JSON objects one a line, and new text without labels."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from neo_peft.corpora.readers import is_text, one_of, text_of
from neo_peft.tasks import Task, is_tag


def own_row(task: Task, line: str, labels: Collection | None) -> dict:
    """Parse a labelled row of the user's own, a JSON object; without `labels` any label will do."""
    row, name = json_example(line, task), task.fields[-1]
    if name not in row:
        raise ValueError(f"{line[:40]!r}; the field {name!r} is missing")
    if task.tags_words:
        value = row[name]
        if not isinstance(value, list) or len(value) != len(row["tokens"]):
            raise ValueError(
                f"{line[:40]!r}; expected in {name!r} a list of one tag for each of the tokens"
            )
        value = [tag.strip() if isinstance(tag, str) else tag for tag in value]
        _check_bio(value)
        value = [one_of(labels, tag) if labels else tag for tag in value]
    else:
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not is_text(str(value)):
            raise ValueError(
                f"{line[:40]!r}; expected in {name!r} a label: a text or a whole number"
            )
        value = one_of(labels, str(value).strip()) if labels else str(value).strip()
    return {field: row[field] for field in task.fields[:-1]} | {name: value}


def _check_bio(tags: list) -> None:
    """Refuse what is no BIO tag, and an I- that continues no entity of its type."""
    before = "O"
    for number, tag in enumerate(tags, start=1):
        if not (is_text(tag) and is_tag(tag)):
            raise ValueError(f"tag {number} is {tag!r}; expected 'O', 'B-type' or 'I-type'")
        if tag[0] == "I" and before[2:] != tag[2:]:
            raise ValueError(
                f"tag {number}, {tag!r}, continues nothing; the first word of an entity is "
                f"B-{tag[2:]}"
            )
        before = tag


def labels_in(task: Task, rows: list[dict]) -> tuple[str, ...]:
    """Name the labels of rows in the order in which they come; of tags `O`, then B- and I- of each
    type."""
    if not task.tags_words:
        return tuple(dict.fromkeys(row["label"] for row in rows))
    kinds = dict.fromkeys(tag[2:] for row in rows for tag in row["tags"] if tag != "O")
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


def example(line: bytes, task: Task, as_json: bool) -> dict:
    """Parse a line of new text into a row without a label: a sentence, two split by a tab, or a
    JSON object."""
    text = _line_text(line)
    if as_json:
        return json_example(text, task)
    if task.tags_words:
        starts, tokens = zip(*split_words(text), strict=True)
        return {"text": text, "tokens": list(tokens), "starts": list(starts)}
    fields = task.fields[:-1]
    sentences = text.split("\t") if len(fields) > 1 else [text]
    if len(sentences) != len(fields):
        raise ValueError(
            f"{len(sentences)} parts in {text[:40]!r}; expected {len(fields)} sentences split by "
            "tabs"
        )
    return dict(zip(fields, map(text_of, sentences)))


def example_of_run(line: bytes, tasks: Mapping[str, Task]) -> dict:
    """Parse a line of new text for several runs: a JSON object with a "run", and the fields of that
    run's task."""
    text = _line_text(line)
    row = _json(text)
    name = row.get("run") if isinstance(row, dict) else None
    if not isinstance(name, str) or name not in tasks:
        raise ValueError(
            f"{text[:40]!r}; expected a JSON object whose 'run' is one of {', '.join(tasks)}"
        )
    return json_example(text, tasks[name])


def _line_text(line: bytes) -> str:
    try:
        text = line.decode("utf-8").strip("\ufeff\r\n ")  # with a byte order mark, where one is
    except UnicodeDecodeError:
        raise ValueError("not utf-8; save the text as utf-8") from None
    if not text.strip():
        raise ValueError("it is empty; expected an example")
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:  # its own text would number this line 1
        raise ValueError(
            f"no JSON: {error.msg} at character {error.colno}; expected a JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None


def json_example(text: str, task: Task) -> dict:
    """Parse a JSON object with the fields of a task's rows; its label, and what else it holds, is
    kept as it is."""
    row = _json(text)
    expected = '["a", "word", "each"]' if task.tags_words else '"a sentence"'
    for field in task.fields[:-1]:
        value = row.get(field) if isinstance(row, dict) else None
        whole = bool(value) and isinstance(value, list if task.tags_words else str)
        if not whole or not all(map(is_text, value if task.tags_words else [value])):
            raise ValueError(f"{text[:40]!r}; expected a JSON object with {field!r}: {expected}")
    return row


def split_words(text: str) -> list[tuple[int, str]]:
    """Split text at spaces, and set punctuation apart from its words, as in the real data: "(T
    cells)." is five words.

    A word is given with the place of its first character. A closing bracket stays where the word
    holds its opening one, and a stop where the word holds another: "NF(kappa)" and "i.e." are one
    word.
    """
    words = []
    for chunk in re.finditer(r"\S+", text):
        begin, end = chunk.span()
        while end - begin > 1 and text[begin] in '([{"“':
            words.append((begin, text[begin]))
            begin += 1
        behind = []
        while end - begin > 1 and _is_apart(text[begin:end]):
            end -= 1
            behind.append((end, text[end]))
        words += [(begin, text[begin:end]), *reversed(behind)]
    return words


def _is_apart(word: str) -> bool:
    last = word[-1]
    opening = {")": "(", "]": "[", "}": "{"}.get(last)
    if opening:
        return opening not in word
    return last in ',;:?!"”' or (last == "." and "." not in word[:-1])
