"""``d2nas bench``: measurements of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORE, FullOption, JsonOption, StoreOption, ThreadsOption

bench = typer.Typer(
    name="bench", help="Measure memory and time on this machine.", rich_markup_mode=None
)


@bench.callback(invoke_without_command=True)
def _bench(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@bench.command("memory")
def bench_memory_command(
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or cuda:N; cpu computes nothing.")
    ] = "auto",
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the peak memory of a search step, method by method.

    The paper's Table 4 stands beside.
    """
    from .memory import show_memory

    show_memory(device, full=full, as_json=as_json)


@bench.command("profile")
def bench_profile_command(
    target: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, RUN/export@vN, a bundle, a .onnx file.")
    ],
    store: StoreOption = DEFAULT_STORE,
    batch: Annotated[int, typer.Option("--batch", min=1, max=65_536, help="Images at once.")] = 1,
    threads: ThreadsOption = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where an exported model's time on the CPU goes.

    By cell, by edge, by operation.
    """
    from ..bench.profile import attribution_note, draw, find_model, tables
    from ..console import Console
    from ..onnx_io.profile import profile_model
    from ..store import FileSystem

    name, model = find_model(target, store)
    if svg is not None:
        FileSystem().try_file(svg.absolute())
    profile = profile_model(model, batch=batch, num_threads=threads)
    if svg is not None:
        FileSystem().replace_file(svg.absolute(), draw(profile, name).encode())
    console = Console()
    if as_json:
        console.data({"model": name, **profile.to_dict()})
        return
    for title, columns, rows in tables(profile):
        console.table(title, columns, rows)
    console.note(f"{name} on {profile.device.label}, {attribution_note(profile)}")
