"""Which columns of a file are the fields of a row: by their usual names, or by `--columns`."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from neo_peft.errors import InputError
from neo_peft.tasks import Task

# The usual names of a field's column, in small letters. The first one is the field's own.
_TEXT = ("text", "content", "review")
USUAL = {
    "sentence": ("sentence", *_TEXT),
    "label": ("label", "labels", "category", "sentiment", "class", "target", "intent"),
    "sentence1": ("sentence1", "premise", "question1", "text1", "sentence_a"),
    "sentence2": ("sentence2", "hypothesis", "question2", "text2", "sentence_b"),
    "tokens": ("tokens", "words", "token", "word"),
    "tags": ("tags", "ner_tags", "tag", "ner"),
    "text": ("text", "sentence", "content", "review"),  # of a row with spans
    "spans": ("spans", "entities", "label", "labels"),
}
MOST_NAMED = 12  # columns in a message
MOST_SHOWN = 80  # characters of a file's first line in a message


class Found(NamedTuple):
    """The first line of a file: its name, its columns, and the line itself, for messages."""

    name: str  # of the file
    columns: Sequence[str]  # their names; a file without a heading has only numbers
    line: str  # the first line


def usual_names(field: str) -> tuple[str, ...]:
    """Return the usual names of a field's column; a field of GLUE has its own name alone."""
    return USUAL.get(field, (field,))


def given_columns(columns: Sequence[str] | None, fields: Collection[str]) -> dict[str, str]:
    """Return the column of each field that `--columns` names, from texts such as `text=body`.

    A field can be named by each of its usual names. Raises InputError for another name.
    """
    given = {}
    for role, _, column in (text.partition("=") for text in columns or ()):
        field = role if role in fields else ""
        field = field or next((item for item in fields if role.lower() in usual_names(item)), "")
        if not field or field in given:
            problem = "is there twice" if field else "is no field of this task's rows"
            names = ", ".join(map(field_name, fields))
            raise InputError(f"--columns {role}={column}: {role} {problem}; the fields are {names}")
        given[field] = column.strip()
    return given


def find_columns(
    found: Found, fields: Sequence[str], columns: Sequence[str] | None
) -> dict[str, int]:
    """Return the index of each field's column.

    found: the file's first line.
    fields: keys of `USUAL`.
    columns: the value of `--columns`: a column's name, or its number, from 1.

    A column with the field's own name is taken; else the only one with a usual name. Raises
    InputError where there is none, or more than one.
    """
    given = given_columns(columns, fields)
    names = [name.strip().lower() for name in found.columns]
    indices = {}
    for field in fields:
        wanted = given.get(field)
        if wanted is not None:
            # A number is a place, also where a file without a heading has it in its first line.
            is_place = wanted.isdecimal() and 0 < int(wanted[:9]) <= len(names)
            matches = [i for i, name in enumerate(found.columns) if name.strip() == wanted]
            matches = [int(wanted) - 1] if is_place else matches
        else:
            matches = [i for i, name in enumerate(names) if name == usual_names(field)[0]]
            matches = matches or [i for i, name in enumerate(names) if name in usual_names(field)]
        if len(matches) != 1:
            raise InputError(_refusal(found, fields, field, wanted, matches))
        indices[field] = matches[0]
    for field, index in indices.items():
        if others := [name for name in fields if name != field and indices[name] == index]:
            raise InputError(
                f"{found.name}: one column cannot be both the {field_name(field)} and the "
                f"{field_name(others[0])}; name two columns with --columns; {_columns_of(found)}"
            )
    return indices


def find_inputs(found: Found, task: Task, columns: Sequence[str] | None) -> dict[str, int]:
    """Return the index of the column of each field but the label, for rows without labels. To tag,
    it is a column of tokens, or else of texts (`text`).

    found, columns: as in `find_columns`; `columns` can name the label too.
    """
    fields = task.fields[:-1]
    names = {name.strip().lower() for name in found.columns}
    if task.is_tagging and names.isdisjoint(USUAL["tokens"]):
        fields = ("text",)
    given = given_columns(columns, (*fields, task.fields[-1]))
    return find_columns(found, fields, [f"{f}={given[f]}" for f in fields if f in given])


def _refusal(
    found: Found, fields: Sequence[str], field: str, wanted: str | None, matches: list[int]
) -> str:
    """Return why the column of a field cannot be chosen, and what is expected."""
    role, roles = field_name(field), {field_name(name): name for name in fields}
    if len(matches) > 1:
        same = " and ".join(repr(found.columns[i][:40]) for i in matches[:4])
        problem = f"the columns {same} can each be the {role}"
    elif wanted is not None:
        problem = f"--columns names {wanted!r} for the {role}, and there is no such column"
    else:
        problem = f"no column is the {role}"
    usual = "; ".join(
        f"{shown} ({', '.join(usual_names(name)[:5])})" for shown, name in roles.items()
    )
    example = ",".join(f"{shown}=NAME" for shown in roles)
    return (
        f"{found.name}: {problem}; {_columns_of(found)}; its first line is "
        f"{found.line[:MOST_SHOWN]!r}; expected columns with the usual names: {usual}; or name "
        f"them, or give their numbers: --columns {example}"
    )


def _columns_of(found: Found) -> str:
    more = ", …" * (len(found.columns) > MOST_NAMED)
    return "the columns are " + ", ".join(name[:40] for name in found.columns[:MOST_NAMED]) + more


def field_name(field: str) -> str:
    """Return what messages call a field."""
    return "text" if field == "sentence" else field
