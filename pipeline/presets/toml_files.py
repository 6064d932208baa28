"""Configuration files to change: a preset written out, and the JSON schema of such files."""

import json
import textwrap
from collections.abc import Collection
from typing import Any

from d2nas.config import RECIPES, Config

from . import preset_names

_WIDTH = 96


def as_file(start: str, config: Config, keys: Collection[str]) -> str:
    """Return a TOML file that starts from a preset: ``keys`` (``section.field``) with their values,
    all others as comments.
    """
    lines = [
        f"# Starts from {start}: what is not set here is as there, or the default.",
        f"preset = {json.dumps(start)}",
    ]
    for section, fields in config.to_dict().items():
        lines += ["", f"[{section}]"]
        docs = {
            info.alias or name: info.description
            for name, info in type(getattr(config, _attribute(section))).model_fields.items()
        }
        for name, value in fields.items():
            comment = textwrap.wrap(
                docs.get(name) or "", _WIDTH, initial_indent="# ", subsequent_indent="# "
            )
            lines += comment
            written = _toml("none" if value is None else value)
            mark = "" if f"{section}.{name}" in keys else "# "
            lines.append(f"{mark}{name} = {written}")
    return "\n".join(lines) + "\n"


def file_schema() -> dict[str, Any]:
    """Return the JSON schema of configuration files: all sections, and what stands beside them."""
    schema = Config.model_json_schema(by_alias=True)
    sections = dict(schema["properties"])
    some = {"type": "object", "properties": sections, "additionalProperties": False}
    beside = {
        "preset": {
            "type": "string",
            "description": "What the file starts from: a preset, or another file.",
            "examples": preset_names(),
        },
        "sources": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Where values come from, by key or by section.",
        },
        **{
            recipe: {**some, "description": f"Values with search.recipe = {recipe} alone."}
            for recipe in RECIPES
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "d2nas configuration",
        **schema,
        "properties": {**beside, **sections},
        "additionalProperties": False,
    }


def _attribute(section: str) -> str:
    names = (name for name, info in Config.model_fields.items() if (info.alias or name) == section)
    return next(names)


def _toml(value: Any) -> str:
    """Return a value as TOML: JSON's strings, numbers, booleans and lists are."""
    return json.dumps(value, ensure_ascii=False)
