"""New text without labels, which `predict` reads: plain text, or JSON objects, one a line."""

import re
from collections.abc import Mapping

from neo_peft.corpora import lines
from neo_peft.corpora.own import parse_json, parse_object
from neo_peft.tasks import Task


def parse_example(line: bytes, task: Task, as_json: bool) -> dict:
    """Return the row of a line, without a label. Plain text is a sentence, or two split by a tab.

    Words of plain text come with `text`, the line, and `starts`, where in it each word starts.
    """
    text = _decode(line)
    if as_json:
        return parse_object(text, task)
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
    return dict(zip(fields, map(lines.text_of, sentences)))


def parse_example_of_run(line: bytes, tasks: Mapping[str, Task]) -> dict:
    """Return the row of a line for one of several runs: a JSON object with "run", a key of `tasks`,
    and the fields of that run's task."""
    text = _decode(line)
    row = parse_json(text)
    name = row.get("run") if isinstance(row, dict) else None
    if name not in list(tasks):  # a list, since what came may have no hash
        raise ValueError(
            f"{text[:40]!r}; expected a JSON object whose 'run' is one of {', '.join(tasks)}"
        )
    return parse_object(text, tasks[name])


def _decode(line: bytes) -> str:
    """Return the text of a line, without its end, spaces around it, and a byte order mark."""
    try:
        text = line.decode("utf-8").strip("\ufeff\r\n ")
    except UnicodeDecodeError:
        raise ValueError("not utf-8; save the text as utf-8") from None
    if not text.strip():
        raise ValueError("it is empty; expected an example")
    return text


def split_words(text: str) -> list[tuple[int, str]]:
    """Return each word with the index of its first character. Punctuation is a word of its own.

    "(T cells)." is five words, as in JNLPBA. But a closing bracket stays in a word that also has
    its opening one, and a full stop in a word that has another: "NF(kappa)" and "i.e." are one
    word each.
    """
    words = []
    for chunk in re.finditer(r"\S+", text):
        begin, end = chunk.span()
        while end - begin > 1 and text[begin] in '([{"“':
            words.append((begin, text[begin]))
            begin += 1
        after = []
        while end - begin > 1 and _ends_in_punctuation(text[begin:end]):
            end -= 1
            after.append((end, text[end]))
        words += [(begin, text[begin:end]), *reversed(after)]
    return words


def _ends_in_punctuation(word: str) -> bool:
    """Return whether the last character is a word of its own."""
    last = word[-1]
    opening = {")": "(", "]": "[", "}": "{"}.get(last)
    if opening:
        return opening not in word
    return last in ',;:?!"”' or (last == "." and "." not in word[:-1])
