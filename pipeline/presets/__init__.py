"""The presets: one TOML file each, with only what differs from the defaults of ``d2nas.config``.

Tables ``[recommended.search]`` and ``[paper.search]`` hold what is set with one ``search.recipe``
only. ``[sources]`` says where values come from: by key ("retrain.lr") or by section. A file of the
user's is read alike, and may start from another: ``preset = "folder"`` at its top.
"""

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from d2nas.config import DEFAULT_RECIPE, RECIPES
from d2nas.errors import ConfigError
from d2nas.files.text_files import parse_toml, read_text

_MAX_LAYERS = 20


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return names_in(__name__)


def preset_about(name: str) -> str:
    """Return what a preset is for: the first sentence of its file."""
    text = (files(__name__) / f"{name}.toml").read_text("utf-8")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    words = " ".join(line.removeprefix("#").strip() for line in lines)
    return words.split(". ")[0].removesuffix(".")


def read_preset(name: str, recipe: str | None = None) -> dict[str, Any]:
    """Return the values of a preset or a TOML file, on top of those of the preset that it names.

    ``recipe``: in place of the file's own ``search.recipe``. Raises ``ConfigError``.
    """
    values: dict[str, Any] = {}
    for layer in _layers(name, recipe):
        values = _laid_over(values, layer.values)
    return values


def preset_sources(name: str, recipe: str | None = None) -> dict[str, str]:
    """Return ``section.field`` to source for every value of a preset or a TOML file.

    What a file names no source for has the file itself. Raises ``ConfigError``.
    """
    return {
        key: layer.sources.get(key, layer.sources.get(key.partition(".")[0], layer.name))
        for layer in _layers(name, recipe)
        for key in layer.names()
    }


def keys_of_own_files(name: str, recipe: str | None = None) -> list[str]:
    """Return the keys that files of the user's set, where ``name`` is one: no preset's.

    Raises ``ConfigError``.
    """
    presets = preset_names()
    return [
        key for layer in _layers(name, recipe) if layer.name not in presets for key in layer.names()
    ]


def values_of_presets(name: str, recipe: str | None = None) -> dict[str, tuple[Any, str]]:
    """Return the keys whose values a preset sets, no file of the user's: value and preset.

    Raises ``ConfigError``.
    """
    presets = preset_names()
    found: dict[str, tuple[Any, str]] = {}
    for layer in _layers(name, recipe):
        for key in layer.names():
            section, _, field = key.partition(".")
            found[key] = layer.values[section][field], layer.name
    return {key: entry for key, entry in found.items() if entry[1] in presets}


@dataclass(frozen=True)
class _Layer:
    """One file of a configuration: its values, those of one recipe only, and the sources of all by
    key and by section.
    """

    name: str
    values: dict[str, Any]
    of_recipes: dict[str, dict[str, Any]]
    sources: dict[str, str]

    @property
    def recipe(self) -> Any:
        """The ``search.recipe`` that it sets; None where it sets none."""
        search = self.values.get("search")
        return search.get("recipe") if isinstance(search, Mapping) else None

    def of(self, recipe: Any) -> "_Layer":
        """Return the file as it reads with a recipe."""
        own = self.of_recipes.get(recipe, {}) if isinstance(recipe, str) else {}
        return replace(self, values=_laid_over(self.values, own))

    def names(self) -> list[str]:
        """Return the keys that it sets, ``section.field``."""
        return [
            f"{section}.{field}"
            for section, fields in self.values.items()
            if isinstance(fields, Mapping)
            for field in fields
        ]


def _laid_over(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of ``values`` with the fields of ``over`` in place of theirs."""
    found = dict(values)
    for section, fields in over.items():
        base = found.get(section)
        both = isinstance(base, Mapping) and isinstance(fields, Mapping)
        found[section] = {**base, **fields} if both else fields  # type: ignore[dict-item]
    return found


def _layers(name: str, recipe: str | None) -> list[_Layer]:
    """Return a preset or TOML file after what it starts from, that after what that starts from; all
    as they read with ``recipe``, or with the one that the topmost sets.
    """
    found: list[_Layer] = []
    while True:
        layer, start = _read(name)
        found.insert(0, layer)
        if start is None:
            own = [one.recipe for one in found if one.recipe is not None]
            chosen = recipe or (own[-1] if own else DEFAULT_RECIPE)
            return [one.of(chosen) for one in found]
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
    of_recipes = {each: values.pop(each) for each in RECIPES if each in values}
    for each, sections in of_recipes.items():
        if not isinstance(sections, Mapping):
            raise ConfigError(
                f"{name}: {each} must hold sections", hint=f"for example [{each}.search]"
            )
    layer = _Layer(name, values, of_recipes, sources)
    known = [key for each in ("", *of_recipes) for key in layer.of(each).names()]
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
