"""Probabilities of sub-networks under architecture logits, and a temperature of these.

Two edges of a node are drawn in turn without replacement, so i and then j with p_i p_j / (1 - p_i),
where p is the softmax over the node's edges; operations are drawn per edge. In logarithms and
float64, as logits that lie far apart would make 0 / 0 of that.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..spaces import CELL_TYPES, EDGES_PER_NODE, NODE_EDGES
from .sampling import ArchLogits, Draw

TEMPERATURES = (1e-4, 1e4)
"""Those that ``temperature_of`` looks among."""
_STEPS = 60


def log_probability(logits: ArchLogits, draw: Draw) -> float:
    """Return the logarithm of the probability that a sample is this sub-network."""
    return sum(
        float(torch.logaddexp(in_turn_KK[i, j], in_turn_KK[j, i])) + sum(operations)
        for in_turn_KK, (i, j), operations in _nodes(logits, draw, 1.0)
    )


def expected_share(logits: ArchLogits, draw: Draw, temperature: float = 1.0) -> float:
    """Return the part of a sub-network's edges, with their operations, that a sample of the logits
    divided by ``temperature`` is expected to have, too.
    """
    shares = list[float]()
    for in_turn_KK, own, operations in _nodes(logits, draw, temperature):
        pairs_KK = in_turn_KK.exp()
        drawn_K = pairs_KK.sum(dim=1) + pairs_KK.sum(dim=0)  # first, or second
        shares += [
            float(drawn_K[edge]) * math.exp(operation)
            for edge, operation in zip(own, operations, strict=True)
        ]
    return sum(shares) / len(shares)


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


def _nodes(
    logits: ArchLogits, draw: Draw, temperature: float
) -> Iterator[tuple[Tensor, list[int], list[float]]]:
    """Yield for each node of both cells the logarithm of the probability that row i of its edges is
    drawn first and column j second (K, K), and of ``draw``'s two edges the places among these and
    the logarithms of their operations' probabilities.
    """
    for cell_type in CELL_TYPES:
        cell = draw.cell(cell_type)
        edges_E = logits.edges(cell_type).detach().double() / temperature
        ops_EO = logits.ops(cell_type).detach().double() / temperature
        ops_EO = ops_EO.masked_fill(~logits.choosable(cell_type), -torch.inf).log_softmax(dim=1)
        operations = ops_EO[list(cell.edges), list(cell.operations)].tolist()
        for number, rows in enumerate(NODE_EDGES):
            own = slice(EDGES_PER_NODE * number, EDGES_PER_NODE * (number + 1))
            edges_K = edges_E[rows.start : rows.stop]
            itself = torch.eye(len(edges_K), dtype=torch.bool)
            left_KK = edges_K.repeat(len(edges_K), 1).masked_fill(itself, -torch.inf)
            in_turn_KK = edges_K.log_softmax(dim=0)[:, None] + left_KK.log_softmax(dim=1)
            yield in_turn_KK, [edge - rows.start for edge in cell.edges[own]], operations[own]
