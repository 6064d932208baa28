"""Scores by class in words: rows of tables, worst first, and what to be cautious of.

``found`` is a validation's report or the scores of a labelled folder, which have the same keys.
"""

from collections.abc import Mapping
from typing import Any

from d2nas.measure.scores import NUM_BINS, wilson_interval

from .words import Marked, Row, Table, Value, Word, count, percent

COLUMNS = ("class", "images", "recall", "precision", "F1", "mostly taken for")
FIRST_ROWS = 20
"""Classes that a table shows at once."""
LOWEST_TOLD = 3
CLEARLY = 0.05
"""How far below the accuracy a recall is that is worth a caution (a choice)."""


def by_class(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the classes, lowest recall first, those without images last."""
    rows = [row for row in found.get("per_class") or [] if isinstance(row, Mapping)]
    return sorted(rows, key=lambda row: 2.0 if row.get("recall") is None else row["recall"])


def taken_for(found: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the wrong answer that most images of a class have, with their number."""
    names = [str(row["class"]) for row in found.get("per_class") or []]
    matrix = found.get("confusion")
    if matrix is None:
        pairs = [
            (str(pair["class"]), str(pair["answer"]), int(pair["images"]))
            for pair in found.get("confused") or []
        ]
    else:
        pairs = [
            (name, names[other], number)
            for index, name in enumerate(names)
            for other, number in enumerate(matrix[index])
            if other != index and number
        ]
    most: dict[str, tuple[str, int]] = {}
    for name, answer, number in pairs:
        if number > most.get(name, ("", 0))[1]:
            most[name] = answer, number
    return most


def class_rows(found: Mapping[str, Any]) -> list[tuple[Word, ...]]:
    """Return a row of ``COLUMNS`` for each class, lowest recall first."""
    most = taken_for(found)
    rows: list[tuple[Word, ...]] = []
    for row in by_class(found):
        answer, number = most.get(str(row["class"]), ("", 0))
        shares = (percent(row[key]) for key in ("recall", "precision", "f1"))
        taken = Marked(answer, "name", f" ({number})") if number else ""
        rows.append((Marked(str(row["class"]), "name"), count(row["images"]), *shares, taken))
    return rows


def summary(found: Mapping[str, Any]) -> list[Row]:
    """Return what is said of all classes together."""
    lowest = next(iter(by_class(found)), None)
    told: Word | None = None
    if lowest is not None and lowest["recall"] is not None:
        told = Marked(str(lowest["class"]), "name", f": {_recall(lowest)}")
    balanced, ece = found.get("balanced_accuracy"), found.get("ece")
    return [
        ("balanced accuracy", None if balanced is None else percent(balanced)),
        ("lowest recall", told),
        ("calibration error", None if ece is None else f"{percent(ece)} (ECE, {NUM_BINS} bins)"),
    ]


def cautions(found: Mapping[str, Any]) -> list[Word]:
    """Return a caution for classes that are clearly recognised less often than images in general:
    the whole 95 % interval of the recall is ``CLEARLY`` below the accuracy; and one for classes
    without test images.
    """
    rows = [row for row in by_class(found) if row["recall"] is not None]
    images = sum(row["images"] for row in rows)
    accuracy = sum(row["recall"] * row["images"] for row in rows) / max(1, images)
    low = [
        row for row in rows if wilson_interval(row["recall"], row["images"])[1] < accuracy - CLEARLY
    ]
    told = list[Word]()
    for row in low[:LOWEST_TOLD]:
        told.append(Marked(f"Class {row['class']}", rest=f": only {_recall(row)} are recognised."))
    if len(low) > LOWEST_TOLD:
        more = ": recognised clearly less often than others, too."
        told.append(Marked(f"{len(low) - LOWEST_TOLD} more classes", rest=more))
    without = [str(name) for name in found.get("without_images") or []]
    if without:
        names = ", ".join(without[:LOWEST_TOLD]) + (", ..." if len(without) > LOWEST_TOLD else "")
        told.append(
            Marked("Classes without test images", rest=f": {names}; nothing is known of these.")
        )
    return told


def class_table(found: Mapping[str, Any], images: str) -> tuple[Table, Table | None]:
    """Return the table of the classes, and that of those beyond ``FIRST_ROWS``, if any."""
    rows: list[tuple[Value, ...]] = [*class_rows(found)]
    first = Table(f"Classes, lowest recall first, on {images}", COLUMNS, rows[:FIRST_ROWS])
    more = rows[FIRST_ROWS:]
    return first, Table("The other classes", COLUMNS, more) if more else None


def confused_table(found: Mapping[str, Any], number: int = FIRST_ROWS) -> Table | None:
    """Return the pairs of a class and another answer that most images have; None without any."""
    pairs = list(found.get("confused") or [])[:number]
    rows = [
        (
            Marked(str(pair["class"]), "name"),
            Marked(str(pair["answer"]), "name"),
            count(pair["images"]),
        )
        for pair in pairs
    ]
    return Table("Most frequent mistakes", ("class", "taken for", "images"), rows) if rows else None


def _recall(row: Mapping[str, Any]) -> str:
    right = round(row["recall"] * row["images"])
    return f"{right:,} of {row['images']:,} test images"
