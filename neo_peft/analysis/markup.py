"""HTML in which all text is escaped. Only what `element` returns is taken for markup."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup. An element escapes any other text that is put into it."""


def escaped(text: object) -> Html:
    """Return text as markup that shows it; markup stays as it is."""
    if isinstance(text, Html):
        return text
    # half a surrogate cannot be written
    return Html(html.escape(str(text).encode("utf-8", "replace").decode()))


def joined(parts: Iterable[object]) -> Html:
    """Return parts one after the other, escaped."""
    return Html("".join(map(escaped, parts)))


def element(name: str, *inside: object, **attributes: object) -> Html:
    """Return an element. `class_` stands for class; an attribute that is None is left out."""
    shown = "".join(
        f' {key.rstrip("_")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{joined(inside)}</{name}>")


def html_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None
) -> Html:
    """Return a table in a box that scrolls where the table is too wide.

    The first value of each row is its heading. Other values become cells, unless they are Html.
    """
    lines = [
        [
            element("th", first, scope="row"),
            *(one if isinstance(one, Html) else element("td", one) for one in cells),
        ]
        for first, *cells in rows
    ]
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in header)))
    body = element("tbody", *(element("tr", *line) for line in lines))
    return element("div", element("table", head, body, class_=class_), class_="wide", tabindex=0)


def facts(pairs: dict[str, object]) -> Html:
    """Return a list of names and their values."""
    return element(
        "dl", *(joined([element("dt", name), element("dd", what)]) for name, what in pairs.items())
    )


def section(title: str, *inside: object) -> Html:
    """Return a section with a heading."""
    return element("section", element("h3", title), *inside)


def note(text: str) -> Html:
    """Return a paragraph that explains what stands above it."""
    return element("p", text, class_="note")
