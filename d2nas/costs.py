"""Costs of cells that add up over their edges: latency by a table, or any other."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .genotype import Genotype, places_of
from .spaces import CELL_TYPES, SearchSpace


@dataclass(frozen=True, slots=True)
class CellCosts:
    """Cost of a network by its cells: ``base`` and that of each edge's operation.

    ``operations``: for each cell type a row per edge of ``space`` with a cost per candidate, at
    least 0. An operation of ``merged`` costs once where several edges have it on one predecessor.
    """

    space: SearchSpace
    base: float
    operations: Mapping[str, Sequence[Sequence[float]]]
    merged: Collection[str] = ()
    quantity: str = "latency_ms"
    """``latency_ms``, ``macs`` or ``params``, as in the configuration's limits."""

    def describe(self, value: float) -> str:
        """Return a value with its unit, for people."""
        unit = {"latency_ms": "ms", "macs": "multiply-adds", "params": "parameters"}[self.quantity]
        is_small = self.quantity == "latency_ms" and value < 100.0
        return f"{value:.3g} {unit}" if is_small else f"{value:,.0f} {unit}"

    def of(self, genotype: Genotype) -> float:
        """Return the cost of a genotype's network. Raises ``ConfigError`` outside of the space."""
        total = self.base
        for cell_type in CELL_TYPES:
            counted = set[tuple[str, int]]()
            pairs = genotype.cell(cell_type)
            places = places_of(genotype, self.space, cell_type)
            for pair, (edge, column) in zip(pairs, places, strict=True):
                if pair[0] in self.merged and pair in counted:
                    continue
                counted.add(pair)
                total += self.operations[cell_type][edge][column]
        return total
