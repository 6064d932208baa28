"""From architecture logits to the genotype, by D2NAS's rule or DARTS's and PC-DARTS's; and back."""

import math

import torch
from torch import Tensor

from ..errors import ConfigError, NonFiniteError
from ..genotype import Genotype, Pair, places_of
from ..nn.probability import operation_log_probabilities, pair_log_probabilities, pair_rows
from ..nn.sampling import ArchLogits, CellDraw, Draw
from ..spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace, node_edges

_OPERATION_AHEAD, _EDGE_AHEAD = 10.0, 100.0
"""Logits of what a written genotype has; all others are 0. An edge's says more than any difference
between operations."""


def derive_genotype(logits: ArchLogits, space: SearchSpace) -> Genotype:
    """Keep the two most probable edges of each node and the best operation on each of them.

    That is the most probable draw of edges and of an operation on *every* edge, all independent
    (ROME, arXiv 2011.11233, section 3.3); where an edge that is left out is surer of its operation
    than one that is kept, another sub-network may be more probable. Ties go to the smaller
    predecessor and to the smaller column. Pairs of a node are ordered by predecessor, so that
    equal networks have equal digests. Raises ``ConfigError`` for logits of another space,
    ``NonFiniteError`` for NaN or infinity.
    """
    _check(logits, space)
    return Genotype(normal=_derive(logits, "normal"), reduce=_derive(logits, "reduce"))


@torch.no_grad()
def probability_scores(logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the probabilities of each pair of edges that enters a node, (P,),
    and of the operations on each edge, (E, O): their sum is a sub-network's.
    """
    return (
        pair_log_probabilities(logits.edges(cell_type)),
        operation_log_probabilities(logits, cell_type),
    )


@torch.no_grad()
def darts_scores(logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the weights that ``derive_darts`` compares, in the same form: of a
    pair those of both edges, which are chosen one by one.
    """
    mask_EO = logits.choosable(cell_type, none_too=True)
    ops_EO = logits.ops(cell_type).double().masked_fill(~mask_EO, -torch.inf).log_softmax(dim=1)
    edges_E = logits.edges(cell_type).double()
    first_P, second_P = pair_rows(len(edges_E))
    ops_EO = ops_EO.masked_fill(~logits.choosable(cell_type), -torch.inf)
    return edges_E[first_P] + edges_E[second_P], ops_EO


def derive_darts(logits: ArchLogits, space: SearchSpace) -> Genotype:
    """Keep the two edges of each node whose best operation weighs most, and that operation.

    The rule of DARTS (arXiv 1806.09055, section 2.4) and, with edge logits, of PC-DARTS (arXiv
    1907.05737, section 3): a weight is the softmax over the edge's operations times the softmax
    over the node's edges. ``none`` takes part in the first, so it lowers an edge's rank, but is
    never chosen. Edge logits that are all equal leave DARTS's rule. Ties, order of the pairs and
    errors are those of ``derive_genotype``.
    """
    _check(logits, space)
    return Genotype(normal=_derive_darts(logits, "normal"), reduce=_derive_darts(logits, "reduce"))


def genotype_of(draw: Draw, space: SearchSpace) -> Genotype:
    """Return the genotype of a sampled sub-network."""

    def pairs(cell_type: str) -> tuple[tuple[str, int], ...]:
        cell, candidates = draw.cell(cell_type), space.candidates(cell_type)
        return tuple(
            (candidates[edge][column], space.edges[edge][0])
            for edge, column in zip(cell.edges, cell.operations, strict=True)
        )

    return Genotype(normal=pairs("normal"), reduce=pairs("reduce"))


def draw_of(genotype: Genotype, space: SearchSpace) -> Draw:
    """Return the sub-network that a genotype is. Raises ``ConfigError`` outside of the space."""

    def cell(cell_type: str) -> CellDraw:
        edges, columns = zip(*sorted(places_of(genotype, space, cell_type)), strict=True)
        return CellDraw.of_ones(edges, columns, None)

    return Draw(cell("normal"), cell("reduce"))


@torch.no_grad()
def write_genotype(logits: ArchLogits, genotype: Genotype) -> None:
    """Set logits so that both rules derive ``genotype`` from them: for methods that find a cell in
    another way.

    Edge logits are set, too, whether or not the method learns them. Raises ``ConfigError`` for a
    genotype outside of the logits' space; nothing is changed then.
    """
    places = {cell: places_of(genotype, logits.space, cell) for cell in CELL_TYPES}
    for cell, found in places.items():
        logits.ops(cell).zero_()
        logits.edges(cell).zero_()
        for row, column in found:
            logits.ops(cell)[row, column] = _OPERATION_AHEAD
            logits.edges(cell)[row] = _EDGE_AHEAD


def derive_strongest(logits: ArchLogits, space: SearchSpace) -> Genotype:
    """Keep the two edges of each node whose best operation has the largest logit, and that
    operation; ``none`` takes no part.

    For methods whose operations do not compete with each other (FairDARTS: sigmoids). Ties, order
    of the pairs and errors are those of ``derive_genotype``.
    """
    _check(logits, space)
    cells = {}
    for cell in CELL_TYPES:
        values_EO = logits.ops(cell).detach().masked_fill(~logits.choosable(cell), -torch.inf)
        rows = values_EO.tolist()
        best = [row.index(max(row)) for row in rows]
        cells[cell] = _pairs(logits, cell, [max(row) for row in rows], best)
    return Genotype(normal=cells["normal"], reduce=cells["reduce"])


def _check(logits: ArchLogits, space: SearchSpace) -> None:
    if logits.space != space:
        raise ConfigError(f"logits of space {logits.space.name} cannot be derived in {space.name}")
    for name, tensor in logits.named_parameters():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{name} holds a value that is not finite")


def _derive(logits: ArchLogits, cell_type: str) -> tuple[Pair, ...]:
    # Compared as logits: the softmax could round two different ones to the same number.
    mask_EO = logits.choosable(cell_type)
    columns = logits.ops(cell_type).detach().masked_fill(~mask_EO, -torch.inf).tolist()
    best = [row.index(max(row)) for row in columns]
    return _pairs(logits, cell_type, logits.edges(cell_type).tolist(), best)


def _derive_darts(logits: ArchLogits, cell_type: str) -> tuple[Pair, ...]:
    # Logarithms of the weights, without what a node's edges share: small weights stay apart. The
    # sum is exact (fsum), so that edges with the same logits in another order do tie.
    strength, best = [], []
    for operations, row, edge in zip(
        logits.space.candidates(cell_type),
        logits.ops(cell_type).tolist(),
        logits.edges(cell_type).tolist(),
        strict=True,
    ):
        values = row[: len(operations)]
        allowed = [column for column, name in enumerate(operations) if name != "none"]
        chosen = max(allowed, key=values.__getitem__)
        top = max(values)
        total = math.fsum(math.exp(value - top) for value in values)
        strength.append(values[chosen] - top - math.log(total) + edge)
        best.append(chosen)
    return _pairs(logits, cell_type, strength, best)


def _pairs(
    logits: ArchLogits, cell_type: str, strength: list[float], best: list[int]
) -> tuple[Pair, ...]:
    """Keep the strongest edges of each node, each with its best column."""
    candidates = logits.space.candidates(cell_type)
    return tuple(
        (candidates[row][best[row]], row - rows.start)
        for rows in node_edges(len(best))
        for row in sorted(sorted(rows, key=lambda row: (-strength[row], row))[:EDGES_PER_NODE])
    )
