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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import Limit
from ..costs import CellCosts
from ..errors import ConfigError
from ..genotype import Genotype
from ..nn.probability import node_pairs
from ..nn.sampling import ArchLogits, CellDraw, Draw
from ..spaces import CELL_TYPES
from .base import Method
from .derivation import genotype_of

ROUNDING = 1e-9
"""Relative difference of costs that are added up in different orders."""
Paid = frozenset[tuple[str, int]]
"""Merged operations and the predecessors on which they are computed already."""


@dataclass(frozen=True, slots=True)
class _Option:
    """Choice for one node: its edges, their columns, and what of it costs once."""

    edges: tuple[int, int]
    columns: tuple[int, int]
    score: float
    cost: float
    """Without ``once``."""
    once: Mapping[tuple[str, int], float]


@dataclass(frozen=True, slots=True)
class _Front:
    """Choices that none beats in both: costs ascending, scores ascending; and the options of each,
    a column per node so far.
    """

    costs: NDArray[np.float64]
    scores: NDArray[np.float64]
    options: NDArray[np.int64]


def keeps(cost: float, limit: float) -> bool:
    """Whether a cost is at most a limit, but for the rounding of sums in different orders."""
    return cost <= limit * (1 + ROUNDING)


def best_within(kind: type[Method], logits: ArchLogits, costs: CellCosts, limit: float) -> Genotype:
    """Return the genotype that a method's rule derives where its cost is at most ``limit``, else
    the one of the largest sum of ``kind.choice_scores`` whose cost is.

    Raises ``ConfigError`` where none is, with the least cost, and what the rule raises.
    """
    return all_within(kind, logits, costs, [limit])[0]


def all_within(
    kind: type[Method], logits: ArchLogits, costs: CellCosts, limits: Sequence[float]
) -> list[Genotype]:
    """Return what ``best_within`` does for each limit; raises as it does."""
    derived = kind.derive_from(logits)
    cost = costs.of(derived)
    lower = [limit for limit in limits if not keeps(cost, limit)]
    found = _within(kind, logits, costs, lower) if lower else {}
    return [found.get(limit, derived) for limit in limits]


def _within(
    kind: type[Method], logits: ArchLogits, costs: CellCosts, limits: Sequence[float]
) -> dict[float, Genotype]:
    """Return the genotype of the largest score within each limit."""
    tables = {
        cell: _options(costs, cell, *_lists(kind.choice_scores(logits, cell)))
        for cell in CELL_TYPES
    }
    least = {cell: float(_front(_alike(costs, cell), np.inf).costs[0]) for cell in CELL_TYPES}
    room = _room(costs, max(limits))
    normal, reduce = (
        _front(tables[cell], room - least[other])
        for cell, other in zip(CELL_TYPES, reversed(CELL_TYPES), strict=True)
    )
    found = {}
    for limit in limits:
        chosen = _best_pair(normal, reduce, _room(costs, limit))
        if chosen is None:
            cell = cheapest(costs)
            raise ConfigError(
                f"no cell keeps {costs.describe(limit)}: the cheapest of the space takes "
                f"{costs.describe(costs.of(cell))} ({cell.describe('normal')})",
                hint="fewer cells or channels, or a higher limit",
            )
        cells = (_draw(tables[cell], picks) for cell, picks in zip(CELL_TYPES, chosen, strict=True))
        found[limit] = genotype_of(Draw(*cells), logits.space)
    return found


def _room(costs: CellCosts, limit: float) -> float:
    """Return what the choices may cost."""
    return limit * (1 + ROUNDING) - costs.base


