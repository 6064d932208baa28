"""A front of latency and loss as a picture: cells of a search, published and random ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import svg

_WIDTH, _HEIGHT = 430, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 50, 44
_TICKS = (0.0, 0.5, 1.0)
_RULES = """
text { font: 12px system-ui, sans-serif; fill: $soft }
.title { font-size: 14px; font-weight: 600; fill: $ink }
.paper { fill: $paper }
.grid { stroke: $rule; stroke-width: 1 }
.line { fill: none; stroke: $accent; stroke-width: 1.8 }
.front { fill: $accent }
.published { fill: $second }
.random { fill: $faint }
.chosen { fill: none; stroke: $ink; stroke-width: 1.5 }
"""
_DARK_RULES = """
text { fill: $soft }
.title { fill: $ink }
.paper { fill: $paper }
.grid { stroke: $rule }
.line { stroke: $accent }
.front { fill: $accent }
.published { fill: $second }
.random { fill: $faint }
.chosen { stroke: $ink }
"""
_ORIGINS = ("random", "published", "front")
"""Drawn in this order, so that the front is on top."""


def draw_front(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    """Return an SVG of the rows of ``front.json``; the genotype ``chosen`` is ringed.

    Latency to the right, calibrated loss upwards: what is low and left is best.
    """
    is_measured = all(row["measured_ms"] is not None for row in rows)
    key = "measured_ms" if is_measured else "predicted_ms"
    points = [(row, float(row[key]), float(row["calibrated_loss"])) for row in rows]
    across = _Scale([x for _, x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale([y for *_, y in points], _HEIGHT - _BOTTOM, _TOP)
    parts = ['<text class="title" x="8" y="20">Latency and loss of cells</text>', _legend()]
    for share in _TICKS:
        x, y = across.at(share), up.at(share)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f} H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{up.value(share):.3g}</text>'
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{across.value(share):.3g}</text>"
        )
    how = "measured" if is_measured else "predicted"
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">ms, {how}; upwards: calibrated loss</text>')
    line = sorted((x, y) for row, x, y in points if row["origin"] == "front")
    path = " L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in line)
    parts.append(f'<path class="line" d="M{path}"/>')
    for origin in _ORIGINS:
        for row, x, y in points:
            if row["origin"] == origin:
                label = f"{row['name']}: {x:.3g} ms, loss {y:.4f}"
                parts.append(
                    f'<circle class="{origin}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="4">'
                    f"<title>{svg.text(label)}</title></circle>"
                )
                if origin == "front" and row["genotype"] == chosen:
                    parts.append(
                        f'<circle class="chosen" cx="{across(x):.1f}" cy="{up(y):.1f}" r="7"/>'
                    )
    return svg.document(
        _WIDTH, _HEIGHT, "latency and loss of cells", _RULES, _DARK_RULES, "".join(parts)
    )


class _Scale:
    """From values to positions between two ends, with a little room."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        room = 0.05 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
        self._low, self._high = min(values) - room, max(values) + room
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return self.at((value - self._low) / (self._high - self._low))

    def at(self, share: float) -> float:
        """Return the position of a share of the way."""
        return self._start + share * (self._end - self._start)

    def value(self, share: float) -> float:
        """Return the value at a share of the way."""
        return self._low + share * (self._high - self._low)


def _legend() -> str:
    words = {"front": "search", "published": "published", "random": "random"}
    return "".join(
        f'<circle class="{origin}" cx="{_LEFT + 90 * index}" cy="36" r="4"/>'
        f'<text x="{_LEFT + 9 + 90 * index}" y="40">{word}</text>'
        for index, (origin, word) in enumerate(words.items())
    )
