"""A profile as a picture: one bar for each cell, its parts coloured by operation."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _LEFT, _TOP, _ROW = 860, 110, 84, 30
_COLOURS = (
    "#33658a", "#c8553d", "#5b8e7d", "#8d6a9f", "#d9a441",
    "#4f7cac", "#7f2d1f", "#a3c585", "#c9ada7", "#22577a",
    "#e07a9b", "#57cc99", "#b08968", "#3d3d5c", "#8d99ae",
)  # fmt: skip
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1a1a2e }
.title { font-size: 15px; font-weight: 600 }
.part { stroke: #ffffff; stroke-width: .6 }
"""


def draw_profile(
    bars: Mapping[str, Sequence[tuple[str, str, float]]], *, title: str, note: str
) -> str:
    """Return a self-contained SVG. ``bars``: for each bar its (operation, place, milliseconds).

    ``title`` must name the device; ``note`` says what the bars leave out.
    """
    totals: dict[str, float] = {}
    for parts in bars.values():
        for operation, _, milliseconds in parts:
            totals[operation] = totals.get(operation, 0.0) + milliseconds
    order = sorted(totals, key=lambda operation: (-totals[operation], operation))
    colours = {name: _COLOURS[min(i, len(_COLOURS) - 1)] for i, name in enumerate(order)}
    longest = max((sum(ms for _, _, ms in parts) for parts in bars.values()), default=0.0)
    drawn = [
        _bar(name, parts, _TOP + _ROW * index, longest or 1.0, colours)
        for index, (name, parts) in enumerate(bars.items())
    ]
    legend, legend_height = _legend(totals, order, colours, _TOP + _ROW * len(bars) + 24)
    height = _TOP + _ROW * len(bars) + 24 + legend_height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="profile">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="20" y="28">{escape(title)}</text>'
        f'<text x="20" y="52">{escape(note)}</text>{"".join(drawn)}{legend}</svg>\n'
    )


def _bar(
    name: str,
    parts: Sequence[tuple[str, str, Any]],
    y: int,
    longest: float,
    colours: Mapping[str, str],
) -> str:
    scale = (_WIDTH - _LEFT - 90) / longest
    x, drawn = float(_LEFT), []
    for operation, place, milliseconds in parts:
        width = milliseconds * scale
        drawn.append(
            f'<rect class="part" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 8}" '
            f'fill="{colours[operation]}"><title>{escape(place)}: {milliseconds:.3f} ms</title>'
            "</rect>"
        )
        x += width
    total = sum(milliseconds for _, _, milliseconds in parts)
    middle = y + _ROW / 2
    return (
        f'<text x="{_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>'
        f'{"".join(drawn)}<text x="{x + 8:.1f}" y="{middle:.0f}">{total:.2f} ms</text>'
    )


def _legend(
    totals: Mapping[str, float], order: Sequence[str], colours: Mapping[str, str], top: int
) -> tuple[str, int]:
    columns = 4
    drawn = []
    for index, name in enumerate(order):
        x, y = 20 + 208 * (index % columns), top + 22 * (index // columns)
        drawn.append(
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colours[name]}"/>'
            f'<text x="{x + 18}" y="{y}">{escape(name)} {totals[name]:.2f} ms</text>'
        )
    return "".join(drawn), 22 * -(-len(order) // columns)
