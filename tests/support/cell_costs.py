"""Costs of cells, and all cells of a small space, for tests of limits."""

import itertools
import random
from collections.abc import Iterator

from d2nas.costs import CellCosts
from d2nas.genotype import Pair, choices
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace

POOLS = ("max_pool_3x3", "avg_pool_3x3")
NAMES = ("max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3")
SMALL = SearchSpace("small", (NAMES,) * 5, (NAMES[1:],) * 5)
"""Of two nodes."""


def costs_of(space: SearchSpace, seed: int, merged: tuple[str, ...] = POOLS) -> CellCosts:
    """Return random costs; poolings of one state cost the same on all edges from it."""
    numbers = random.Random(seed)
    operations = {
        cell: [[numbers.random() for _ in names] for names in space.candidates(cell)]
        for cell in CELL_TYPES
    }
    for cell, rows in operations.items():
        known = dict[tuple[str, int], float]()
        for edge, names in enumerate(space.candidates(cell)):
            for column, name in enumerate(names):
                if name in merged:
                    own = rows[edge][column]
                    rows[edge][column] = known.setdefault((name, space.edges[edge][0]), own)
    return CellCosts(space, 2.0, operations, merged)


def cells_of(space: SearchSpace, cell_type: str) -> Iterator[tuple[Pair, ...]]:
    """Yield all cells of a type."""
    nodes = []
    for node in space.nodes:
        nodes.append(
            [
                tuple(zip(names, sources, strict=True))
                for sources in itertools.combinations(range(node), EDGES_PER_NODE)
                for names in itertools.product(
                    *(choices(space, cell_type, source, node) for source in sources)
                )
            ]
        )
    for chosen in itertools.product(*nodes):
        yield tuple(itertools.chain.from_iterable(chosen))
