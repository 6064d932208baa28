"""The presets: one TOML file each, with only what differs from the defaults of ``d2nas.config``."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

from d2nas.config import parse_toml, read_text
from d2nas.errors import ConfigError


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return names_in(__name__)


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's values, or those of a TOML file. Raises ``ConfigError``."""
    return read_named(name, package=__name__, kind="preset")


def run_name(preset: str) -> str:
    """Return the default run name: the preset's, or the TOML file's without its ending."""
    return Path(preset).stem if preset.endswith(".toml") else preset


def names_in(package: str) -> list[str]:
    """Return the names of the TOML files that a package holds."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(package).iterdir()
        if entry.name.endswith(".toml")
    )


def read_named(name: str, *, package: str, kind: str) -> dict[str, Any]:
    """Return the values of a package's TOML file, or of the file whose path ``name`` is.

    Raises ``ConfigError`` with the known names.
    """
    known = names_in(package)
    if name in known:
        return parse_toml((files(package) / f"{name}.toml").read_text("utf-8"), what=name)
    if name.endswith(".toml"):
        return parse_toml(read_text(Path(name)), what=name)
    close = difflib.get_close_matches(name, known, n=1)
    listed = f"{kind}s: " if kind == "preset" else "studies: "
    hint = listed + ", ".join(known) + ", or the path of a .toml file"
    raise ConfigError(
        f"unknown {kind} {name!r}", hint=f"did you mean {close[0]}? {hint}" if close else hint
    )
