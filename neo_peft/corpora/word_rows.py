"""A table with one word in each row, for tagging. A column numbers the sentences: in each row, or
only in the row of a sentence's first word.

    Sentence #,Word,Tag
    Sentence: 1,IL-2,B-protein
    ,binds,O
    Sentence: 2,Yes,O
"""

from collections.abc import Iterable, Iterator, Sequence

from neo_peft.corpora import lines
from neo_peft.corpora.checks import own_tags
from neo_peft.errors import InputError

# The usual names of the column that numbers the sentences, in small letters.
SENTENCE = (
    "sentence #",
    "sentence_id",
    "sentence id",
    "sentence_idx",
    "sent_id",
    "sentence_number",
)


def sentence_column(heading: Sequence[str]) -> int | None:
    """Return the index of the column that numbers the sentences, or None."""
    names = [name.strip().lower() for name in heading]
    return next((names.index(name) for name in SENTENCE if name in names), None)


def is_sentence(tokens: str, tags: str) -> bool:
    """Return whether the cells of a row are a sentence: two lists, or as many tokens as tags."""
    are_lists = tokens.strip()[-1:] == "]" == tags.strip()[-1:]
    return are_lists or len(tokens.split()) == len(tags.split()) > 1


def join_words(
    name: str, records: Iterable[tuple[int, list[str]]], sentence: int, indices: Sequence[int]
) -> Iterator[tuple[int, dict]]:
    """Yield the number of each sentence's first line, and its row.

    name: the file, as messages name it.
    sentence, indices: the columns of the sentence's number, and of the token and the tag.
    """

    def parse(values: list[str]) -> tuple[str, str, str]:
        token, tag = (values[index] for index in indices)
        return values[sentence].strip(), lines.check_text(token), own_tags([tag])[0]

    first, current, row = 0, None, {}
    for number, (found, token, tag) in lines.parse_items(name, parse, records):
        if current is None or found not in ("", current):
            if row:
                yield first, row
            first, current, row = number, found, {"tokens": [], "tags": []}
        row["tokens"].append(token)
        row["tags"].append(tag)
    if row:
        yield first, row


def refuse_words(name: str, rows: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
    """Yield numbered rows. After the last one, raise InputError if each of them has one word: no
    column tells which words are a sentence."""
    count = longest = 0
    for number, row in rows:
        count, longest = count + 1, max(longest, len(row["tokens"]))
        yield number, row
    if count > 1 and longest == 1:
        raise InputError(
            f"{name}: each row has one word, and no column numbers the sentences; add one called "
            "sentence_id, or write a .conll file, with a blank line after each sentence"
        )
