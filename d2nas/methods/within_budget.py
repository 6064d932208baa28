"""The most probable cells whose network keeps a budget, exactly (ours).

D2NAS's distribution is a product: of a node's pair of edges and of the operation on each of them.
The cost of a network is a sum over the same choices, but for poolings of one state, which cost
once. So the most probable cells within a budget are found node by node: of all that is chosen so
far only what no other choice beats in both, cost and probability, can be part of the best; among
choices that have paid for the same poolings. What is left at the end of both cell types is put
together in the same way. Nothing is approximated.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..costs import CellCosts
from ..errors import ConfigError
from ..genotype import Genotype
from ..nn.probability import node_pairs, operation_log_probabilities, pair_log_probabilities
from ..nn.sampling import ArchLogits, CellDraw, Draw
from ..spaces import CELL_TYPES
from .derivation import derive_genotype, genotype_of

Paid = frozenset[tuple[str, int]]
"""Merged operations and the predecessors on which they are computed already."""


@dataclass(frozen=True, slots=True)
class _Option:
    """Choice for one node: its edges, their columns, and what of it costs once."""

    edges: tuple[int, int]
    columns: tuple[int, int]
    log_probability: float
    cost: float
    """Without ``once``."""
    once: Mapping[tuple[str, int], float]


@dataclass(frozen=True, slots=True)
class _Front:
    """Choices that none beats in both: costs ascending, logarithms of probabilities ascending; and
    the options of each, a column per node so far.
    """

    costs: NDArray[np.float64]
    log_probabilities: NDArray[np.float64]
    options: NDArray[np.int64]


def most_probable_within(logits: ArchLogits, costs: CellCosts, limit: float) -> Genotype:
    """Return ``derive_genotype``'s genotype where its cost is at most ``limit``, else the most
    probable sub-network whose cost is.

    Raises ``ConfigError`` where none is, with the least cost, and what ``derive_genotype`` raises.
    """
    most_probable = derive_genotype(logits, logits.space)
    if costs.of(most_probable) <= limit:
        return most_probable
    tables = {cell: _options(logits, costs, cell) for cell in CELL_TYPES}
    room = limit - costs.base
    least = {cell: _least_cost(tables[cell]) for cell in CELL_TYPES}
    normal, reduce = (
        _front(tables[cell], room - least[other])
        for cell, other in zip(CELL_TYPES, reversed(CELL_TYPES), strict=True)
    )
    best, chosen = -np.inf, None
    for index, cost in enumerate(normal.costs):
        # Of the reduction cells that fit beside it the last one is the most probable.
        last = int(np.searchsorted(reduce.costs, room - cost, side="right")) - 1
        if last < 0:
            break
        value = normal.log_probabilities[index] + reduce.log_probabilities[last]
        if value > best:
            best, chosen = value, (normal.options[index], reduce.options[last])
    if chosen is None:
        raise ConfigError(
            f"no cell keeps {limit:g} {costs.unit}: the cheapest of the space takes "
            f"{costs.base + sum(least.values()):.3g} {costs.unit}",
            hint="fewer cells or channels, or a higher limit",
        )
    cells = [_draw(tables[cell], picks) for cell, picks in zip(CELL_TYPES, chosen, strict=True)]
    return genotype_of(Draw(*cells), logits.space)


def cheapest(costs: CellCosts) -> Genotype:
    """Return a genotype of the least cost of the space."""
    logits = ArchLogits(costs.space)
    picks = []
    for cell in CELL_TYPES:
        table = [
            [_without_probability(one) for one in node] for node in _options(logits, costs, cell)
        ]
        picks.append(_draw(table, _front(table, np.inf).options[0]))
    return genotype_of(Draw(*picks), costs.space)


@torch.no_grad()
def _options(logits: ArchLogits, costs: CellCosts, cell_type: str) -> list[list[_Option]]:
    """Return the choices of each node that can be part of the best."""
    log_p_EO = operation_log_probabilities(logits, cell_type).tolist()
    log_p_P = iter(pair_log_probabilities(logits.edges(cell_type)).tolist())
    cost_EO, space = costs.operations[cell_type], logits.space
    names = space.candidates(cell_type)
    exists = logits.choosable(cell_type).tolist()

    def columns(edge: int) -> list[int]:
        """Return the operations of an edge that can be part of the best: the merged ones, and of
        others those that none beats in both.
        """
        known = [column for column, is_there in enumerate(exists[edge]) if is_there]
        found = [column for column in known if names[edge][column] in costs.merged]
        best = -np.inf
        for column in sorted(
            set(known) - set(found), key=lambda one: (cost_EO[edge][one], -log_p_EO[edge][one])
        ):
            if log_p_EO[edge][column] > best:
                best = log_p_EO[edge][column]
                found.append(column)
        return sorted(found)

    def option(edges: tuple[int, int], chosen: tuple[int, int], log_p: float) -> _Option:
        cost, once = 0.0, dict[tuple[str, int], float]()
        for edge, column in zip(edges, chosen, strict=True):
            log_p += log_p_EO[edge][column]
            name = names[edge][column]
            if name in costs.merged:
                once[name, space.edges[edge][0]] = cost_EO[edge][column]
            else:
                cost += cost_EO[edge][column]
        return _Option(edges, chosen, log_p, cost, once)

    return [
        [
            option(edges, chosen, log_p)
            for edges, log_p in [(edges, next(log_p_P)) for edges in pairs]
            for chosen in itertools.product(columns(edges[0]), columns(edges[1]))
        ]
        for pairs in node_pairs(len(names))
    ]


def _steps(options: Sequence[_Option], paid: Paid) -> dict[Paid, list[tuple[int, float]]]:
    """Return what may follow where ``paid`` is paid for: options and costs, by what then is."""
    found: dict[Paid, list[tuple[int, float]]] = {}
    for index, option in enumerate(options):
        due = sum(cost for key, cost in option.once.items() if key not in paid)
        found.setdefault(paid.union(option.once), []).append((index, option.cost + due))
    return found


def _front(table: Sequence[Sequence[_Option]], room: float) -> _Front:
    """Return the cells of a type, of a cost of at most ``room``, that no other beats in both."""
    start = _Front(np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64))
    fronts: dict[Paid, _Front] = {frozenset(): start}
    for options in table:
        log_p = np.array([option.log_probability for option in options])
        reached: dict[Paid, list[_Front]] = {}
        for paid, front in fronts.items():
            for after, steps in _steps(options, paid).items():
                chosen = np.array([index for index, _ in steps])
                step_costs = np.array([cost for _, cost in steps])
                reached.setdefault(after, []).append(_extended(front, chosen, step_costs, log_p))
        fronts = {paid: _merged(parts, room) for paid, parts in reached.items()}
    return _merged([*fronts.values()], room)


def _extended(
    front: _Front, chosen: NDArray[np.int64], costs: NDArray[np.float64], log_p: NDArray[np.float64]
) -> _Front:
    """Return every choice of a front with every one of the next node's."""
    number = len(front.costs)
    before = np.repeat(np.arange(number), len(chosen))
    return _Front(
        np.add.outer(front.costs, costs).ravel(),
        np.add.outer(front.log_probabilities, log_p[chosen]).ravel(),
        np.column_stack([front.options[before], np.tile(chosen, number)]),
    )


