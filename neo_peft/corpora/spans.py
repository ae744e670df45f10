"""Tagged texts of your own as annotation programs write them: a text, and spans of characters.

A row is {"text": ..., "entities": [[0, 4, "drug"]]} (doccano's field is "label", that of other
programs "spans"), or [text, {"entities": ...}], as spaCy has it. A span is a list of its first
character, the one after its last, and its type; or an object with these.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from neo_peft.corpora import lines
from neo_peft.corpora.fields import USUAL, Found, find_columns, given_columns
from neo_peft.corpora.lines import FileRows
from neo_peft.corpora.splits import Request
from neo_peft.corpora.words import split_words

FIELDS = ("text", "spans")
# the names of a span's start, its end and its type in an object
NAMES = (("start", "start_offset"), ("end", "end_offset"), ("label", "type", "entity", "tag"))
EXPECTED = 'expected a span such as [0, 4, "drug"] or {"start": 0, "end": 4, "label": "drug"}'


def has_spans(value: object, columns: Sequence[str] | None) -> bool:
    """Return whether a row is a text with spans, not a list of tokens with tags."""
    if _is_pair(value):
        return True
    roles = {text.partition("=")[0].lower() for text in columns or ()}
    if roles:
        return not roles.isdisjoint((*USUAL["text"], *USUAL["spans"]))
    names = {name.lower() for name in value} if isinstance(value, dict) else set()
    return not names.isdisjoint(USUAL["text"]) and names.isdisjoint(USUAL["tokens"])


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)


def rows_of(
    name: str,
    items: Iterator[tuple[int, str]],
    first: object,
    found: Found,
    request: Request,
    unit: str,
) -> FileRows:
    """Return the rows of numbered JSON texts. Words are split as `predict` splits a text.

    first, found: the first row, and how messages show it.
    """
    given_columns(request.columns, FIELDS)
    if _is_pair(first):
        found = found._replace(columns=["text", *first[1]])
    indices = find_columns(found, FIELDS, request.columns)
    names = {field: found.columns[index] for field, index in indices.items()}
    notes = []
    rows = _noted_rows(name, items, names, notes, unit)
    origin = {field: f'"{column}"' for field, column in names.items()}
    return FileRows(name, rows, origin, notes, unit)


def _noted_rows(
    name: str, items: Iterator[tuple[int, str]], names: dict, notes: list[str], unit: str
) -> Iterator[tuple[int, dict]]:
    """Yield numbered rows. After the last one, add notes on spans that were changed."""
    widened, dropped = [], []  # how each span was changed
    for number, (row, wide, shared) in lines.parse_items(
        name, partial(_parse, names=names), items, unit
    ):
        widened += [f"{unit} {number}: {change}" for change in wide]
        dropped += [f"{unit} {number}: {change}" for change in shared]
        yield number, row
    for changes, text in (
        (widened, "spans that cut a word, widened to whole words"),
        (dropped, "spans in a word that already has a span, left out"),
    ):
        if changes:
            notes.append(f"{name}: {text}: {len(changes):,}, such as {changes[0]}")


def _parse(line: str, names: dict[str, str]) -> tuple[dict, list[str], list[str]]:
    """Return the row of a line, and how its spans were changed: widened, or left out."""
    value = lines.parse_json(line)
    row = {"text": value[0], **value[1]} if _is_pair(value) else value
    text, spans = (row.get(names[field]) if isinstance(row, dict) else None for field in FIELDS)
    if not isinstance(text, str) or not isinstance(spans, list):
        raise ValueError(
            f"{line[:40]!r}; expected a JSON object with a text in {names['text']!r} and a list of "
            f"spans in {names['spans']!r}"
        )
    if wrong := lines.wrong_text(names["text"], text):
        raise ValueError(f"{wrong}; correct or remove it")
    return tag_words(text, sorted(_span(span, text) for span in spans))


def _span(span: object, text: str) -> tuple[int, int, str]:
    """Return a span's first character, the one after its last, and its type."""
    if isinstance(span, dict):
        span = [next((span[name] for name in names if name in span), None) for names in NAMES]
    if not isinstance(span, list) or len(span) != 3:
        raise ValueError(f"{str(span)[:40]!r}; {EXPECTED}")
    start, end, kind = span
    if type(start) is not int or type(end) is not int or not lines.is_text(kind):
        raise ValueError(f"{str(span)[:40]!r}; {EXPECTED}")
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise ValueError(
            f"the span {str(span)[:40]} has no characters of the text, which has {len(text):,}"
        )
    return start, end, kind.strip()


def tag_words(
    text: str, spans: Sequence[tuple[int, int, str]]
) -> tuple[dict, list[str], list[str]]:
    """Return the row of a text with spans, in their order; the spans that were widened to whole
    words; and those that were left out, because their word has a span already.

    Raises ValueError for spans that overlap.
    """
    words = split_words(text)
    tags, widened, dropped, before = ["O"] * len(words), [], [], 0
    for start, end, kind in spans:
        if start < before:
            raise ValueError(
                f"the span {text[start:end][:40]!r} overlaps the one before it; a word has one tag"
            )
        before, shown = end, f"{kind} {text[start:end][:40]!r}"
        covered = [
            index for index, (at, word) in enumerate(words) if at < end and start < at + len(word)
        ]
        if tags[covered[0]] != "O":
            dropped.append(f"{shown} in the word {words[covered[0]][1][:40]!r}")
            continue
        first, last = words[covered[0]], words[covered[-1]]
        whole = text[first[0] : last[0] + len(last[1])]
        if start > first[0] or end < last[0] + len(last[1]):
            widened.append(f"{shown} is now {whole[:40]!r}")
        tags[covered[0]] = f"B-{kind}"
        for index in covered[1:]:
            tags[index] = f"I-{kind}"
    return {"tokens": [word for _, word in words], "tags": tags}, widened, dropped
