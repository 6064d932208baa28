"""Front of latency and loss: the best cells within ever higher limits, beside random and published
ones.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2nas.costs import CellCosts
from d2nas.errors import ConfigError
from d2nas.genotype import PUBLISHED, Genotype, places_of, uniform
from d2nas.spaces import CELL_TYPES, SearchSpace

from ..latency.table import LatencyTable

if TYPE_CHECKING:
    from d2nas.methods.base import Method
    from d2nas.nn.sampling import ArchLogits
    from d2nas.train.candidates import Candidate

NUM_RANDOM = 20
"""Random cells beside a front."""
ROUNDS = 8
"""In which the cells are timed: fewer than a table's, as nothing is fitted to them."""


@dataclass(frozen=True, slots=True)
class FrontCell:
    """A cell of a front, or one beside it: ``front``, ``published`` or ``random``, and its name."""

    origin: str
    name: str
    genotype: Genotype


def front_cells(
    method: "type[Method]", logits: "ArchLogits", costs: CellCosts, points: int, *, seed: int
) -> list[FrontCell]:
    """Return the cells that a method's rule derives within ``points`` limits, evenly from the
    cheapest cell of the space to what it derives without a limit; then the published cells of the
    space, and random ones.
    """
    from d2nas.methods.within_budget import all_within, cheapest

    space = logits.space
    low, high = costs.of(cheapest(costs)), costs.of(method.derive_from(logits))
    limits = [low + (high - low) * number / (points - 1) for number in range(points)]
    found = all_within(method, logits, costs, limits)
    numbers = random.Random(seed)
    return [
        *(
            FrontCell("front", f"within {costs.describe(limit)}", genotype)
            for genotype, limit in dict(zip(reversed(found), reversed(limits), strict=True)).items()
        ),
        *(
            FrontCell("published", name, Genotype.published(name))
            for name in PUBLISHED
            if _is_in(Genotype.published(name), space)
        ),
        *(
            FrontCell("random", f"random {number}", uniform(space, numbers))
            for number in range(NUM_RANDOM)
        ),
    ]


def _is_in(genotype: Genotype, space: SearchSpace) -> bool:
    try:
        for cell_type in CELL_TYPES:
            places_of(genotype, space, cell_type)
    except ConfigError:
        return False
    return True


def measured(
    table: LatencyTable, cells: Sequence[FrontCell], *, num_cells: int, init_channels: int
) -> list[float] | None:
    """Return each cell's latency in the network to be trained, in milliseconds, timed in turns;
    None where this is not the table's device.
    """
    from ..latency.graphs import network_graph
    from ..latency.measuring import is_here
    from ..latency.timing import time_in_turns
    from ..onnx_io.session import open_session

    if not is_here(table):
        return None
    sizes = {"num_cells": num_cells, "init_channels": init_channels}
    claims = [table.serving.claim(cell.genotype, **sizes) for cell in cells]
    device, threads = table.device["kind"], table.device.get("num_threads")
    sessions = [
        open_session(network_graph(claim, table.serving), device=device, num_threads=threads)
        for claim in claims
    ]
    timings = time_in_turns(sessions, table.serving.batch, rounds=ROUNDS)
    return [timing.quietest_ms for timing in timings]


def front_rows(
    cells: Sequence[FrontCell],
    candidates: "Sequence[Candidate]",
    predicted: Sequence[float],
    measured_ms: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Return a row for each cell."""
    times: Sequence[float | None] = [None] * len(cells) if measured_ms is None else measured_ms
    return [
        {
            "origin": cell.origin,
            "name": cell.name,
            "genotype": cell.genotype.to_dict(),
            "predicted_ms": milliseconds,
            "measured_ms": taken,
            "accuracy": candidate.accuracy,
            "calibrated_loss": candidate.calibrated_loss,
        }
        for cell, candidate, milliseconds, taken in zip(
            cells, candidates, predicted, times, strict=True
        )
    ]


def front_line(rows: Sequence[dict[str, Any]], rank_by: str) -> str:
    """Return what is said of a front: its ends, and how it lies to random cells."""
    own = sorted((row for row in rows if row["origin"] == "front"), key=latency_of)
    others = [row["calibrated_loss"] for row in rows if row["origin"] == "random"]
    ends = " to ".join(
        f"{latency_of(row):.3g} ms with loss {row['calibrated_loss']:.3f}"
        for row in (own[0], own[-1])
    )
    return (
        f"front of {len(own)} cells: {ends} by {rank_by}; the middle of {len(others)} random cells "
        f"{statistics.median(others):.3f}"
    )


def latency_of(row: dict[str, Any]) -> float:
    """Return a row's latency: as measured, else as predicted."""
    taken: float | None = row["measured_ms"]
    return float(row["predicted_ms"]) if taken is None else taken
