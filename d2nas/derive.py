"""From architecture logits to the genotype: the most probable sub-network, exactly (ROME 3.3)."""

import torch

from .errors import ConfigError, NonFiniteError
from .genotype import Genotype, Pair
from .sampling import ArchLogits, choosable
from .spaces import EDGES, EDGES_PER_NODE, NODE_EDGES, SearchSpace


def derive_genotype(logits: ArchLogits, space: SearchSpace) -> Genotype:
    """Keep the two most probable edges of each node and the best operation on each of them.

    Edges and operations are independent, so this is the argmax of the whole distribution. Ties go
    to the smaller predecessor and to the smaller column. Pairs of a node are ordered by
    predecessor, so that equal networks have equal digests. Raises ``ConfigError`` for logits of
    another space, ``NonFiniteError`` for NaN or infinity.
    """
    if logits.space != space:
        raise ConfigError(f"logits of space {logits.space.name} cannot be derived in {space.name}")
    return Genotype(normal=_derive(logits, "normal"), reduce=_derive(logits, "reduce"))


def _derive(logits: ArchLogits, cell_type: str) -> tuple[Pair, ...]:
    ops_EO, edges_E = logits.ops(cell_type).detach(), logits.edges(cell_type).detach()
    for name, tensor in ((f"{cell_type}_ops", ops_EO), (f"{cell_type}_edges", edges_E)):
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{name} holds a value that is not finite")
    # Compared as logits: the softmax could round two different ones to the same number.
    mask_EO = choosable(logits.space, cell_type)
    columns = ops_EO.masked_fill(~mask_EO, -torch.inf).tolist()
    strength = edges_E.tolist()
    pairs: list[Pair] = []
    for rows in NODE_EDGES:
        kept = sorted(rows, key=lambda row: (-strength[row], row))[:EDGES_PER_NODE]
        for row in sorted(kept):
            best = max(range(len(columns[row])), key=lambda column: columns[row][column])
            pairs.append((logits.space.candidates(cell_type)[row][best], EDGES[row][0]))
    return tuple(pairs)
