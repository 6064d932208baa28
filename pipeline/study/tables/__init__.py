"""The studies that come with d2nas: one TOML file each, see ``pipeline.study.grid``."""

from typing import Any

from ...presets import names_in, read_named


def study_names() -> list[str]:
    """Return the names of all studies."""
    return names_in(__name__)


def read_study_file(name: str) -> dict[str, Any]:
    """Return a study's values, or those of a TOML file. Raises ``ConfigError``."""
    return read_named(name, package=__name__, kind="study")
