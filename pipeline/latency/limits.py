"""Costs of cells for limits: latency by a table that suits the network to be trained, or counts."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2nas.config import Config
from d2nas.config.registry import search_methods
from d2nas.costs import CellCosts
from d2nas.data.sizes import stem_for
from d2nas.errors import ConfigError
from d2nas.files.text_files import read_space
from d2nas.genotype import uniform
from d2nas.spaces import CELL_TYPES, SearchSpace

from ..identity.layout import DEPLOYED_OPERATIONS, Claim
from .counts import count_outside, count_part
from .fitting import Part
from .parts import MERGED, OperationShape, Serving, network_cells, operation_at
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
        precision=config.export.float_precision,
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


def costs_of(
    config: Config,
    quantity: str,
    space: SearchSpace,
    *,
    channels: int,
    image_size: int,
    num_classes: int,
) -> CellCosts:
    """Return what cells of a space cost in the network that a run trains: ``latency_ms`` by the
    table of ``run.latency_table``, ``macs`` or ``params`` as counted.

    Raises ``ConfigError`` for a table of other models and for one that lacks a part, and where
    operations of other packages would have to be counted.
    """
    retrain, shape = config.retrain, {"channels": channels, "image_size": image_size}
    sizes = {"num_cells": retrain.num_cells, "init_channels": retrain.init_channels}
    if quantity == "latency_ms":
        table = table_of(config)
        batch = table.serving.batch
        wanted = serving_of(config, **shape, num_classes=num_classes, batch=batch)
        check_suits(table, config, wanted)
        return latency_costs(table, space, **sizes)
    serving = serving_of(config, **shape, num_classes=num_classes, batch=1)
    return counted_costs(serving, quantity, space, **sizes)


def search_costs(
    config: Config, *, channels: int, image_size: int, num_classes: int
) -> CellCosts | None:
    """Return what a search's limit or weight is about, of the space that its method searches; None
    where it has neither. Raises as ``costs_of``.
    """
    search = config.search
    if search.limit is None and search.latency_weight is None:
        return None
    space = search_methods.find(search.method).searched_space(read_space(search.space))
    return costs_of(
        config,
        "latency_ms" if search.limit is None else search.limit.quantity,
        space,
        channels=channels,
        image_size=image_size,
        num_classes=num_classes,
    )


def costs_key(config: Config, quantity: str) -> dict[str, Any]:
    """Return what ``costs_of`` depends on besides the images and the space: of a table what it
    says, not where it lies.
    """
    retrain = config.retrain
    key = {name: getattr(retrain, name) for name in ("num_cells", "init_channels", "stem")}
    return key | ({"table": table_of(config).digest} if quantity == "latency_ms" else {})


def table_of(config: Config) -> LatencyTable:
    """Return the table of ``run.latency_table``, which must be given; raises as
    ``open_table``.
    """
    path = config.run.latency_table
    assert path is not None
    return open_table(path)


def latency_costs(
    table: LatencyTable, space: SearchSpace, *, num_cells: int, init_channels: int
) -> CellCosts:
    """Return the latency of cells of a space in a network of so many cells and channels.

    Raises ``ConfigError`` where the table lacks a shape or an operation of the space.
    """

    def price(part: Part) -> float:
        if part not in table.parts:
            raise ConfigError(f"latency table: {describe_part(part)} is missing", hint=_MEASURE)
        return scale * table.parts[part]

    scale, outside = table.line.scale, table.outside_ms(init_channels)
    claim = _any_network(table.serving, space, num_cells=num_cells, init_channels=init_channels)
    base, costs = _added_up(space, claim, table.serving.image_size, price)
    return CellCosts(space, table.line(outside) + base, costs, MERGED)


def counted_costs(
    serving: Serving, quantity: str, space: SearchSpace, *, num_cells: int, init_channels: int
) -> CellCosts:
    """Return the ``macs`` or ``params`` of cells of a space in a network of such a size.

    Raises ``ConfigError`` for operations of other packages.
    """

    def price(part: Part) -> float:
        if isinstance(part, OperationShape) and part.operation not in DEPLOYED_OPERATIONS:
            raise ConfigError(f"{quantity} of the operation {part.operation} are not known")
        return float(getattr(count_part(part), quantity))

    claim = _any_network(serving, space, num_cells=num_cells, init_channels=init_channels)
    base, costs = _added_up(space, claim, serving.image_size, price)
    outside = float(getattr(count_outside(claim, serving.image_size), quantity))
    return CellCosts(space, outside + base, costs, quantity=quantity)


def _any_network(
    serving: Serving, space: SearchSpace, *, num_cells: int, init_channels: int
) -> Claim:
    """Return a network of a size, whose cells have the shapes of any of that size."""
    genotype = uniform(space, random.Random(0))
    return serving.claim(genotype, num_cells=num_cells, init_channels=init_channels)


def _added_up(
    space: SearchSpace, claim: Claim, image_size: int, price: Callable[[Part], float]
) -> tuple[float, dict[str, list[list[float]]]]:
    """Return the price of all cells without their edges, and of each operation on each edge in all
    cells of a type.
    """
    base = 0.0
    costs = {cell: [[0.0] * len(names) for names in space.candidates(cell)] for cell in CELL_TYPES}
    for shape, layout in network_cells(claim, image_size):
        base += price(shape)
        for edge, (source, _) in enumerate(space.edges):
            for column, name in enumerate(space.candidates(layout.cell_type)[edge]):
                if name != "none":
                    part = operation_at(shape, layout, name, source)
                    costs[layout.cell_type][edge][column] += price(part)
    return base, costs
