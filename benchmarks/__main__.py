"""Measurements on this machine, method against method: ``python -m benchmarks COMMAND``.

Ratios come from pairs in alternating order within one run. ``d2nas bench`` has those that users of
the tool ask for; what was measured stands in ``benchmarks/README.md``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from d2nas.config import Config, SearchConfig, build_config, parse_override
from d2nas.errors import ConfigError
from pipeline.cli import run
from pipeline.commands.options import (
    BundleArgument,
    DeviceOption,
    FullOption,
    JsonOption,
    SetOption,
    ThreadsOption,
)
from pipeline.console import Console

_TOP_OPERATORS = 20
PairsOption = Annotated[
    int, typer.Option("--pairs", min=1, max=10_000, help="Pairs per comparison.")
]

app = typer.Typer(
    name="benchmarks",
    help="Measure this machine, method against method.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("search")
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
    if profile:
        profile_search(settings or [], threads=threads, as_json=as_json)
    else:
        bench_search(settings or [], pairs=pairs, threads=threads, full=full, as_json=as_json)


@app.command("train")
def bench_train_command(
    settings: SetOption = None,
    pairs: PairsOption = 5,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time per retraining step, against a plain implementation of the same network."""
    bench_train(settings or [], pairs=pairs, threads=threads, as_json=as_json)


@app.command("runtime")
def bench_runtime_command(
    settings: SetOption = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=65_536, help="Images of one run.")
    ] = 1,
    pairs: PairsOption = 9,
    as_json: JsonOption = False,
) -> None:
    """ONNX Runtime's time over PyTorch's, without a compiler, in both memory layouts."""
    bench_runtime(settings or [], batch=batch, pairs=pairs, as_json=as_json)


