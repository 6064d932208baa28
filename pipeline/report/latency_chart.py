"""Latency by batch size as a drawing that keeps its letters' size at every width.

Distances across are per cent of the page, so nothing is scaled; the page's style colours it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import svg
from .words import milliseconds

_LEFT, _RIGHT = 19.0, 78.0
"""Ends of the scale, in per cent of the width."""
_TOP, _ROW, _BELOW = 6, 42, 30
_MAX_TICKS = 5
_SPAN = ("p99_ms", "p95_ms", "p90_ms")


def latency_chart(records: Sequence[Mapping[str, Any]], label: str) -> str:
    """Return a row for each record: fastest to slowest run, p50 to the highest percentile known.

    The scale is logarithmic. Nothing for records without times.
    """
    rows = [record for record in records if _is_drawable(record)]
    if not rows:
        return ""
    low = min(record["min_ms"] for record in rows) / 1.2
    high = max(record["max_ms"] for record in rows) * 1.2
    bottom = _TOP + _ROW * len(rows)
    parts = [_draw_tick(tick, _x(tick, low, high), bottom) for tick in _ticks(low, high)]
    parts += [
        _draw_row(record, low, high, _TOP + _ROW * index + _ROW / 2)
        for index, record in enumerate(rows)
    ]
    spoken = "; ".join(
        f"batch {record['batch']}: {milliseconds(record['min_ms'])} to "
        f"{milliseconds(record['max_ms'])} ms, {_name(record)} {milliseconds(_middle(record))} ms"
        for record in rows
    )
    return (
        f'<svg class="chart" role="img" aria-label="{svg.text(f"{label}. {spoken}")}" width="100%" '
        f'height="{bottom + _BELOW}">{"".join(parts)}</svg>'
    )


def _is_drawable(record: Mapping[str, Any]) -> bool:
    if record.get("batch") is None:
        return False
    times = [record.get("min_ms"), record.get("max_ms"), record.get("mean_ms")]
    return all(isinstance(time, int | float) and 0 < time < math.inf for time in times)


def _middle(record: Mapping[str, Any]) -> float:
    p50 = record.get("p50_ms")
    return float(record["mean_ms"] if p50 is None else p50)


def _name(record: Mapping[str, Any]) -> str:
    return "mean" if record.get("p50_ms") is None else "p50"


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * math.log(value / low) / math.log(high / low)


def _ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= _MAX_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]


def _draw_tick(value: float, x: float, bottom: int) -> str:
    return (
        f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_TOP}" y2="{bottom}" />'
        f'<text class="axis" x="{x:.2f}%" y="{bottom + 18}">{value:g} ms</text>'
    )


def _draw_row(record: Mapping[str, Any], low: float, high: float, y: float) -> str:
    slowest_known = next((record[key] for key in _SPAN if record.get(key) is not None), None)
    middle, steady = _middle(record), record.get("stable") is True
    parts = [
        f'<text class="name" x="0" y="{y + 4:.1f}">batch {svg.text(record["batch"])}</text>',
        _draw_line("whole", record["min_ms"], record["max_ms"], (low, high), y),
    ]
    if slowest_known is not None and slowest_known >= middle:
        parts.append(_draw_line("span", middle, slowest_known, (low, high), y))
    parts.append(
        f'<circle class="dot" cx="{_x(middle, low, high):.2f}%" cy="{y:.1f}" r="5" />'
        f'<text class="value" x="100%" y="{y + (4 if steady else -3):.1f}">'
        f"{milliseconds(middle)} ms</text>"
    )
    if not steady:
        parts.append(f'<text class="value warn" x="100%" y="{y + 12:.1f}">UNSTABLE</text>')
    return f'<g class="{"steady" if steady else "unstable"}">{"".join(parts)}</g>'


def _draw_line(class_: str, start: float, end: float, scale: tuple[float, float], y: float) -> str:
    x1, x2 = (f"{_x(value, *scale):.2f}%" for value in (start, end))
    return f'<line class="{class_}" x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}" />'
