"""HTML in which every text is escaped: only what `element` has made counts as markup."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup. Any other text is escaped on its way into an element."""


def escaped(text: object) -> Html:
    if isinstance(text, Html):
        return text
    # half a surrogate cannot be written
    return Html(html.escape(str(text).encode("utf-8", "replace").decode()))


def joined(parts: Iterable[object]) -> Html:
    return Html("".join(map(escaped, parts)))


def element(name: str, *inside: object, **attributes: object) -> Html:
    """Make an element; `class_` stands for class, and an attribute that is None is left out."""
    given = {key.rstrip("_"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{escaped(value)}"' for key, value in given.items())
    return Html(f"<{name}{shown}>{joined(inside)}</{name}>")


def cell(*inside: object, **attributes: object) -> Html:
    return element("td", *inside, **attributes)


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None
) -> Html:
    """Make a table, in a box that scrolls by itself where it is too wide. What is no `cell` yet
    becomes one; the first of a row heads it."""
    lines = [
        [
            element("th", first, scope="row"),
            *(one if isinstance(one, Html) else cell(one) for one in cells),
        ]
        for first, *cells in rows
    ]
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in header)))
    body = element("tbody", *(element("tr", *line) for line in lines))
    return element("div", element("table", head, body, class_=class_), class_="wide", tabindex=0)


def facts(pairs: dict[str, object]) -> Html:
    """List names and what they are."""
    return element(
        "dl", *(joined([element("dt", name), element("dd", what)]) for name, what in pairs.items())
    )


def section(title: str, *inside: object) -> Html:
    return element("section", element("h3", title), *inside)


def note(text: str) -> Html:
    return element("p", text, class_="note")