@app.command("serve")
def bench_serve_command(
    bundle: BundleArgument,
    clients: Annotated[
        int, typer.Option("--clients", min=1, max=1024, help="Threads that ask.")
    ] = 8,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=1_000_000, help="Of each client.")
    ] = 500,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time requests to ``d2nas serve`` against direct calls of the same session."""
    bench_serve(bundle, clients=clients, requests=requests, device=device, as_json=as_json)


def bench_search(
    settings: Sequence[str], *, pairs: int, threads: int | None, full: bool, as_json: bool
) -> None:
    """Time methods against each other, and compare with the goal."""
    from benchmarks.pairs import COLUMNS, table_rows
    from benchmarks.search import compare_methods, passes_goal

    config = _prepare(settings, threads, "search").search
    console = Console()
    rows = []
    for found in compare_methods(config, pairs, full=full):
        rows += found
        for row in found:
            console.say(
                f"{row['case']} / {row['against']}, per {row['unit']}: {row['ratio_median']:.2f}"
            )
    if as_json:
        console.data(rows)
    else:
        console.table("time", COLUMNS, table_rows(rows), note=_setting(config))
    for case, ratio, limit in passes_goal(rows):
        state = "met" if ratio <= limit else "missed"
        console.say(f"goal: {case} per pass {ratio:.2f} <= {limit:.2f}: {state}")


def profile_search(settings: Sequence[str], *, threads: int | None, as_json: bool) -> None:
    """Show where the time of one step goes."""
    from benchmarks.search import group_shares, profile_step

    config = _prepare(settings, threads, "search").search
    console = Console()
    rows = profile_step(config)
    if as_json:
        console.data(rows)
        return
    cells = [
        (
            row["operator"],
            row["group"],
            str(row["calls"]),
            f"{row['self_ms']:.1f}",
            f"{100 * row['share']:.1f} %",
        )
        for row in rows[:_TOP_OPERATORS]
    ]
    columns = ("operator", "group", "calls", "own ms", "share")
    console.table(f"one step of {config.method}", columns, cells, note=_setting(config))
    groups = [(group, f"{100 * share:.1f} %") for group, share in group_shares(rows).items()]
    console.table("by group", ("group", "share"), groups)


def bench_train(settings: Sequence[str], *, pairs: int, threads: int | None, as_json: bool) -> None:
    """Time retraining against a plain implementation, and estimate what GPUs could do."""
    from benchmarks.pairs import COLUMNS, table_rows
    from benchmarks.train import GENOTYPE, GOAL, STEPS, compare_training, estimate

    # 16 images a batch: what two cores do in a second.
    config = _prepare(["retrain.batch_size=16", *settings], threads, "retrain").retrain
    console = Console()
    rows = compare_training(config, pairs, steps=STEPS)
    estimates = estimate(config)
    if as_json:
        console.data(rows)
    else:
        note = (
            f"{GENOTYPE}, {config.num_cells} cells x {config.init_channels} channels, batch "
            f"{config.batch_size}, 32 x 32 pixels, {config.precision}, device {config.device}, "
            f"{_threads()} threads"
        )
        console.table("time", COLUMNS, table_rows(rows), note=note)
        columns = ("GPU", "type", "multiply-adds", "bytes", "images/s at most", "bound by")
        cells = [
            (
                row["gpu"],
                row["precision"],
                f"{row['macs_per_image']:,}",
                f"{row['bytes_per_image']:,}",
                f"{row['images_per_second']:,.0f}",
                row["bound"],
            )
            for row in estimates
        ]
        note = "estimates from data sheets (roofline): nothing was measured on a GPU"
        console.table("estimate, per image", columns, cells, note=note)
    speedup = 1.0 / rows[-1]["ratio_median"]
    state = "met" if speedup >= GOAL else "missed"
    console.say(f"goal: {speedup:.2f}x images/s of plain >= {GOAL}: {state}")


def bench_runtime(settings: Sequence[str], *, batch: int, pairs: int, as_json: bool) -> None:
    """Time ONNX Runtime against PyTorch without a compiler, and compare with the goal."""
    from benchmarks.pairs import COLUMNS, table_rows
    from benchmarks.runtime import GENOTYPE, GOAL, compare_runtimes

    config = _prepare(settings, None, "retrain", "export", "validate")
    console = Console()
    rows = [row for found in compare_runtimes(config, batch, pairs) for row in found]
    if as_json:
        console.data(rows)
    else:
        retrain = config.retrain
        note = (
            f"{GENOTYPE}, {retrain.num_cells} cells x {retrain.init_channels} channels, batch "
            f"{batch}, 32 x 32 pixels, {config.export.precision}"
        )
        console.table("time", COLUMNS, table_rows(rows), note=note)
    speedup = 1.0 / rows[0]["ratio_median"]
    state = "met" if speedup >= GOAL else "missed"
    console.say(f"goal: {speedup:.2f}x as fast as contiguous eager >= {GOAL}: {state}")


def bench_serve(folder: Path, *, clients: int, requests: int, device: str, as_json: bool) -> None:
    """Time requests over HTTP against direct calls of the same session."""
    from benchmarks.serve import COLUMNS, compare_serving, table_rows

    console = Console()
    rows = compare_serving(folder, clients=clients, requests=requests, device=device)
    if as_json:
        console.data(rows)
    else:
        note = "one image a request; clients and server share this machine"
        console.table("requests", COLUMNS, table_rows(rows), note=note)


def _prepare(settings: Sequence[str], threads: int | None, *sections: str) -> Config:
    """Return the configuration. Raises ``ConfigError`` for keys that are of no such section."""
    for setting in settings:
        if parse_override(setting)[0] not in sections:
            example = "search.draws=3" if "search" in sections else "retrain.batch_size=32"
            known = ", ".join(f"{section}.*" for section in sections)
            raise ConfigError(
                f"--set {setting}: only {known} counts here", hint=f"for example {example}"
            )
    if threads is not None:
        torch.set_num_threads(threads)
    return build_config({}, settings, what="bench")


def _threads() -> int:
    return torch.get_num_threads()


def _setting(config: SearchConfig) -> str:
    return (
        f"{config.num_cells} cells x {config.init_channels} channels, batch {config.batch_size}, "
        f"32 x 32 pixels, {config.precision}, device {config.device}, "
        f"{_threads()} threads"
    )


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code, as ``d2nas`` has them."""
    return run([*arguments], app)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
