"""The command ``bench``: measurements of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORE, BundleArgument, FullOption, JsonOption, SetOption, StoreOption

PairsOption = Annotated[
    int, typer.Option("--pairs", min=1, max=10_000, help="Pairs per comparison.")
]
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


@bench.command("search")
def bench_search_command(
    settings: SetOption = None,
    pairs: PairsOption = 5,
    threads: ThreadsOption = None,
    full: FullOption = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where one step's time goes instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time per search step and per sub-network pass, method against method."""
    from ..bench.commands import bench_search, profile_search

    if profile:
        profile_search(settings or [], threads=threads, as_json=as_json)
    else:
        bench_search(settings or [], pairs=pairs, threads=threads, full=full, as_json=as_json)


@bench.command("runtime")
def bench_runtime_command(
    settings: SetOption = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=65_536, help="Images of one run.")
    ] = 1,
    pairs: PairsOption = 9,
    as_json: JsonOption = False,
) -> None:
    """ONNX Runtime's time over PyTorch's, without a compiler, in both memory layouts."""
    from ..bench.commands import bench_runtime

    bench_runtime(settings or [], batch=batch, pairs=pairs, as_json=as_json)


@bench.command("train")
def bench_train_command(
    settings: SetOption = None,
    pairs: PairsOption = 5,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time per retraining step, against a plain implementation of the same network."""
    from ..bench.commands import bench_train

    bench_train(settings or [], pairs=pairs, threads=threads, as_json=as_json)


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


@bench.command("serve")
def bench_serve_command(
    bundle: BundleArgument,
    clients: Annotated[
        int, typer.Option("--clients", min=1, max=1024, help="Threads that ask.")
    ] = 8,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=1_000_000, help="Of each client.")
    ] = 500,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time requests to ``d2nas serve`` against direct calls of the same session."""
    from ..bench.commands import bench_serve

    bench_serve(bundle, clients=clients, requests=requests, device=device, as_json=as_json)
