"""Measures a latency table: random cells of every shape, and a few whole networks, in turns."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d2nas.errors import ConfigError
from d2nas.genotype import Genotype, Pair, choices, uniform
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace

from ..identity.layout import DEPLOYED_OPERATIONS, CellLayout, Claim
from ..onnx_io.devices import Device
from ..onnx_io.runtime import load_runtime
from ..onnx_io.session import OnnxSession, open_session
from . import ROUNDS
from .fitting import Line, Part, Timed, calibrate, part_times
from .graphs import cell_graph, network_graph, outside_graph
from .parts import CellShape, Serving, network_cells, operations_in
from .table import LatencyTable, Measured
from .timing import InTurns, time_in_turns

CELLS_PER_OPERATION = 2
"""Random cells of a shape for each operation that is seen in no other shape."""
FEWEST_CELLS = 6
"""Of a shape whose operations are those of others: what is left to find is its own time."""
DEEP = 9
"""Cells of a network that has every shape of deeper ones: three before, between and after both
reductions.
"""
CALIBRATIONS = 8
"""Whole random networks that the table is fitted to, besides one of each operation alone."""
LARGEST_DRIFT = 1.1
"""Largest ratio of a table's networks' latency to what it was, up or down, that counts as the same
machine.
"""
NETWORK_WEIGHT = 3.0
"""How much less noise a whole network's time has than a cell's, in proportion (a choice)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Network whose parts are wanted: its size and space, and how it is served."""

    space: SearchSpace
    num_cells: int
    init_channels: int
    serving: Serving

    def claim(self, genotype: Genotype) -> Claim:
        """Return the network of a genotype."""
        return self.serving.claim(
            genotype, num_cells=self.num_cells, init_channels=self.init_channels
        )

    def cells(self, genotype: Genotype) -> list[tuple[CellShape, CellLayout]]:
        """Return the cells of its network, and those of one that is deep enough to have all shapes
        of deeper ones.
        """
        own = self.claim(genotype)
        return [
            cell
            for claim in (own, replace(own, num_cells=DEEP))
            for cell in network_cells(claim, self.serving.image_size)
        ]


@dataclass(frozen=True, slots=True)
class TimedCell:
    """A cell to time; without a layout what stands around it."""

    shape: CellShape
    layout: CellLayout | None


def cells_to_time(wanted: Wanted, numbers: random.Random) -> list[TimedCell]:
    """Return random cells of every shape of a network, and for each shape one without a cell.

    As many that every operation is seen often enough, those of a shape that has them first.
    """
    found, seen = list[TimedCell](), set[Part]()
    any_network = wanted.cells(uniform(wanted.space, numbers))
    shapes = {shape: position for position, (shape, _) in reversed([*enumerate(any_network)])}
    # Steady shapes first: those after stem or reduction have the same operations.
    for shape in sorted(shapes, key=lambda one: (len({*one.input_channels}), one)):
        own = {
            operation
            for genotype in (uniform(wanted.space, numbers) for _ in range(50))
            for operation in operations_in(*wanted.cells(genotype)[shapes[shape]])
        }
        count = max(FEWEST_CELLS, CELLS_PER_OPERATION * len(own - seen))
        seen |= own
        found.append(TimedCell(shape, None))
        for _ in range(count):
            _, layout = wanted.cells(uniform(wanted.space, numbers))[shapes[shape]]
            found.append(TimedCell(shape, layout))
    return found


def measure_table(
    wanted: Wanted,
    *,
    device: str,
    num_threads: int | None,
    rounds: int = ROUNDS,
    began: Callable[[int, int], None] = lambda _models, _rounds: None,
    done: Callable[[int], object] = lambda _round: None,
) -> LatencyTable:
    """Time the parts of a network on ``device`` and return their table.

    ``began`` is told the numbers of models and rounds, ``done`` each round that is over. Raises
    what ``open_session`` and the sessions raise.
    """
    return measure_beside(
        wanted, (), device=device, num_threads=num_threads, rounds=rounds, began=began, done=done
    )[0]


def measure_beside(
    wanted: Wanted,
    others: Sequence[Genotype],
    *,
    device: str,
    num_threads: int | None,
    rounds: int = ROUNDS,
    began: Callable[[int, int], None] = lambda _models, _rounds: None,
    done: Callable[[int], object] = lambda _round: None,
) -> tuple[LatencyTable, list[InTurns]]:
    """Return a table as ``measure_table``, and the times of other networks, which are no part of
    it, in the same rounds: whatever the machine does meanwhile, it does to all.
    """
    require_deployed(wanted.space)
    numbers = random.Random(0)
    cells = cells_to_time(wanted, numbers)
    genotypes = networks_to_time(wanted.space, numbers)
    serving = wanted.serving
    graphs = [
        outside_graph(wanted.claim(genotypes[0]), serving),
        *(cell_graph(cell.shape, cell.layout, serving) for cell in cells),
        *(network_graph(wanted.claim(genotype), serving) for genotype in (*genotypes, *others)),
    ]
    sessions = [open_session(graph, device=device, num_threads=num_threads) for graph in graphs]
    began(len(sessions), rounds)
    timings = iter(time_in_turns(sessions, serving.batch, rounds=rounds, done=done))
    outside = next(timings).quietest_ms
    of_cells = list(itertools.islice(timings, len(cells)))
    networks = [
        Measured(
            genotype, wanted.num_cells, wanted.init_channels, timing.quietest_ms, timing.spread
        )
        for genotype, timing in zip(genotypes, timings, strict=False)
    ]
    rows = [*_rows(cells, of_cells), *_network_rows(wanted, networks, outside)]
    table = LatencyTable(
        device=describe_device(sessions[0].device),
        runtime=str(load_runtime().__version__),
        serving=serving,
        outside={wanted.init_channels: outside},
        parts=part_times(rows),
        line=Line(0.0, 1.0),
        networks=networks,
    )
    line = calibrate(sums_of(table), [one.milliseconds for one in networks])
    return replace(table, line=line), list(timings)


def require_deployed(space: SearchSpace) -> None:
    """Raise ``ConfigError`` for a space of operations whose graphs are not known."""
    names = {name for cell in CELL_TYPES for edge in space.candidates(cell) for name in edge}
    unknown = names - {"none", *DEPLOYED_OPERATIONS}
    if unknown:
        raise ConfigError(
            f"latency of the operation {min(unknown)} of {space.name} is not supported",
            hint="noise is in no exported model, registered operations in no table",
        )


def networks_to_time(space: SearchSpace, numbers: random.Random) -> list[Genotype]:
    """Return random genotypes, and for each operation one that has it wherever the space does."""
    found = [uniform(space, numbers) for _ in range(CALIBRATIONS)]
    names = [name for cell in CELL_TYPES for edge in space.candidates(cell) for name in edge]
    for name in dict.fromkeys(names):
        if name in DEPLOYED_OPERATIONS:
            found.append(_with_operation(uniform(space, numbers), name, space))
    return found


def _with_operation(genotype: Genotype, name: str, space: SearchSpace) -> Genotype:
    def pairs(cell_type: str) -> tuple[Pair, ...]:
        return tuple(
            (name if name in choices(space, cell_type, source, node) else operation, source)
            for position, (operation, source) in enumerate(genotype.cell(cell_type))
            for node in [genotype.nodes[position // EDGES_PER_NODE]]
        )

    normal, reduce = (pairs(cell_type) for cell_type in CELL_TYPES)
    return Genotype(normal, reduce)


def _network_rows(
    wanted: Wanted, networks: Sequence[Measured], outside_ms: float
) -> Iterator[Timed]:
    """Yield the parts of each network and the time of all its cells."""
    for one in networks:
        parts: list[Part] = []
        cells = network_cells(wanted.claim(one.genotype), wanted.serving.image_size)
        for shape, layout in cells:
            parts += [shape, *operations_in(shape, layout)]
        taken = one.milliseconds
        yield Timed(parts, taken - outside_ms, taken / NETWORK_WEIGHT)


def sums_of(table: LatencyTable) -> list[float]:
    """Return the sum of the parts of each network that a table was calibrated with."""
    return [
        table.sum_of(one.genotype, num_cells=one.num_cells, init_channels=one.init_channels)
        for one in table.networks
    ]


def _rows(cells: Sequence[TimedCell], timings: Sequence[InTurns]) -> Iterator[Timed]:
    """Yield the parts of each cell and their time: without that of what stands around the cell."""
    around = {
        cell.shape: timing.quietest_ms
        for cell, timing in zip(cells, timings, strict=True)
        if cell.layout is None
    }
    for cell, timing in zip(cells, timings, strict=True):
        if cell.layout is not None:
            whole = timing.quietest_ms
            parts: list[Part] = [cell.shape, *operations_in(cell.shape, cell.layout)]
            yield Timed(parts, whole - around[cell.shape], whole)


def describe_device(device: Device) -> dict[str, Any]:
    """Return what a table says of its device."""
    facts: dict[str, Any] = {"kind": device.kind, "name": device.name, "label": device.label}
    for key in ("num_threads", "driver"):
        value = getattr(device, key, None)
        if value is not None:
            facts[key] = value
    return facts


def is_here(table: LatencyTable) -> bool:
    """Whether this machine has the device of a table."""
    graph = network_graph(table.networks[0].claim(table.serving), table.serving)
    try:
        session = open_session(graph, device=table.device["kind"])
    except ConfigError:
        return False
    return bool(session.device.name == table.device["name"])


@dataclass(frozen=True, slots=True)
class Drift:
    """A table's networks timed again: the ratio of each one's latency to that of the table."""

    ratios: Sequence[float]

    @property
    def middle(self) -> float:
        """The geometric mean of the ratios."""
        return math.exp(sum(map(math.log, self.ratios)) / len(self.ratios))

    @property
    def is_small(self) -> bool:
        """Whether the table still holds."""
        return 1 / LARGEST_DRIFT <= self.middle <= LARGEST_DRIFT


def time_again(
    table: LatencyTable,
    *,
    device: str,
    rounds: int = ROUNDS,
    done: Callable[[int], object] = lambda _round: None,
) -> tuple[Drift, dict[str, Any]]:
    """Time the networks of a table again; return how they have changed, and the device of now."""
    graphs = [network_graph(one.claim(table.serving), table.serving) for one in table.networks]
    threads = table.device.get("num_threads")
    sessions: list[OnnxSession] = [
        open_session(graph, device=device, num_threads=threads) for graph in graphs
    ]
    timings = time_in_turns(sessions, table.serving.batch, rounds=rounds, done=done)
    ratios = [
        timing.quietest_ms / one.milliseconds
        for timing, one in zip(timings, table.networks, strict=True)
    ]
    return Drift(ratios), describe_device(sessions[0].device)