def _merged(parts: Sequence[_Front], room: float) -> _Front:
    """Return what no other choice of all parts beats in both."""
    costs = np.concatenate([part.costs for part in parts])
    log_p = np.concatenate([part.log_probabilities for part in parts])
    options = np.concatenate([part.options for part in parts])
    order = np.lexsort((-log_p, costs))
    order = order[costs[order] <= room]
    best = np.maximum.accumulate(log_p[order])
    kept = order[log_p[order] > np.concatenate([[-np.inf], best[:-1]])]
    return _Front(costs[kept], log_p[kept], options[kept])


def _least_cost(table: Sequence[Sequence[_Option]]) -> float:
    """Return the least cost of a cell, by the same search without probabilities."""
    alike = [[_without_probability(option) for option in options] for options in table]
    return float(_front(alike, np.inf).costs[0])


def _without_probability(option: _Option) -> _Option:
    return replace(option, log_probability=0.0)


def _draw(table: Sequence[Sequence[_Option]], picks: NDArray[np.int64]) -> CellDraw:
    chosen = [options[pick] for options, pick in zip(table, picks.tolist(), strict=True)]
    return CellDraw.of_ones(
        tuple(_flat(option.edges for option in chosen)),
        tuple(_flat(option.columns for option in chosen)),
        None,
    )


def _flat(pairs: Iterator[tuple[int, int]]) -> Iterator[int]:
    return itertools.chain.from_iterable(pairs)
