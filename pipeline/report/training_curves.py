"""A training's rows as a picture: loss and accuracy by epoch as one SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import svg

_WIDTH, _HEIGHT, _MARGIN = 430, 220, 56
"""Of a panel, and of the room left of it for numbers, in pixels: two stand side by side."""
_RIGHT = 12
_LETTER = 6.6
"""About the width of a letter in a line's name."""
_RULES = """
text { font: 12px system-ui, sans-serif; fill: $soft }
.title { font-size: 14px; font-weight: 600; fill: $ink }
.name { fill: currentColor }
.paper { fill: $paper }
.grid { stroke: $rule; stroke-width: 1 }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round }
.c0 { color: $accent }
.c1 { color: $second }
.c2 { color: $third }
.c3 { color: $fourth }
"""
_DARK_RULES = """
text { fill: $soft }
.title { fill: $ink }
.name { fill: currentColor }
.paper { fill: $paper }
.grid { stroke: $rule }
.c0 { color: $accent }
.c1 { color: $second }
.c2 { color: $third }
.c3 { color: $fourth }
"""
_NUM_COLOURS = 4

RETRAIN_PANELS = {"loss": {"training": "loss"}, "accuracy": {"training": "accuracy"}}
_HELD_OUT_PANELS = {
    title: {**lines, "held out": f"validation_{title}"} for title, lines in RETRAIN_PANELS.items()
}
SEARCH_PANELS = {
    "loss": {"weight half": "weight_loss", "architecture half": "arch_loss"},
    "accuracy": {"weight half": "weight_accuracy", "architecture half": "arch_accuracy"},
}


def retrain_panels(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, str]]:
    """Return the panels of a training, with what was held out where something was."""
    is_held_out = any("validation_loss" in row for row in rows)
    return _HELD_OUT_PANELS if is_held_out else RETRAIN_PANELS


def cost_panel(quantity: str) -> dict[str, dict[str, str]]:
    """Return the panel of what a search's cells cost."""
    title = {"latency_ms": "latency, ms", "macs": "multiply-adds", "params": "parameters"}[quantity]
    return {title: {"expected": f"expected_{quantity}", "derived": f"derived_{quantity}"}}


def draw_curves(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]]) -> str:
    """Return an SVG with a panel for each title, in it a line for each ``name: rows' column``.

    What a row does not have, or has as None, leaves a gap.
    """
    height = _HEIGHT * len(panels)
    drawn = "".join(
        f'<g transform="translate(0 {_HEIGHT * index})">{_panel(title, rows, lines)}</g>'
        for index, (title, lines) in enumerate(panels.items())
    )
    return svg.document(_WIDTH, height, "training curves", _RULES, _DARK_RULES, drawn)


def _panel(title: str, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, str]) -> str:
    columns = {name: [row.get(column) for row in rows] for name, column in lines.items()}
    known = [value for column in columns.values() for value in column if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    high = high if high > low else low + 1.0
    parts = [f'<text class="title" x="8" y="24">{svg.text(title.capitalize())}</text>']
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        parts.append(f'<path class="grid" d="M{_MARGIN} {y:.1f} H{_WIDTH - _RIGHT}"/>')
        label = f"{low + share * (high - low):.3g}"
        parts.append(f'<text x="{_MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    names = list(columns)
    for index, (name, column) in enumerate(columns.items()):
        end = _WIDTH - _RIGHT - sum(_LETTER * len(later) + 16 for later in names[index + 1 :])
        path = _path([None if v is None else (v - low) / (high - low) for v in column])
        parts.append(
            f'<g class="c{index % _NUM_COLOURS}"><path class="line" d="{path}"/>'
            f'<text class="name" x="{end:.0f}" y="24" text-anchor="end">{svg.text(name)}</text></g>'
        )
    below = _y(0) + 18
    if len(rows) > 1:
        parts.append(f'<text x="{_MARGIN}" y="{below:.1f}">epoch 1</text>')
    last = f"epoch {len(rows)}"
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{below:.1f}" text-anchor="end">{last}</text>')
    return "".join(parts)


def _y(share: float) -> float:
    return _HEIGHT - 36 - share * (_HEIGHT - 80)


def _path(shares: Sequence[float | None]) -> str:
    width = _WIDTH - _MARGIN - _RIGHT
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
