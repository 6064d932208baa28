"""The presets: one TOML file each, with only what differs from the defaults of ``d2nas.config``.

Its table ``[sources]`` says where those values come from: by key ("retrain.lr") or by section.
"""

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from d2nas.config_files import parse_toml, read_text
from d2nas.errors import ConfigError


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return names_in(__name__)


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's values, or those of a TOML file. Raises ``ConfigError``."""
    values, _ = _read(name)
    return values


def preset_sources(name: str) -> dict[str, str]:
    """Return ``section.field`` to source for every value of a preset or a TOML file.

    What the file names no source for has the file itself. Raises ``ConfigError``.
    """
    values, sources = _read(name)
    return {
        f"{section}.{field}": sources.get(f"{section}.{field}", sources.get(section, name))
        for section, fields in values.items()
        if isinstance(fields, Mapping)
        for field in fields
    }


def _read(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    values = read_named(name, package=__name__, kind="preset")
    sources = values.pop("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(text, str) for text in sources.values()):
        raise ConfigError(
            f"{name}: sources must hold one text per key", hint='for example "retrain.lr" = "ours"'
        )
    known = {
        f"{section}.{field}"
        for section, fields in values.items()
        if isinstance(fields, Mapping)
        for field in fields
    }
    for key in sources:
        if key not in known and key not in values:
            raise ConfigError(f"{name}: sources names {key}, which the file does not set")
    return values, sources


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
    if kind == "preset" and Path(name).is_dir():
        raise ConfigError(
            f"{name} is a folder, not a preset", hint=f"d2nas run folder --data-root {name}"
        )
    close = difflib.get_close_matches(name, known, n=1)
    listed = f"{kind}s: " if kind == "preset" else "studies: "
    hint = listed + ", ".join(known) + ", or the path of a .toml file"
    raise ConfigError(
        f"unknown {kind} {name!r}", hint=f"did you mean {close[0]}? {hint}" if close else hint
    )
