"""Pictures of a classifier's answers: confusion matrix, reliability, and mistaken images."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from d2nas.measure.scores import NUM_BINS

from . import svg

MOST_DRAWN = 50
"""Classes of which a confusion matrix is drawn."""
_MATRIX, _LARGEST_CELL, _TEXT_CELL = 420, 32, 24
_LETTER, _NAME_LETTERS = 7, 17
"""Width of a letter in pixels, about, and letters of a name that are shown."""
_PLOT, _MARGIN = 240, 46
_TILE, _TILE_HEIGHT, _COLUMNS = 104, 146, 6
_RULES = """
text { font: 12px system-ui, sans-serif; fill: $soft }
.ink { fill: $ink }
.right { fill: $accent }
.wrong { fill: $second }
.cell { fill: $tint }
.paper { fill: $paper }
.grid { stroke: $rule; stroke-width: 1 }
.ideal { stroke: $middle; stroke-width: 1.2; stroke-dasharray: 5 4 }
.number { text-anchor: middle; fill: $ink }
.end { text-anchor: end }
.middle { text-anchor: middle }
image { image-rendering: auto }
"""
_DARK_RULES = """
text { fill: $soft }
.ink, .number { fill: $ink }
.right { fill: $accent }
.wrong { fill: $second }
.cell { fill: $tint }
.paper { fill: $paper }
.grid { stroke: $rule }
.ideal { stroke: $middle }
"""


class Picture(NamedTuple):
    """A mistaken image as PNG, its class, and the answer with its probability."""

    png: bytes
    label: str
    answer: str
    confidence: float


def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Return an SVG of a confusion matrix: a row for each class, a column for each answer, the
    stronger the larger the part of the class.
    """
    number = len(class_names)
    side = min(_LARGEST_CELL, _MATRIX // number)
    names = [_short(name) for name in class_names]
    left = 16 + _LETTER * max(map(len, names))
    top = left + 16
    parts = ['<text x="4" y="16">answers to the right, classes downwards</text>']
    for row, counts in enumerate(confusion):
        images = sum(counts)
        middle = top + (row + 0.5) * side + 4
        name, at = svg.text(names[row]), left + (row + 0.5) * side + 4
        parts.append(f'<text class="end" x="{left - 6}" y="{middle:.1f}">{name}</text>')
        parts.append(f'<text transform="translate({at:.1f} {top - 6}) rotate(-90)">{name}</text>')
        for column, found in enumerate(counts):
            x, y = left + column * side, top + row * side
            share = found / images if images else 0.0
            kind = "right" if row == column else "wrong"
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{side - 1}" height="{side - 1}"/>'
            )
            if found:
                label = f"{class_names[row]} taken for {class_names[column]}: {found} of {images}"
                parts.append(
                    f'<rect class="{kind}" x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" '
                    f'opacity="{0.15 + 0.75 * share:.3f}"><title>{svg.text(label)}</title></rect>'
                )
                if side >= _TEXT_CELL and found < 10_000:
                    at = x + side / 2
                    parts.append(f'<text class="number" x="{at}" y="{middle:.1f}">{found}</text>')
    width, height = max(left + number * side + 8, 260), top + number * side + 8
    return svg.document(width, height, "confusion matrix", _RULES, _DARK_RULES, "".join(parts))


def draw_reliability(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of accuracy by confidence: a bar for each bin, the stronger the more images it
    has; a calibrated classifier's bars end at the dashed line.
    """
    width = 1.0 / NUM_BINS
    most = max((row["images"] for row in rows), default=1)
    bottom, right = _MARGIN + _PLOT, _MARGIN + _PLOT
    parts = []
    for share in (0.0, 0.5, 1.0):
        y, x = bottom - share * _PLOT, _MARGIN + share * _PLOT
        parts.append(
            f'<path class="grid" d="M{_MARGIN} {y:.1f} H{right}"/>'
            f'<text class="end" x="{_MARGIN - 6}" y="{y + 4:.1f}">{share:g}</text>'
            f'<text class="middle" x="{x:.1f}" y="{bottom + 18}">{share:g}</text>'
        )
    for row in rows:
        height = row["accuracy"] * _PLOT
        x = _MARGIN + (row["up_to"] - width) * _PLOT
        label = (
            f"confidence {row['confidence']:.2f}: accuracy {row['accuracy']:.2f} of "
            f"{row['images']} images"
        )
        parts.append(
            f'<rect class="right" x="{x + 1:.1f}" y="{bottom - height:.1f}" '
            f'width="{width * _PLOT - 2:.1f}" height="{height:.1f}" '
            f'opacity="{0.25 + 0.65 * row["images"] / most:.3f}">'
            f"<title>{svg.text(label)}</title></rect>"
        )
    parts.append(f'<path class="ideal" d="M{_MARGIN} {bottom} L{right} {_MARGIN}"/>')
    parts.append(f'<text x="{_MARGIN}" y="24">accuracy upwards, confidence to the right</text>')
    size = _MARGIN + _PLOT + 28
    return svg.document(size, size, "reliability", _RULES, _DARK_RULES, "".join(parts))


def draw_mistakes(pictures: Sequence[Picture]) -> str:
    """Return an SVG of mistaken images, each with its class and the answer below it."""
    parts = []
    for index, picture in enumerate(pictures):
        x, y = (index % _COLUMNS) * _TILE + 4, (index // _COLUMNS) * _TILE_HEIGHT + 4
        source = "data:image/png;base64," + b64encode(picture.png).decode()
        side, label, answer = _TILE - 8, _short(picture.label), _short(picture.answer, 10)
        parts.append(
            f'<image href="{source}" x="{x}" y="{y}" width="{side}" height="{side}"/>'
            f'<text class="ink" x="{x}" y="{y + side + 16}">{svg.text(label)}</text>'
            f'<text x="{x}" y="{y + side + 32}">{svg.text(answer)} '
            f"{100 * picture.confidence:.0f} %</text>"
        )
    columns = min(_COLUMNS, max(1, len(pictures)))
    rows = max(1, -(-len(pictures) // _COLUMNS))
    return svg.document(
        columns * _TILE + 4,
        rows * _TILE_HEIGHT + 4,
        "images mistaken with the most confidence",
        _RULES,
        _DARK_RULES,
        "".join(parts),
    )


def _short(name: str, letters: int = _NAME_LETTERS) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
