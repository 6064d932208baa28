"""``d2nas gc``: removal of what interrupted commands left and what lost its names."""

import contextlib
from typing import Annotated

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption


def gc_command(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    everything_unnamed: Annotated[
        bool,
        typer.Option(
            "--everything-unnamed",
            help="Also versions whose names are not seen, or were removed by hand.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what interrupted commands left, and unnamed versions."""
    from ..console import Console
    from ..stages import open_store
    from ..streams import optional_output

    opened, console = open_store(store), Console()
    act = opened.find_garbage if dry_run else opened.collect_garbage
    garbage = act(everything_unnamed=everything_unnamed)
    if not garbage:
        console.say(f"nothing to remove in {store}")
    if as_json:
        console.data(
            [
                {"path": str(item.path), "reason": item.reason, "bytes": item.size}
                for item in garbage
            ]
        )
    elif garbage or not console.on_terminal:
        title = "would be removed" if dry_run else "removed"
        cells = [(str(item.path), item.reason, f"{item.size:,}") for item in garbage]
        with contextlib.nullcontext() if dry_run else optional_output():
            console.table(title, ("path", "reason", "bytes"), cells)
