"""The picture of a genotype: everything is in it, and nothing covers anything else."""

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from d2nas import Genotype
from d2nas.genotype import PUBLISHED
from pipeline.report.genotype_drawing import draw_genotype

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]


def boxes(cell: ElementTree.Element) -> list[Box]:
    found = [
        tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        for rect in cell.iter(f"{SVG}rect")
    ]
    circles = [[float(c.attrib[k]) for k in ("cx", "cy", "r")] for c in nodes(cell)]
    rounds = [(x - r, y - r, 2 * r, 2 * r) for x, y, r in circles]
    return [(x, y, x + width, y + height) for x, y, width, height in [*found, *rounds]]


def nodes(cell: ElementTree.Element) -> list[ElementTree.Element]:
    return [c for c in cell.iter(f"{SVG}circle") if c.attrib["class"] == "box"]


def lines(cell: ElementTree.Element) -> list[Box]:
    """The straight lines from sources to operations."""
    found = []
    for path in cell.iter(f"{SVG}path"):
        words = path.attrib["d"].split()
        if len(words) == 3 and words[2][0] == "H":
            x, y = float(words[0][1:]), float(words[1])
            found.append((x, y, float(words[2][1:]), y))
    return found


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] <= other[3] and other[1] <= one[3]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_drawing_shows_every_operation_and_covers_nothing(name: str) -> None:
    genotype = Genotype.published(name)
    cells = ElementTree.fromstring(draw_genotype(genotype)).findall(f"{SVG}g")
    for cell, pairs in zip(cells, (genotype.normal, genotype.reduce), strict=True):
        written = Counter(text.text for text in cell.iter(f"{SVG}text"))
        assert not Counter(operation for operation, _ in pairs) - written
        assert {str(node) for node in genotype.nodes} <= set(written)
        drawn = boxes(cell)
        assert len(drawn) == 2 + len(pairs) + len(genotype.nodes) + 1
        assert not [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if overlap(a, b)]
        assert len(lines(cell)) == len(pairs)
        # A line ends at its operation's border, and runs through no box on the way.
        assert not [(line, box) for line in lines(cell) for box in drawn if overlap(line, box)]


def test_control_boxes_that_cover_each_other_are_seen() -> None:
    assert overlap((0, 0, 10, 10), (9, 9, 20, 20))
    assert overlap((0, 5, 40, 5), (10, 0, 20, 10))
    assert not overlap((0, 0, 10, 10), (10, 0, 20, 10))
