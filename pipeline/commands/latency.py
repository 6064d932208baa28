"""``d2nas latency``: what networks will take on a device, before any is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..latency import ROUNDS
from .options import (
    DataRootOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    SetOption,
    with_options,
)

if TYPE_CHECKING:
    from d2nas.config import Config

    from ..latency.measuring import Wanted
    from ..latency.table import LatencyTable

latency = typer.Typer(
    name="latency",
    help="Predict latency by a table of this machine.",
    rich_markup_mode=None,
)

TableArgument = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A file of d2nas latency measure.")
]
RoundsOption = Annotated[
    int, typer.Option("--rounds", min=2, max=1000, help="How often each model has its turn.")
]


@latency.callback(invoke_without_command=True)
def _latency(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@latency.command("measure")
def measure_command(
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="A preset, or the path of a TOML file.")
    ],
    settings: SetOption = None,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    classes: Annotated[
        int | None,
        typer.Option("--classes", min=1, max=1_000_000, help="Classes, where no images are here."),
    ] = None,
    device: DeviceOption = "auto",
    batch: Annotated[int, typer.Option("--batch", min=1, max=65_536, help="Images at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads; default: all.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write; default: latency-PRESET.json.")
    ] = None,
    rounds: RoundsOption = ROUNDS,
    as_json: JsonOption = False,
) -> None:
    """Time the parts of a preset's networks; write their table.

    Every operation is timed at every shape that they have. Needs no images where --image-size and
    --classes are given, and no PyTorch.
    """
    from ..console import Console
    from ..latency.measuring import measure_table
    from ..onnx_io.providers import runtime_device
    from ..store import FileSystem
    from .configuration import configure

    config = configure(preset, with_options(settings, {"data.image_size": image_size}), data_root)
    path = (to or Path(f"latency-{Path(preset).stem}.json")).absolute()
    FileSystem().try_file(path)
    console = Console()
    where = runtime_device(device)
    table = measure_table(
        _wanted(config, classes, batch),
        device=where,
        num_threads=threads if where == "cpu" else None,
        rounds=rounds,
        began=lambda models, rounds: console.say(
            f"timing {models} models in turns, {rounds} rounds, on {where}"
        ),
    )
    FileSystem().replace_file(path, table.to_json())
    _show(console, table, path, as_json=as_json)


@latency.command("show")
def show_command(table: TableArgument, as_json: JsonOption = False) -> None:
    """Show a table: device, operations, errors."""
    from ..console import Console

    _show(Console(), _read(table), table, as_json=as_json)


@latency.command("predict")
def predict_command(
    table: TableArgument,
    genotype: Annotated[
        str, typer.Option("--genotype", help="DARTS_V2, a file, or a printed Genotype(...).")
    ],
    cells: Annotated[
        int | None, typer.Option("--cells", min=1, max=1000, help="Default: the table's.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, help="Default: the table's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict latency, count multiply-adds, parameters, memory."""
    from dataclasses import asdict

    from d2nas.genotype import read_genotype

    from ..console import Console
    from ..latency.counts import count_network
    from ..latency.memory import least_memory

    found, console = _read(table), Console()
    size, serving, cell = found.networks[0], found.serving, read_genotype(genotype)
    sizes = {"num_cells": cells or size.num_cells, "init_channels": channels or size.init_channels}
    milliseconds = found.predict(cell, **sizes)
    claim = serving.claim(cell, **sizes)
    counts, memory = count_network(claim, serving.image_size), least_memory(claim, serving)
    if as_json:
        predicted = {"latency_ms": milliseconds, "batch": serving.batch, **sizes}
        console.data({**predicted, **asdict(counts), "least_memory_bytes": memory.total})
        return
    console.say(
        f"{milliseconds:.3g} ms for batch {serving.batch} of {sizes['num_cells']} cells x "
        f"{sizes['init_channels']} channels on {found.device['label']}: a prediction"
    )
    console.say(
        f"{counts.macs:,} multiply-adds for an image, {counts.params:,} parameters; memory of at "
        f"least {memory.total / 2**20:.3g} MiB: weights {memory.weights / 2**20:.3g}, maps alive "
        f"at once {memory.maps / 2**20:.3g}"
    )


@latency.command("check")
def check_command(
    table: TableArgument, rounds: RoundsOption = ROUNDS, as_json: JsonOption = False
) -> None:
    """Time a table's networks again: has the machine changed?

    Exit code 3 where that is by more than a tenth, or the device is another one.
    """
    from d2nas.errors import ValidationFailedError

    from ..console import Console
    from ..latency.measuring import time_again

    found, console = _read(table), Console()
    drift, now = time_again(found, device=found.device["kind"], rounds=rounds)
    if as_json:
        console.data({"ratio": drift.middle, "ratios": list(drift.ratios), "device": now})
    else:
        console.say(f"{len(drift.ratios)} networks take {drift.middle:.2f} x of the table's times")
    if now["name"] != found.device["name"]:
        raise ValidationFailedError(
            f"the latency table is of {found.device['label']}, this is {now['label']}",
            hint="d2nas latency measure PRESET",
        )
    if not drift.is_small:
        raise ValidationFailedError(
            f"{found.device['label']} has changed since the table was measured: networks take "
            f"{drift.middle:.2f} x as long",
            hint="d2nas latency measure PRESET, on a machine that does nothing else",
        )


def _wanted(config: "Config", classes: int | None, batch: int) -> "Wanted":
    """Return the network whose parts are to be timed."""
    from d2nas.files.text_files import read_space

    from ..latency.limits import serving_of
    from ..latency.measuring import Wanted
    from ..preflight.plan import data_shape

    data, size = config.data, config.data.image_size
    if classes is None or size is None:
        shape = data_shape(data)
        classes, size, channels = classes or shape.num_classes, shape.image_size, shape.channels
    else:
        channels = data.channels or 3
    serving = serving_of(
        config, channels=channels, image_size=size, num_classes=classes, batch=batch
    )
    space = read_space(config.search.space)
    return Wanted(space, config.retrain.num_cells, config.retrain.init_channels, serving)


def _read(path: Path) -> "LatencyTable":
    from ..latency.limits import open_table

    return open_table(str(path))


def _show(console: Any, table: "LatencyTable", path: Path, *, as_json: bool) -> None:
    from ..latency.summary import operation_rows, summary

    facts = summary(table)
    if as_json:
        console.data({"table": str(path), **facts})
        return
    columns, rows = operation_rows(table)
    console.table(f"milliseconds of an edge on {table.device['label']}", columns, rows)
    errors = facts["errors_of_left_out"]
    console.note(
        f"{len(errors)} networks took {facts['fastest_ms']:.3g} to "
        f"{facts['slowest_ms']:.3g} ms; each one predicted by parts that were fitted "
        "to it, too, and a line of the others: median error "
        f"{100 * facts['median_error']:.1f} %, largest {100 * facts['largest_error']:.1f} %"
    )
    console.note(
        f"the middle round was {100 * facts['spread']:.0f} % above the quietest, which counts; "
        "on a busy machine times are longer"
    )
    console.say(f"{path}: {table.digest[:12]}")
