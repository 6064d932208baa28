"""Images that are there twice: among training and test images, or under two labels."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .faults import shown

MAX_NAMED = 3


class Compared(NamedTuple):
    """Images of one part, as far as they are compared."""

    digests: Iterable[bytes]
    """Equal for equal images, of their pixels or their files."""
    labels: Sequence[int]
    names: Sequence[str]
    """Their paths; empty where they have none."""


def duplicate_lines(
    train: Compared, test: Compared, class_names: Sequence[str], *, evaluation: str, by: str
) -> list[str]:
    """Return printable lines that count, and name some of, the test images that are training
    images too, and the training images that are there under another label. ``by`` says what was
    compared.
    """
    known: dict[bytes, int] = {}
    twice: list[tuple[int, int]] = []
    for index, digest in enumerate(train.digests):
        first = known.setdefault(digest, index)
        if train.labels[first] != train.labels[index]:
            twice.append((first, index))
    leaked = [
        (known[digest], index) for index, digest in enumerate(test.digests) if digest in known
    ]
    lines = []
    if leaked:
        told = [
            f"{shown(test.names[index])} is {shown(train.names[first])}"
            for first, index in leaked[: MAX_NAMED if train.names else 0]
        ]
        lines.append(
            f"{evaluation} images that are training images too, by {by}: {len(leaked)}"
            + (f" ({'; '.join(told)})" if told else "")
        )
    if twice:
        told = [
            f"{_named(train, first, class_names)} and {_named(train, second, class_names)}"
            for first, second in twice[:MAX_NAMED]
        ]
        lines.append(
            f"training images that are there under another label too, by {by}: {len(twice)}"
            f" ({'; '.join(told)})"
        )
    return lines


def _named(images: Compared, index: int, class_names: Sequence[str]) -> str:
    label = class_names[images.labels[index]]
    return shown(f"{images.names[index]} as {label}" if images.names else label)
