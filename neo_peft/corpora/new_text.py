"""New text without labels, for `predict`: plain text, or one JSON object a line."""

from collections.abc import Mapping, Sequence

from neo_peft.corpora import lines
from neo_peft.corpora.fields import Found, find_inputs, usual_names
from neo_peft.corpora.json_rows import parse_object
from neo_peft.corpora.words import split_words
from neo_peft.errors import InputError
from neo_peft.tasks import Task

AROUND = "\ufeff "  # no part of an example: the byte order mark, and spaces around a line


def is_blank(line: bytes) -> bool:
    """Return whether a line has no text, only spaces of any kind or a byte order mark."""
    return not line.decode("utf-8", "replace").strip(AROUND).strip()


def parse_example(
    line: bytes, task: Task, as_json: bool, columns: Sequence[str] | None = None
) -> dict:
    """Return the row of a line, without a label. A line of plain text is one sentence, or two
    sentences separated by a tab. Raises ValueError for a wrong line, and for a JSON row in place of
    plain text. `columns` is the value of `--columns`, for JSON rows.

    For a tagging task, plain text is split into words. The row then also has `text`, the line as it
    was given, without its line end, and `starts`, the index in `text` at which each word starts.
    """
    given = _decode(line)
    text = given.strip(AROUND)
    if as_json:
        return _parse_json(text, task, columns)
    if _is_row(text, task):
        raise ValueError(f"{text[:40]!r} is a JSON row, not a text; add --jsonl")
    if task.is_tagging:
        before = len(given) - len(given.lstrip(AROUND))
        starts, tokens = zip(*split_words(text), strict=True)
        starts = [before + start for start in starts]
        return {"text": given, "tokens": list(tokens), "starts": starts}
    fields = task.fields[:-1]
    sentences = text.split("\t") if len(fields) > 1 else [text]
    if len(sentences) != len(fields):
        raise ValueError(
            f"{len(sentences)} parts in {text[:40]!r}; expected {len(fields)} sentences separated "
            "by tabs"
        )
    return dict(zip(fields, map(lines.check_text, sentences)))


def parse_example_of_run(line: bytes, tasks: Mapping[str, Task]) -> dict:
    """Return the row of a line for one of several runs.

    The line is a JSON object with "run", a key of `tasks`, and the fields of that run's task.
    """
    text = _decode(line).strip(AROUND)
    row = lines.parse_json(text)
    name = row.get("run") if isinstance(row, dict) else None
    if name not in list(tasks):  # a list, since `name` can be unhashable
        raise ValueError(
            f"{text[:40]!r}; expected a JSON object whose 'run' is one of {', '.join(tasks)}"
        )
    return _parse_json(text, tasks[name], None)


def _parse_json(text: str, task: Task, columns: Sequence[str] | None) -> dict:
    """Return the row of a JSON object. A field that it lacks has one of its usual names, or that of
    `columns`. A text to tag is split into words."""
    row = lines.parse_json(text)
    if not isinstance(row, dict) or {*task.fields[:-1]} <= row.keys():
        return parse_object(text, task)
    keys = list(row)
    try:
        found = find_inputs(Found("the JSON object", keys, text), task, columns)
    except InputError:
        return parse_object(text, task)  # refuses it with what is expected
    for field, index in found.items():
        row[field] = row[keys[index]]
        if not isinstance(row[field], list if field == "tokens" else str):
            return parse_object(text, task)
        if wrong := lines.wrong_text(field, row[field]):
            raise ValueError(wrong)
    if "text" in found:
        row["tokens"] = [word for _, word in split_words(row["text"])]
    return row


def _is_row(text: str, task: Task) -> bool:
    """Return whether a text is a JSON object with a field of the task's rows, or one of their usual
    names: a line of a file such as test.jsonl."""
    try:
        value = lines.parse_json(text) if text.startswith("{") else None
    except ValueError:
        return False
    names = {name for field in (*task.fields[:-1], "text") for name in usual_names(field)}
    return isinstance(value, dict) and not names.isdisjoint(map(str.lower, value))


def _decode(line: bytes) -> str:
    """Return the text of a line, without its line end."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("not utf-8; save the text as utf-8") from None
    if not text.strip(AROUND).strip():
        raise ValueError("the line is empty; expected an example")
    return text
