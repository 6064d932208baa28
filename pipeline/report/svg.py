"""SVG drawings: their palette, light and dark, their frame, and text that is safe in them."""

from html import escape
from string import Template

from .words import writable

LIGHT = {
    "paper": "#fff",
    "ink": "#1c2026",
    "soft": "#59616e",
    "rule": "#dfe3e9",
    "faint": "#b9c0ca",
    "middle": "#79828f",
    "tint": "#f2f4f7",
    "accent": "#2f6690",
    "wash": "#e3eef6",
    "second": "#b3481f",
    "third": "#3d7562",
    "fourth": "#7b568f",
}
DARK = {
    "paper": "#15181d",
    "ink": "#e4e7ec",
    "soft": "#a2abb8",
    "rule": "#323842",
    "faint": "#4b535f",
    "middle": "#8b94a2",
    "tint": "#22272f",
    "accent": "#7ab3dc",
    "wash": "#1d3344",
    "second": "#f0a07c",
    "third": "#86c9b0",
    "fourth": "#c5a3d8",
}
"""The colours of ``page.css``, where it has them, so that drawings have no edge on the page."""


def document(width: int, height: int, label: str, rules: str, dark_rules: str, body: str) -> str:
    """Return a self-contained SVG. The rules name colours as ``$ink``; ``dark_rules`` repeat those
    that have any.
    """
    style = Template(rules).substitute(LIGHT)
    dark = Template(dark_rules).substitute(DARK)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{label}">'
        f"<style>{style}@media screen and (prefers-color-scheme: dark) {{{dark}}}\n</style>"
        f'<rect class="paper" width="100%" height="100%"/>{body}</svg>\n'
    )


def text(value: object) -> str:
    """Return ``value`` as text between tags and in quoted attributes."""
    return escape(writable(str(value)), quote=True)
