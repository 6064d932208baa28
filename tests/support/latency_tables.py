"""Latency tables that nobody measured, for the networks of the tiny preset."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny import TinyPlace

from d2nas.files.text_files import read_space
from d2nas.genotype import uniform
from pipeline.commands.configuration import configure
from pipeline.latency.fitting import Line, Part
from pipeline.latency.limits import serving_of
from pipeline.latency.measuring import Wanted
from pipeline.latency.parts import operations_in
from pipeline.latency.table import FEWEST_NETWORKS, LatencyTable, Measured
from pipeline.preflight.plan import data_shape

DEVICE = {"kind": "cpu", "name": "Test", "label": "CPU Test, 1 thread", "num_threads": 1}


def wanted_by(place: TinyPlace) -> Wanted:
    """The network that the tiny preset trains."""
    config = configure(str(place.preset), [])
    shape = data_shape(config.data)
    serving = serving_of(
        config,
        channels=shape.channels,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
        batch=1,
    )
    retrain = config.retrain
    space = read_space(config.search.space)
    return Wanted(space, retrain.num_cells, retrain.init_channels, serving)


def table_of(wanted: Wanted, device: Mapping[str, Any] = DEVICE, **prices: float) -> LatencyTable:
    """A table by which an operation takes its price or 0.1 ms, and a cell 1 ms."""
    numbers, parts = random.Random(0), dict[Part, float]()
    sizes = (wanted.num_cells, wanted.init_channels)
    for _ in range(100):
        for shape, layout in wanted.cells(uniform(wanted.space, numbers)):
            parts[shape] = 1.0
            for part in operations_in(shape, layout):
                parts[part] = prices.get(part.operation, 0.1)
    return LatencyTable(
        device=device,
        runtime="1.0",
        serving=wanted.serving,
        outside={wanted.init_channels: 0.5},
        parts=parts,
        line=Line(0.25, 2.0),
        networks=[
            Measured(uniform(wanted.space, numbers), *sizes, 1.0, 0.0)
            for _ in range(FEWEST_NETWORKS)
        ],
    )


def written(place: TinyPlace, table: LatencyTable) -> Path:
    """The table as a file of a place."""
    path = place.folder / "latency.json"
    path.write_bytes(table.to_json())
    return path
