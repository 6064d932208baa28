"""Probabilities of sub-networks under architecture logits, and a temperature of these.

In logarithms and float64, as logits that lie far apart would make 0 / 0 of quotients.

Shape letters: E edges, O = operation columns, P = pairs of edges, S = sampled edges, K draws.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..spaces import CELL_TYPES, EDGES_PER_NODE, NODE_COUNTS, edges_of, node_edges
from .sampling import ArchLogits, Draw, same_node

TEMPERATURES = (1e-4, 1e4)
"""Those that ``temperature_of`` looks among."""
_STEPS = 60


@cache
def node_pairs(num_edges: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return, by node, the pairs of edges that may enter it, as rows of the logits, ascending."""
    return tuple(tuple(itertools.combinations(rows, 2)) for rows in node_edges(num_edges))


@cache
def _pairs(num_edges: int) -> tuple[tuple[int, int], ...]:
    """The same, one node's after the other's."""
    return tuple(itertools.chain(*node_pairs(num_edges)))


# By number of edges. Made with the module, as ``same_node`` is.
_PAIR_ROWS = {
    num_edges: torch.tensor(_pairs(num_edges)).T
    for num_edges in (len(edges_of(nodes)) for nodes in NODE_COUNTS)
}


def pair_rows(num_edges: int) -> Tensor:
    """Return the first and the second edge of each of ``node_pairs``, (2, P)."""
    return _PAIR_ROWS[num_edges]


def pair_log_probabilities(edges_E: Tensor) -> Tensor:
    """Return the logarithms of the probabilities of ``node_pairs``, one node's after the other's,
    (P,), float64: of each node's they sum to 1.

    Two edges i and j enter a node where they have the two largest perturbed logits: drawn without
    replacement, in either order (Plackett-Luce),

        p(i, j) = p_i * p_j / (1 - p_i) + p_j * p_i / (1 - p_j)
    """
    edges_E = edges_E.double()
    num_edges = len(edges_E)
    by_node = node_edges(num_edges)
    log_p_E = torch.cat([edges_E[rows.start : rows.stop].log_softmax(dim=0) for rows in by_node])
    # log(1 - p_i) as the logarithm of what the others sum to: exact where p_i is nearly 1.
    others_EE = (same_node(num_edges) - torch.eye(num_edges)).bool()
    rest_E = log_p_E.expand(num_edges, -1).masked_fill(~others_EE, -torch.inf).logsumexp(dim=1)
    first_P, second_P = pair_rows(num_edges)
    orders_2P = torch.stack([-rest_E[first_P], -rest_E[second_P]])
    return log_p_E[first_P] + log_p_E[second_P] + orders_2P.logsumexp(dim=0)


def operation_log_probabilities(logits: ArchLogits, cell_type: str) -> Tensor:
    """Return the logarithms of the operations' probabilities on each edge, (E, O), float64."""
    ops_EO, mask_EO = logits.ops(cell_type), logits.choosable(cell_type)
    return ops_EO.double().masked_fill(~mask_EO, -torch.inf).log_softmax(dim=1)


def edge_probabilities(edges_E: Tensor) -> Tensor:
    """Return each edge's probability to be one of the two that enter its node, (E,), float64."""
    pairs_P = pair_log_probabilities(edges_E).exp()
    first_P, second_P = pair_rows(len(edges_E))
    return (
        torch.zeros_like(edges_E, dtype=torch.float64)
        .index_add(0, first_P, pairs_P)
        .index_add(0, second_P, pairs_P)
    )


def log_probabilities(
    logits: ArchLogits, draws: Sequence[Draw], *, cell_type: str, edges: bool = True
) -> Tensor:
    """Return the logarithm of the probability of each draw's cell, (K,), float64, with a graph.

    That is of the *set* of two edges of each node, and of the operations on those: what stands on
    edges that were not drawn changes nothing. Without ``edges``: of the operations, given them.
    """
    cells = [draw.cell(cell_type) for draw in draws]
    rows_KS = torch.tensor([cell.edges for cell in cells])
    columns_KS = torch.tensor([cell.operations for cell in cells])
    log_p_EO = operation_log_probabilities(logits, cell_type)
    total_K = log_p_EO[rows_KS, columns_KS].sum(dim=1)
    if not edges:
        return total_K
    log_p_P = pair_log_probabilities(logits.edges(cell_type))
    number_of = {pair: number for number, pair in enumerate(_pairs(len(log_p_EO)))}
    pairs_KN = [
        [
            number_of[cell.edges[first], cell.edges[first + 1]]
            for first in range(0, len(cell.edges), EDGES_PER_NODE)
        ]
        for cell in cells
    ]
    return total_K + log_p_P[torch.tensor(pairs_KN)].sum(dim=1)


@torch.no_grad()
def log_probability(logits: ArchLogits, draw: Draw) -> float:
    """Return the logarithm of the probability that a sample is this sub-network."""
    return sum(float(log_probabilities(logits, [draw], cell_type=cell)) for cell in CELL_TYPES)


@torch.no_grad()
def expected_share(logits: ArchLogits, draw: Draw, temperature: float = 1.0) -> float:
    """Return the part of a sub-network's edges, with their operations, that a sample of the logits
    divided by ``temperature`` is expected to have, too.
    """
    logits = tempered(logits, temperature)
    shares = []
    for cell_type in CELL_TYPES:
        cell = draw.cell(cell_type)
        drawn_S = edge_probabilities(logits.edges(cell_type))[[*cell.edges]]
        log_p_EO = operation_log_probabilities(logits, cell_type)
        shares.append(drawn_S * log_p_EO[[*cell.edges], [*cell.operations]].exp())
    return float(torch.cat(shares).mean())


def temperature_of(logits: ArchLogits, draw: Draw, share: float) -> float:
    """Return the temperature at which samples are expected to have this share of the most probable
    sub-network's edges; an end of ``TEMPERATURES`` where none has it. To three digits: the last
    ones may depend on the machine.
    """
    low, high = map(math.log, TEMPERATURES)
    for _ in range(_STEPS):  # the share falls as the temperature rises
        middle = (low + high) / 2
        if expected_share(logits, draw, math.exp(middle)) > share:
            low = middle
        else:
            high = middle
    return float(f"{math.exp(low):.3g}")


def tempered(logits: ArchLogits, temperature: float) -> ArchLogits:
    """Return a copy of the logits divided by ``temperature``: above 1 samples differ more."""
    found = copy.deepcopy(logits)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.div_(temperature)
    return found
