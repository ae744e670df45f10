"""HTML in which all text is escaped. Only the results of these functions are taken as markup."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup. An element escapes all other text that is put into it."""


def escaped(text: object) -> Html:
    """Return text as markup that shows it. Markup is returned unchanged."""
    if isinstance(text, Html):
        return text
    # "replace": a lone surrogate cannot be written as UTF-8
    return Html(html.escape(str(text).encode("utf-8", "replace").decode()))


def joined(parts: Iterable[object]) -> Html:
    """Return one markup text made of the parts, each of them escaped."""
    return Html("".join(map(escaped, parts)))


def element(name: str, *inside: object, **attributes: object) -> Html:
    """Return an element. `class_` sets its class; an attribute that is None is left out."""
    shown = "".join(
        f' {key.rstrip("_")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{joined(inside)}</{name}>")


def html_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None
) -> Html:
    """Return a table in a box that scrolls if the table is too wide.

    The first value of each row is its heading. Other values become cells, unless they are Html.
    """
    lines = [
        [
            element("th", first, scope="row"),
            *(value if isinstance(value, Html) else element("td", value) for value in others),
        ]
        for first, *others in rows
    ]
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in header)))
    body = element("tbody", *(element("tr", *line) for line in lines))
    return element("div", element("table", head, body, class_=class_), class_="wide", tabindex=0)


def name_list(pairs: dict[str, object]) -> Html:
    """Return a list of names, each with its value."""
    return element(
        "dl",
        *(joined([element("dt", name), element("dd", value)]) for name, value in pairs.items()),
    )


def section(title: str, *inside: object) -> Html:
    """Return a section with a heading."""
    return element("section", element("h3", title), *inside)


def note(text: str) -> Html:
    """Return a paragraph that explains a table or a list."""
    return element("p", text, class_="note")