def _best_pair(
    normal: _Front, reduce: _Front, room: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the options of the normal and the reduction cell of the largest score within
    ``room``; None where none are.
    """
    best, chosen = -np.inf, None
    for index, cost in enumerate(normal.costs):
        # Of the reduction cells that fit beside it the last one has the best score.
        last = int(np.searchsorted(reduce.costs, room - cost, side="right")) - 1
        if last < 0:
            break
        value = normal.scores[index] + reduce.scores[last]
        if value > best:
            best, chosen = value, (normal.options[index], reduce.options[last])
    return chosen


def cheapest(costs: CellCosts) -> Genotype:
    """Return a genotype of the least cost of the space: where all scores are alike, one is left."""
    tables = [_alike(costs, cell) for cell in CELL_TYPES]
    return genotype_of(
        Draw(*(_draw(table, _front(table, np.inf).options[0]) for table in tables)), costs.space
    )


def least_cost(costs: CellCosts, limit: Limit) -> float:
    """Return what the cheapest cell of a space costs.

    Raises ``ConfigError`` where that is above the limit.
    """
    found = cheapest(costs)
    least = costs.of(found)
    if not keeps(least, limit.value):
        raise ConfigError(
            f"no cell keeps {limit.key}={limit.value:g}: the cheapest of {costs.space.name} takes "
            f"{costs.describe(least)} ({found.describe('normal')})",
            hint="a higher limit, or fewer retrain.num_cells or retrain.init_channels",
        )
    return least


def _lists(scores: tuple[Tensor, Tensor]) -> tuple[list[float], list[list[float]]]:
    pairs_P, ops_EO = scores
    return pairs_P.tolist(), ops_EO.tolist()


def _alike(costs: CellCosts, cell_type: str) -> list[list[_Option]]:
    """Return the choices of each node without scores."""
    candidates = costs.space.candidates(cell_type)
    rows = [[-np.inf if name == "none" else 0.0 for name in names] for names in candidates]
    number = sum(map(len, node_pairs(len(candidates))))
    return _options(costs, cell_type, [0.0] * number, rows)


def _options(
    costs: CellCosts, cell_type: str, score_P: Sequence[float], score_EO: Sequence[Sequence[float]]
) -> list[list[_Option]]:
    """Return the choices of each node that can be part of the best."""
    cost_EO, space = costs.operations[cell_type], costs.space
    names, of_pair = space.candidates(cell_type), iter(score_P)

    def columns(edge: int) -> list[int]:
        """Return the operations of an edge that can be part of the best: the merged ones, and of
        others those that none beats in both.
        """
        scores = score_EO[edge]
        known = [column for column in range(len(names[edge])) if scores[column] > -np.inf]
        found = [column for column in known if names[edge][column] in costs.merged]
        best = -np.inf
        for column in sorted(
            set(known) - set(found), key=lambda one: (cost_EO[edge][one], -scores[one])
        ):
            if scores[column] > best:
                best = scores[column]
                found.append(column)
        return sorted(found)

    def option(edges: tuple[int, int], chosen: tuple[int, int], score: float) -> _Option:
        cost, once = 0.0, dict[tuple[str, int], float]()
        for edge, column in zip(edges, chosen, strict=True):
            score += score_EO[edge][column]
            name = names[edge][column]
            if name in costs.merged:
                once[name, space.edges[edge][0]] = cost_EO[edge][column]
            else:
                cost += cost_EO[edge][column]
        return _Option(edges, chosen, score, cost, once)

    return [
        [
            option(edges, chosen, score)
            for edges, score in [(edges, next(of_pair)) for edges in pairs]
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
        scores = np.array([option.score for option in options])
        reached: dict[Paid, list[_Front]] = {}
        for paid, front in fronts.items():
            for after, steps in _steps(options, paid).items():
                chosen = np.array([index for index, _ in steps])
                step_costs = np.array([cost for _, cost in steps])
                reached.setdefault(after, []).append(_extended(front, chosen, step_costs, scores))
        fronts = {paid: _merged(parts, room) for paid, parts in reached.items()}
    return _merged([*fronts.values()], room)


def _extended(
    front: _Front,
    chosen: NDArray[np.int64],
    costs: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> _Front:
    """Return every choice of a front with every one of the next node's."""
    number = len(front.costs)
    before = np.repeat(np.arange(number), len(chosen))
    return _Front(
        np.add.outer(front.costs, costs).ravel(),
        np.add.outer(front.scores, scores[chosen]).ravel(),
        np.column_stack([front.options[before], np.tile(chosen, number)]),
    )


def _merged(parts: Sequence[_Front], room: float) -> _Front:
    """Return what no other choice of all parts beats in both."""
    costs = np.concatenate([part.costs for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    options = np.concatenate([part.options for part in parts])
    order = np.lexsort((-scores, costs))
    order = order[costs[order] <= room]
    best = np.maximum.accumulate(scores[order])
    kept = order[scores[order] > np.concatenate([[-np.inf], best[:-1]])]
    return _Front(costs[kept], scores[kept], options[kept])


def _draw(table: Sequence[Sequence[_Option]], picks: NDArray[np.int64]) -> CellDraw:
    chosen = [options[pick] for options, pick in zip(table, picks.tolist(), strict=True)]
    return CellDraw.of_ones(
        tuple(_flat(option.edges for option in chosen)),
        tuple(_flat(option.columns for option in chosen)),
        None,
    )


def _flat(pairs: Iterator[tuple[int, int]]) -> Iterator[int]:
    return itertools.chain.from_iterable(pairs)
