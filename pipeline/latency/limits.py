"""Latency limits by a table: does it suit the network to be trained, and what do cells cost?"""

import random
from pathlib import Path

from d2nas.config import Config
from d2nas.costs import CellCosts
from d2nas.data.sizes import stem_for
from d2nas.errors import ConfigError
from d2nas.genotype import uniform
from d2nas.spaces import CELL_TYPES, SearchSpace

from .parts import MERGED, Serving, network_cells, operation_at
from .table import LatencyTable, describe_part, read_table

_MEASURE = "d2nas latency measure PRESET, with the settings of this run"


def open_table(path: str) -> LatencyTable:
    """Read a table. Raises ``ConfigError`` for a missing file and as ``read_table``."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file", hint="d2nas latency measure PRESET writes one")
    return read_table(Path(path).read_bytes(), what=path)


def serving_of(
    config: Config, *, channels: int, image_size: int, num_classes: int, batch: int
) -> Serving:
    """Return how a run's model will be served."""
    return Serving(
        image_size=image_size,
        in_channels=channels,
        num_classes=num_classes,
        stem=stem_for(config.retrain.stem, image_size),
        opset=config.export.opset,
        input_type=config.export.input,
        precision=config.export.precision,
        batch=batch,
    )


def check_suits(table: LatencyTable, config: Config, wanted: Serving) -> None:
    """Raise ``ConfigError`` where a table is of another kind of device than ``validate.device``
    names, or of models that are served otherwise.
    """
    if config.validate_.device != "auto":
        table.require_device(config.validate_.device.partition(":")[0])
    theirs, ours = table.serving.to_dict(), wanted.to_dict()
    for key, value in ours.items():
        if theirs[key] != value:
            raise ConfigError(
                f"the latency table is of models with {key}={theirs[key]}, this run's has {value}",
                hint=_MEASURE,
            )


def cell_costs(
    table: LatencyTable, space: SearchSpace, *, num_cells: int, init_channels: int
) -> CellCosts:
    """Return what cells of a space cost in a network of so many cells and channels.

    Raises ``ConfigError`` where the table lacks a shape or an operation of the space.
    """
    base, scale = table.outside_ms(init_channels), table.line.scale
    costs = {cell: [[0.0] * len(names) for names in space.candidates(cell)] for cell in CELL_TYPES}
    genotype = uniform(space, random.Random(0))  # shapes are those of any
    claim = table.claim(genotype, num_cells=num_cells, init_channels=init_channels)
    for shape, layout in network_cells(claim, table.serving.image_size):
        if shape not in table.parts:
            raise ConfigError(f"latency table: {describe_part(shape)} is missing", hint=_MEASURE)
        base += table.parts[shape]
        for edge, (source, _) in enumerate(space.edges):
            for column, name in enumerate(space.candidates(layout.cell_type)[edge]):
                if name == "none":
                    continue
                part = operation_at(shape, layout, name, source)
                if part not in table.parts:
                    raise ConfigError(
                        f"latency table: {describe_part(part)} is missing", hint=_MEASURE
                    )
                costs[layout.cell_type][edge][column] += scale * table.parts[part]
    return CellCosts(space, table.line.offset + scale * base, costs, MERGED)
