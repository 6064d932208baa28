"""HTML that is escaped by construction, and how numbers are written for people.

Whatever is not ``Html`` already is text and gets escaped. Elements are written so that the page is
well-formed XML, too.
"""

import base64
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

NOT_APPLICABLE = "n/a"
_VOID = ("br", "circle", "img", "line", "meta", "rect")


class Html(str):
    """Markup that was made here; every other string is text."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return the markup itself: a template does not escape it again."""
        return self


def text(value: object) -> Html:
    """Return ``value`` as text that is safe between tags and in quoted attributes.

    What HTML cannot hold (control characters, half surrogates) becomes U+FFFD.
    """
    if isinstance(value, Html):
        return value
    return Html(escape(writable(str(value)), quote=True))


def writable(text: str) -> str:
    """Return text without what HTML cannot hold: control characters, half surrogates."""
    return "".join(
        letter if letter in "\t\n" or _is_writable(letter) else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def join(parts: Iterable[object]) -> Html:
    """Return the parts one after another, text among them escaped, None left out."""
    return Html("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element. ``class_`` and ``aria_label`` become ``class`` and ``aria-label``.

    Attributes and children that are None are left out.
    """
    written = "".join(
        # Markup has no place in an attribute: there it is text like any other.
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written} />")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def table(
    caption: str,
    columns: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    class_: str = "numbers",
) -> Html:
    """Return a table that scrolls inside itself; the first cell of a row is its heading.

    ``class_`` is ``numbers`` or ``words``: to which side cells lean.
    """
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    made = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_
    )
    return scrolling(caption, made)


def scrolling(label: str, *children: object) -> Html:
    """Return a part that scrolls inside itself, by keyboard too, where it is too wide."""
    return tag("div", *children, class_="scroll", role="region", aria_label=label, tabindex=0)


def definitions(rows: Iterable[tuple[object, object]], class_: str = "facts") -> Html:
    """Return terms with their descriptions; those whose description is None are left out."""
    parts = [
        tag("div", tag("dt", term), tag("dd", description))
        for term, description in rows
        if description is not None
    ]
    return tag("dl", *parts, class_=class_) if parts else Html("")


def bullets(items: Iterable[object], class_: str | None = None) -> Html:
    """Return a list; nothing for no items."""
    parts = [tag("li", item) for item in items]
    return tag("ul", *parts, class_=class_) if parts else Html("")


def image(svg: bytes, alt: str) -> Html:
    """Return an SVG as an image: as such it runs no script, loads nothing and keeps its style."""
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return tag("img", src=source, alt=alt)


def find(values: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, or None where any of them is missing."""
    found: Any = values
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def count(value: int | None) -> str:
    """Write a whole number with its thousands apart."""
    return NOT_APPLICABLE if value is None else f"{value:,}"


def short_count(value: int) -> str:
    """Write a large number with three digits and a word."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return count(value)


def percent(share: float | None) -> str:
    """Write a part as per cent with two decimals."""
    return NOT_APPLICABLE if share is None else f"{100 * share:.2f} %"


def tiny(value: float | None) -> str:
    """Write a small number with its exponent."""
    return NOT_APPLICABLE if value is None else f"{value:.1e}"


def milliseconds(value: float | None) -> str:
    """Write a time with three or more digits, without its unit."""
    if value is None:
        return NOT_APPLICABLE
    decimals = next((d for d, limit in ((3, 1), (2, 10), (1, 100)) if value < limit), 0)
    return f"{value:,.{decimals}f}"


def size(num_bytes: int) -> str:
    """Write a file's size."""
    for unit, name in ((10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes} bytes"


def _is_writable(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cs") and letter not in "\ufffe\uffff"
