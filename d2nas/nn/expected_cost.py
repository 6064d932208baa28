"""Expected cost of the network that architecture logits stand for, exact and differentiable.

Nothing is sampled: the two edges that enter a node are drawn by Plackett-Luce, whose marginals are
a sum over pairs, and operations are independent given the edges. Edge logits that a method does
not learn are all 0: every pair is as probable as another.

Shape letters: E edges, O = operation columns, G = merged operations on a predecessor, M places of
such a group at most.
"""

import math

import torch
from torch import Tensor

from ..costs import CellCosts
from ..spaces import CELL_TYPES
from .probability import edge_probabilities, operation_log_probabilities
from .sampling import ArchLogits


class ExpectedCost:
    """Mean cost of the cells' distribution that logits stand for; what it reads of the costs is
    laid out once.
    """

    def __init__(self, costs: CellCosts) -> None:
        self.costs = costs
        self._cells = {cell: _CellTables(costs, cell) for cell in CELL_TYPES}

    def __call__(self, logits: ArchLogits) -> Tensor:
        """Return the expected cost, 0-dimensional, float64, with a graph.

        By the probabilities q of edges and p of operations without ``none``, which no network has:
        the sum of q p c over edges and operations. A merged operation is paid for once on a
        predecessor where any of the edges from it has it, and these enter different nodes, which
        are independent:

            (1 - prod over the edges of (1 - q p)) c
        """
        total = torch.tensor(self.costs.base, dtype=torch.float64)
        for cell_type, tables in self._cells.items():
            p_EO = operation_log_probabilities(logits, cell_type).exp()
            joint_EO = edge_probabilities(logits.edges(cell_type))[:, None] * p_EO
            total = total + (joint_EO * tables.alone_EO).sum()
            # Behind the last place stands one that is never paid for, for groups that are smaller.
            joint = torch.cat([joint_EO.flatten(), joint_EO.new_zeros(1)])
            paid_G = 1.0 - (1.0 - joint[tables.places_GM]).prod(dim=1)
            total = total + paid_G @ tables.once_G
        return total


class _CellTables:
    """Costs of a cell type: of what is paid for on each edge; and of each group of places that are
    paid for once, places as positions in (E, O).
    """

    def __init__(self, costs: CellCosts, cell_type: str) -> None:
        candidates = costs.space.candidates(cell_type)
        columns = costs.space.num_columns(cell_type)
        shape = len(candidates), columns
        self.alone_EO = torch.zeros(shape, dtype=torch.float64)
        groups: dict[tuple[str, int], list[int]] = {}
        once = dict[tuple[str, int], float]()
        for edge, names in enumerate(candidates):
            for column, name in enumerate(names):
                cost = costs.operations[cell_type][edge][column]
                if name in costs.merged:
                    key = name, costs.space.edges[edge][0]
                    groups.setdefault(key, []).append(edge * columns + column)
                    once[key] = cost
                else:
                    self.alone_EO[edge, column] = cost
        largest, nowhere = max(map(len, groups.values()), default=0), math.prod(shape)
        rows = [[*places, *[nowhere] * (largest - len(places))] for places in groups.values()]
        self.places_GM = torch.tensor(rows, dtype=torch.long).reshape(len(groups), largest)
        self.once_G = torch.tensor([*once.values()], dtype=torch.float64)
