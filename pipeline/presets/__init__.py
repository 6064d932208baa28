"""The presets: one TOML file each, with only what differs from the defaults of ``d2nas.config``.

Its table ``[sources]`` says where those values come from: by key ("retrain.lr") or by section. A
file of the user's is read alike, and may start from another: ``preset = "folder"`` at its top.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from d2nas.errors import ConfigError
from d2nas.files.text_files import parse_toml, read_text

_MAX_LAYERS = 20


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return names_in(__name__)


def read_preset(name: str) -> dict[str, Any]:
    """Return the values of a preset or a TOML file, on top of those of the preset that it names.

    Raises ``ConfigError``.
    """
    values: dict[str, Any] = {}
    for layer in _layers(name):
        for section, fields in layer.values.items():
            base = values.get(section)
            if isinstance(base, Mapping) and isinstance(fields, Mapping):
                fields = {**base, **fields}
            values[section] = fields
    return values


def preset_sources(name: str) -> dict[str, str]:
    """Return ``section.field`` to source for every value of a preset or a TOML file.

    What a file names no source for has the file itself. Raises ``ConfigError``.
    """
    return {
        key: layer.sources.get(key, layer.sources.get(key.partition(".")[0], layer.name))
        for layer in _layers(name)
        for key in layer.names()
    }


def keys_of_own_files(name: str) -> list[str]:
    """Return the keys that files of the user's set, where ``name`` is one: no preset's.

    Raises ``ConfigError``.
    """
    presets = preset_names()
    return [key for layer in _layers(name) if layer.name not in presets for key in layer.names()]


def values_of_presets(name: str) -> dict[str, tuple[Any, str]]:
    """Return the keys whose values a preset sets, no file of the user's: value and preset.

    Raises ``ConfigError``.
    """
    presets = preset_names()
    found: dict[str, tuple[Any, str]] = {}
    for layer in _layers(name):
        for key in layer.names():
            section, _, field = key.partition(".")
            found[key] = layer.values[section][field], layer.name
    return {key: entry for key, entry in found.items() if entry[1] in presets}


@dataclass(frozen=True)
class _Layer:
    """One file of a configuration: its values, and their sources by key and by section."""

    name: str
    values: dict[str, Any]
    sources: dict[str, str]

    def names(self) -> list[str]:
        """Return the keys that it sets, ``section.field``."""
        return [
            f"{section}.{field}"
            for section, fields in self.values.items()
            if isinstance(fields, Mapping)
            for field in fields
        ]


def _layers(name: str) -> list[_Layer]:
    """Return a preset or TOML file after what it starts from, that after what that starts from."""
    found: list[_Layer] = []
    while True:
        layer, start = _read(name)
        found.insert(0, layer)
        if start is None:
            return found
        if any(start == earlier.name for earlier in found):
            raise ConfigError(f"{name}: preset = {start!r} starts from itself")
        if len(found) == _MAX_LAYERS:
            raise ConfigError(f"{name}: more than {_MAX_LAYERS} files, each starting from the next")
        name = start


def _read(name: str) -> tuple[_Layer, str | None]:
    """Return one file, and the preset or file that it names as its start."""
    values = read_named(name, package=__name__, kind="preset")
    start = values.pop("preset", None)
    if start is not None and not isinstance(start, str):
        raise ConfigError(
            f"{name}: preset must be the name of a preset or of a .toml file",
            hint=f'for example preset = "folder"; presets: {", ".join(preset_names())}',
        )
    if start is not None and start.endswith(".toml"):
        start = str(Path(name).parent / start)  # as whoever wrote the file sees it
    sources = values.pop("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(text, str) for text in sources.values()):
        raise ConfigError(
            f"{name}: sources must hold one text per key", hint='for example "retrain.lr" = "ours"'
        )
    layer = _Layer(name, values, sources)
    known = layer.names()
    for key in sources:
        if key not in known and key not in values:
            raise ConfigError(f"{name}: sources names {key}, which the file does not set")
    return layer, start


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
