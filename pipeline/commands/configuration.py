"""Configuration that a command line asks for: of a preset, ``--set`` and the options for keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from d2nas.config import Config, build_config, override_key, parse_override
from d2nas.config.effects import effect_line, preset_line, without_effect
from d2nas.config.registry import data_sets
from d2nas.files.text_files import read_space
from d2nas.torchrun import is_first_rank

from ..console import Console
from ..presets import keys_of_own_files, read_preset, values_of_presets


def configure(preset: str, settings: Sequence[str] | None, data_root: str | None = None) -> Config:
    """Return a preset's configuration with overrides on top. Raises ``ConfigError``."""
    values = read_preset(preset, recipe_of(settings))
    if data_root is not None:
        values.setdefault("data", {})["root"] = data_root
    config = build_config(values, settings or (), what=preset)
    read_space(config.search.space)
    return config


def recipe_of(settings: Sequence[str] | None) -> str | None:
    """Return the ``search.recipe`` that settings choose; None where they choose none.

    Raises ``ConfigError``.
    """
    chosen = None
    for section, field, value in map(parse_override, settings or ()):
        if (section, field) == ("search", "recipe") and isinstance(value, str):
            chosen = value
    return chosen


def tell_unread(
    config: Config,
    settings: Sequence[str] | None,
    data_root: str | None = None,
    preset: str | None = None,
) -> dict[str, list[str]]:
    """Tell which keys that the user set change nothing, and return them by what makes them so;
    tell also which of a preset's values hold in place of the search method's own.

    The user's are those of ``settings``, ``data_root`` and, where ``preset`` is a file, its own.
    """
    if not is_first_rank():
        return {}
    keys = [] if preset is None else keys_of_own_files(preset, config.search.recipe)
    keys += [override_key(setting) for setting in settings or ()]
    keys += [] if data_root is None else ["data.root"]
    streams = _streams(config) if "data.workers" in keys else None
    found = without_effect(config, keys, streams=streams)
    of_presets = {} if preset is None else values_of_presets(preset, config.search.recipe)
    for line in (effect_line(found), preset_line(config, of_presets, keys)):
        if line is not None:
            Console().say(line)
    return found


def _streams(config: Config) -> bool | None:
    """Whether a folder's files will be read while training; None where it has no files."""
    data_set = data_sets.find(config.data.name)
    if not data_set.is_folder or data_set.always_streams:
        return None
    from d2nas.data.readers import streams

    from ..preflight.plan import data_shape

    shape = data_shape(config.data)
    # Test images, which are in memory too, are few beside the limit.
    return streams(config.data, shape.num_train * shape.channels * shape.image_size**2)


def say_data(console: Console, data: Mapping[str, Any]) -> None:
    """Say at which size images are used, and what their folder holds."""
    console.note(f"image size {data['image_size']}: {data['image_size_from']}")
    if data["pictures"] is not None:
        console.note(data["pictures"]["line"])
    for note in data["notes"]:
        console.warn(note)
