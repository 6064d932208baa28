"""A training's rows as a picture: loss and accuracy by epoch as one SVG (no torch)."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 760, 280, 60
_COLOURS = ("#33658a", "#c8553d", "#5b8e7d", "#8d6a9f")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1a1a2e }
.title { font-size: 15px; font-weight: 600 }
.grid { stroke: #d9dee7; stroke-width: 1 }
.line { fill: none; stroke-width: 1.8 }
"""

RETRAIN_PANELS = {"loss": {"training": "loss"}, "accuracy": {"training": "accuracy"}}
SEARCH_PANELS = {
    "loss": {"weight half": "weight_loss", "architecture half": "arch_loss"},
    "accuracy": {"weight half": "weight_accuracy", "architecture half": "arch_accuracy"},
}


def draw_curves(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]]) -> str:
    """Return an SVG with a panel for each title, in it a line for each ``name: rows' column``.

    What a row does not have, or has as None, leaves a gap.
    """
    height = _HEIGHT * len(panels)
    drawn = "".join(
        f'<g transform="translate(0 {_HEIGHT * index})">{_panel(title, rows, lines)}</g>'
        for index, (title, lines) in enumerate(panels.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="training curves">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'
    )


def _panel(title: str, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, str]) -> str:
    columns = {name: [row.get(column) for row in rows] for name, column in lines.items()}
    known = [value for column in columns.values() for value in column if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    high = high if high > low else low + 1.0
    parts = [f'<text class="title" x="{_MARGIN}" y="24">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        parts.append(f'<path class="grid" d="M{_MARGIN} {y:.1f} H{_WIDTH - 20}"/>')
        label = f"{low + share * (high - low):.3g}"
        parts.append(f'<text x="{_MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for index, (name, column) in enumerate(columns.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = _path([None if v is None else (v - low) / (high - low) for v in column])
        parts.append(f'<path class="line" stroke="{colour}" d="{path}"/>')
        x = _MARGIN + 130 + 150 * index
        parts.append(f'<text x="{x}" y="24" style="fill:{colour}">{escape(name)}</text>')
    last = f"epoch {len(rows)}"
    parts.append(f'<text x="{_WIDTH - 20}" y="{_y(0) + 18:.1f}" text-anchor="end">{last}</text>')
    return "".join(parts)


def _y(share: float) -> float:
    return _HEIGHT - 40 - share * (_HEIGHT - 80)


def _path(shares: Sequence[float | None]) -> str:
    width = _WIDTH - _MARGIN - 20
    step = width / max(1, len(shares) - 1)
    words = []
    pen = "M"
    for index, share in enumerate(shares):
        if share is None:
            pen = "M"
            continue
        words.append(f"{pen}{_MARGIN + index * step:.1f} {_y(share):.1f}")
        pen = "L"
    if len(words) == 1:
        words.append("h1")  # one epoch is a dot
    return " ".join(words)
