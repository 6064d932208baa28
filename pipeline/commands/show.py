"""``d2nas show``: a version, a run that trains, or the values of a preset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from d2nas.errors import ConfigError, StorageError

from .options import (
    DEFAULT_STORE,
    DataRootOption,
    ImageSizeOption,
    JsonOption,
    SetOption,
    StoreOption,
    with_options,
)


def show_command(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="RUN, RUN/STAGE@vN or an id.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="PRESET", help="Show a preset's values.")
    ] = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a version: metrics, lineage, files, configuration. Of a run that trains, also its last
    epoch and the cell so far. Or a preset's configuration.
    """
    if target is not None and config is None:
        show_target(target, store, as_json=as_json)
    elif config is not None and target is None:
        settings = with_options(settings, {"data.image_size": image_size})
        show_config(config, settings, data_root, as_json=as_json)
    else:
        raise ConfigError("show needs either a TARGET or --config PRESET")


def show_target(target: str, store: Path, *, as_json: bool) -> None:
    """Show a version: metrics, lineage, files, configuration."""
    from ..console import Console
    from ..report.terminal import fact_rows
    from ..running.listing import describe_target
    from ..stages import open_store

    described = describe_target(open_store(store), target)
    if as_json:
        Console().data(described)
    else:
        Console().facts(target, fact_rows(described))


def show_config(
    preset: str, settings: Sequence[str], data_root: str | None, *, as_json: bool
) -> None:
    """Show a preset's values with overrides on top, each with its source, and the image size that
    follows from them and the data.
    """
    from d2nas.config import override_key, sources_of
    from d2nas.config.registry import data_sets
    from d2nas.data.sizes import RULE, image_size
    from d2nas.data.sources import data_folder

    from ..console import Console
    from ..presets import preset_sources
    from ..report.terminal import config_rows
    from .configuration import configure, say_data

    config = configure(preset, settings, data_root)
    given = dict.fromkeys(map(override_key, settings), "--set")
    if data_root is not None:
        given["data.root"] = "--data-root"
    console, data = Console(), None
    if not data_sets.find(config.data.name).is_folder or config.data.root is not None:
        try:
            data = image_size(config.data, data_folder()).to_dict()
        except (ConfigError, StorageError) as error:  # the configuration can be shown all the same
            console.warn(f"of the images nothing is known: {error}")
    if config.data.image_size is None:
        size = "" if data is None else f" ({data['image_size']})"
        given["data.image_size"] = RULE if data is None else data["image_size_from"] + size
    sources = sources_of(preset_sources(preset, config.search.recipe) | given, config.search.method)
    if as_json:
        values = {**config.to_dict(), "sources": sources}
        console.data(values if data_root is None else {**values, "images": data})
        return
    console.table(preset, ("key", "value", "source"), config_rows(config, sources))
    if data is not None:
        say_data(console, data)
