"""Probabilities of sub-networks under architecture logits, and a temperature of these.

In logarithms and float64, as logits that lie far apart would make 0 / 0 of quotients.

Shape letters: E = 14 edges, O = operation columns, S = 8 sampled edges, K draws.
"""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..spaces import CELL_TYPES, EDGES, EDGES_PER_NODE, NODE_EDGES
from .sampling import ArchLogits, Draw

NODE_PAIRS = tuple(tuple(itertools.combinations(rows, EDGES_PER_NODE)) for rows in NODE_EDGES)
"""By node: the pairs of edges that may enter it, as rows of ``EDGES``, ascending."""
PAIRS = tuple(itertools.chain(*NODE_PAIRS))
"""The same, one node's after the other's."""

_NUMBER_OF = {pair: number for number, pair in enumerate(PAIRS)}
_FIRST, _SECOND = (torch.tensor([pair[which] for pair in PAIRS]) for which in (0, 1))
_OTHERS_EE = torch.tensor(
    [
        [one != edge and one in rows for one in range(len(EDGES))]
        for rows in NODE_EDGES
        for edge in rows
    ]
)
"""Row e: the other edges into the node that edge e enters."""
TEMPERATURES = (1e-4, 1e4)
"""Those that ``temperature_of`` looks among."""
_STEPS = 60


def pair_log_probabilities(edges_E: Tensor) -> Tensor:
    """Return the logarithms of the probabilities of ``PAIRS``, float64: of each node's they sum
    to 1.

    Two edges i and j enter a node where they have the two largest perturbed logits: drawn without
    replacement, in either order (Plackett-Luce),

        p(i, j) = p_i * p_j / (1 - p_i) + p_j * p_i / (1 - p_j)
    """
    edges_E = edges_E.double()
    log_p_E = torch.cat([edges_E[rows.start : rows.stop].log_softmax(dim=0) for rows in NODE_EDGES])
    # log(1 - p_i) as the logarithm of what the others sum to: exact where p_i is nearly 1.
    rest_E = log_p_E.expand(len(EDGES), -1).masked_fill(~_OTHERS_EE, -torch.inf).logsumexp(dim=1)
    orders = torch.stack([-rest_E[_FIRST], -rest_E[_SECOND]])
    return log_p_E[_FIRST] + log_p_E[_SECOND] + orders.logsumexp(dim=0)


def operation_log_probabilities(logits: ArchLogits, cell_type: str) -> Tensor:
    """Return the logarithms of the operations' probabilities on each edge, (E, O), float64."""
    ops_EO, mask_EO = logits.ops(cell_type), logits.choosable(cell_type)
    return ops_EO.double().masked_fill(~mask_EO, -torch.inf).log_softmax(dim=1)


def edge_probabilities(edges_E: Tensor) -> Tensor:
    """Return each edge's probability to be one of the two that enter its node, (E,), float64."""
    pairs = pair_log_probabilities(edges_E).exp()
    return (
        torch.zeros_like(edges_E, dtype=torch.float64)
        .index_add(0, _FIRST, pairs)
        .index_add(0, _SECOND, pairs)
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
    pairs_KN = [
        [
            _NUMBER_OF[cell.edges[first : first + EDGES_PER_NODE]]
            for first in range(0, len(cell.edges), EDGES_PER_NODE)
        ]
        for cell in cells
    ]
    log_p = pair_log_probabilities(logits.edges(cell_type))
    return total_K + log_p[torch.tensor(pairs_KN)].sum(dim=1)


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
