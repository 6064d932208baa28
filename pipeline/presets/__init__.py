"""The presets: one TOML file each, with only what differs from the defaults of ``d2nas.config``."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from d2nas.config import parse_toml, read_text
from d2nas.errors import ConfigError


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's values, or those of a TOML file. Raises ``ConfigError``."""
    if name in preset_names():
        return parse_toml((files(__name__) / f"{name}.toml").read_text("utf-8"), what=name)
    if name.endswith(".toml"):
        return parse_toml(read_text(Path(name)), what=name)
    raise ConfigError(f"unknown preset {name!r}", hint=_hint(name))


def run_name(preset: str) -> str:
    """Return the default run name: the preset's, or the TOML file's without its ending."""
    return Path(preset).stem if preset.endswith(".toml") else preset


def _hint(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, preset_names(), n=1)
    known = "presets: " + ", ".join(preset_names()) + ", or the path of a .toml file"
    return f"did you mean {close[0]}? {known}" if close else known
