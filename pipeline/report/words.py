"""Words of the facts: numbers as people write them, and text with how it is meant.

A page shows by its look how text is meant, Markdown by its marks, a terminal not at all.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Marked:
    """Text that is code, a digest, somebody else's name, or stands out; ``rest`` follows it."""

    text: str
    kind: Literal["plain", "code", "name", "digest", "strong", "good", "warn", "bad"] = "strong"
    rest: str = ""

    def __str__(self) -> str:
        return self.text + self.rest


Word = str | Marked
Value = Word | Sequence[Word]
Row = tuple[str, Value | None]
"""A fact: its label, lower-case, and its value. None is not known, and not shown."""


class Table(NamedTuple):
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


def find(values: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, or None where any of them is missing."""
    found: Any = values
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def writable(text: str) -> str:
    """Return text whose control characters and half surrogates are U+FFFD: HTML cannot hold them,
    and a terminal would obey them.
    """
    return "".join(
        letter if letter in "\t\n" or _is_writable(letter) else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def _is_writable(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cs") and letter not in "\ufffe\uffff"


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


def parameterless(number: int) -> str:
    """Write how many operations of a normal cell have no weights."""
    return f"{number} operations in the normal cell"


def tiny(value: float | None) -> str:
    """Write a small number with three digits."""
    return NOT_APPLICABLE if value is None else f"{value:.3g}"


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
