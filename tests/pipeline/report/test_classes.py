"""Scores by class as a report shows them: tables, cautions, drawings."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from page_facts import HOSTILE

from d2nas.measure.scores import Scores
from pipeline.report.class_drawings import Picture, draw_confusion, draw_mistakes, draw_reliability
from pipeline.report.classes import (
    FIRST_ROWS,
    cautions,
    class_rows,
    class_table,
    confused_table,
    summary,
    taken_for,
)


def scored(labels: list[int], answers: list[int], names: list[str]) -> dict[str, Any]:
    scores = Scores(len(names))
    scores.add(np.array(labels), np.eye(len(names))[answers])
    return scores.to_dict(names)


def test_the_class_of_the_lowest_recall_is_first_and_one_without_images_last() -> None:
    found = scored([0, 1, 1], [0, 0, 1], [*"abc"])
    rows = [[str(word) for word in row] for row in class_rows(found)]
    assert [row[0] for row in rows] == ["b", "a", "c"]
    assert rows[0] == ["b", "2", "50.00 %", "100.00 %", "66.67 %", "a (1)"]
    assert rows[2][2:] == ["n/a", "n/a", "n/a", ""]


def test_what_a_class_is_taken_for_is_known_without_a_matrix() -> None:
    found = scored([0, 0, 0, 1], [1, 2, 2, 1], [*"abc"])
    assert taken_for(found) == {"a": ("c", 2)}
    pairs = [
        {"class": "a", "answer": "c", "images": 2},
        {"class": "a", "answer": "b", "images": 1},
    ]
    assert taken_for({**found, "confusion": None, "confused": pairs}) == {"a": ("c", 2)}


def test_a_long_table_is_cut_and_the_rest_kept() -> None:
    names = [f"class {number}" for number in range(FIRST_ROWS + 3)]
    labels = [*range(len(names))]
    first, more = class_table(scored(labels, labels, names), "test images")
    assert len(first.rows) == FIRST_ROWS
    assert more is not None
    assert len(more.rows) == 3
    short, none = class_table(scored([0], [0], ["a"]), "test images")
    assert (len(short.rows), none) == (1, None)


def test_a_class_that_is_clearly_missed_is_a_caution() -> None:
    labels, answers = [0] * 8 + [1] * 200, [0] * 2 + [1] * 206
    told = [str(word) for word in cautions(scored(labels, answers, ["rare", "other", "none"]))]
    assert told == [
        "Class rare: only 2 of 8 test images are recognised.",
        "Classes without test images: none; nothing is known of these.",
    ]
    # Control: a class that may be as good as the others, and one that hardly differs.
    assert cautions(scored([0] * 4 + [1] * 4, [0] * 3 + [1] * 5, ["a", "b"])) == []
    labels = [0] * 1000 + [1] * 1000
    answers = [0] * 970 + [1] * 1030
    assert cautions(scored(labels, answers, ["a", "b"])) == []
    many = scored([n for n in range(9) for _ in range(40)], [8] * 360, [*"abcdefghi"])
    assert cautions(many) == []  # images in general are recognised as rarely
    half = [n for n in range(12) for _ in range(40)]
    told = [str(w) for w in cautions(scored(half, [max(n, 6) for n in half], [*"abcdefghijkl"]))]
    assert told[-1] == "3 more classes: recognised clearly less often than others, too."


def test_a_report_of_before_says_nothing_of_classes() -> None:
    assert cautions({}) == []
    assert summary({}) == [
        ("balanced accuracy", None),
        ("lowest recall", None),
        ("calibration error", None),
    ]
    assert confused_table({}) is None
    assert class_rows({}) == []


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


SVG = "{http://www.w3.org/2000/svg}"


def test_a_confusion_matrix_has_a_square_for_every_pair() -> None:
    found = scored([0, 0, 1, 2], [0, 1, 1, 0], ["cat", "dog", "a very long name of a class"])
    drawing = draw_confusion(found["confusion"], found["labels"])
    rectangles = [one.get("class") for one in parsed(drawing).iter(f"{SVG}rect")]
    assert rectangles.count("cell") == 9
    assert rectangles.count("right") == 2
    assert rectangles.count("wrong") == 2
    titles = [one.text for one in parsed(drawing).iter(f"{SVG}title")]
    assert "cat taken for dog: 1 of 2" in titles
    assert "a very long name…" in drawing
    strong = {
        one.get("class"): float(one.get("opacity") or 0)
        for one in parsed(drawing).iter(f"{SVG}rect")
        if one.get("opacity")
    }
    assert strong["right"] == pytest.approx(0.9)  # all of class dog


def test_reliability_has_a_bar_for_every_bin_with_images() -> None:
    rows = [
        {"up_to": 0.6, "images": 10, "accuracy": 0.5, "confidence": 0.58},
        {"up_to": 1.0, "images": 40, "accuracy": 1.0, "confidence": 0.97},
    ]
    bars = [one for one in parsed(draw_reliability(rows)).iter(f"{SVG}rect") if one.get("opacity")]
    heights = [float(one.get("height") or 0) for one in bars]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert float(bars[0].get("opacity") or 0) < float(bars[1].get("opacity") or 0)


def test_hostile_names_are_text() -> None:
    names = list(HOSTILE)
    count = [[1] * len(names)] * len(names)
    pictures = [Picture(b"\x89PNG", name, name, 0.5) for name in names]
    for drawing in (draw_confusion(count, names), draw_mistakes(pictures)):
        tags = {one.tag for one in parsed(drawing).iter()}
        assert tags <= {f"{SVG}{tag}" for tag in ("svg", "style", "rect", "text", "title", "image")}
