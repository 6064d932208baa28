"""``d2nas config``: a preset as a file to change, and the schema that editors check it by."""

from pathlib import Path
from typing import Annotated

import typer

from .options import SetOption

config = typer.Typer(
    name="config",
    help="Copy a preset to a file; write the schema of such files.",
    rich_markup_mode=None,
)

NewFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to write; a new one.")]


@config.callback(invoke_without_command=True)
def _config(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@config.command("cp")
def copy_command(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A preset, or a TOML file.")],
    file: NewFileArgument,
    settings: SetOption = None,
) -> None:
    """Write a file that starts from a preset.

    What the preset and --set say stands in it, all other keys as comments with their defaults.
    """
    import os

    from d2nas.config import override_key

    from ..console import Console
    from ..presets import preset_sources
    from ..presets.toml_files import as_file
    from .configuration import configure, recipe_of

    built = configure(preset, settings)
    keys = {*preset_sources(preset, recipe_of(settings)), *map(override_key, settings or ())}
    # As whoever reads the new file will see the other one.
    start = os.path.relpath(preset, file.parent) if preset.endswith(".toml") else preset
    _write(file, as_file(start, built, keys))
    Console().say(f"{file}: d2nas run {file}")


@config.command("schema")
def schema_command(file: NewFileArgument) -> None:
    """Write the JSON schema of configuration files.

    An editor that reads TOML schemas takes it from a first line "#:schema FILE".
    """
    import json

    from ..console import Console
    from ..presets.toml_files import file_schema

    _write(file, json.dumps(file_schema(), indent=2) + "\n")
    Console().say(f'{file}: for editors, as first line of a configuration "#:schema {file}"')


def _write(file: Path, text: str) -> None:
    """Write a file that must not be there. Raises ``ConfigError`` and ``StorageError``."""
    from d2nas.errors import ConfigError

    from ..store import FileSystem

    path = file.absolute()
    try:
        FileSystem().publish_file(path, text.encode())
    except FileExistsError:
        raise ConfigError(f"{file} exists", hint="name a new file, or remove it first") from None
