"""The command ``bench``: measurements of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORE, FullOption, JsonOption, StoreOption

ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads; default: PyTorch's.")
]

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
    """The paper's Table 4 beside what is measured: peak bytes of a search step, per method."""
    from ..bench.commands import bench_memory

    bench_memory(device, full=full, as_json=as_json)


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
    """Show an exported model's time on the CPU by cell, by edge, by operation."""
    from ..bench.commands import bench_profile

    bench_profile(target, store, batch=batch, threads=threads, svg=svg, as_json=as_json)
