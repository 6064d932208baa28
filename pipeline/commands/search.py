"""``d2nas search``: the search alone."""

from typing import Annotated

import typer

from d2nas.torchrun import is_one_of_several

from .options import (
    DEFAULT_STORE,
    DataRootOption,
    FreshOption,
    ImageSizeOption,
    JsonOption,
    NameOption,
    PresetArgument,
    ProcessesOption,
    SetOption,
    StoreOption,
    with_options,
)


def search_command(
    context: typer.Context,
    preset: PresetArgument,
    method: Annotated[
        str | None, typer.Option("--method", help="d2nas, darts, gdas, ... (search.method).")
    ] = None,
    name: NameOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    nproc: ProcessesOption = 1,
) -> int:
    """Search an architecture: writes architecture logits."""
    if nproc > 1 and not is_one_of_several():
        from ..running.launch import launch

        return launch(nproc, context.obj)

    from ..presets import run_name
    from .configuration import configure, tell_unread
    from .execution import execute, show_stage

    settings = with_options(settings, {"data.image_size": image_size, "search.method": method})
    config = configure(preset, settings, data_root)
    tell_unread(config, settings, data_root, preset)
    run = run_name(preset) if name is None else name
    result = execute(run, config, ("search",), store, fresh=fresh)
    show_stage(result, "search", as_json=as_json)
    return 0
