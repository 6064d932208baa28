"""``d2nas ls``: runs and versions of a store."""

from typing import Annotated

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption


def ls_command(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List runs and versions."""
    from ..console import Console
    from ..running.listing import list_rows
    from ..stages import open_store

    rows, console = list_rows(open_store(store), run), Console()
    if not rows:
        console.say(f"no versions in {store}; d2nas run quickstart makes the first ones")
    if as_json:
        console.data(rows)
        return
    columns = ("version", "created", "metrics", "id")
    cells = [
        # To the minute, as written: in UTC.
        (row["ref"], row["created"][:16].replace("T", " "), row["metrics"], row["id"][:12])
        for row in rows
    ]
    console.table("versions, by UTC", columns, cells)
