"""Scales at which a study's grid can be run: one study's file for each that is not its own."""

from typing import Any

from ...presets import names_in, read_named

PAPER_SCALE = "paper"
"""The scale of a study's own file."""


def scale_names() -> list[str]:
    """Return the names of all scales."""
    return [*names_in(__name__), PAPER_SCALE]


def read_scale_file(name: str) -> dict[str, Any]:
    """Return a scale's values. Raises ``ConfigError``."""
    return read_named(name, package=__name__, kind="scale")
