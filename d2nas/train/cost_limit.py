"""Limit on the expected cost of what is searched: a price on operations that is solved for (ours).

A search that minimizes loss + multiplier * cost has to guess the multiplier, and what it learns is
neither what an operation is worth nor what it costs, but a mixture of both: its most probable cell
costs anything. Here the logits learn worth alone. What is sampled (or weighs a mixture) is their
distribution with a price m on every operation,

    p(o on e)  proportional to  p(o) exp(-m c(o on e)),

of all distributions with that mean cost the one nearest to the learned one (in the Kullback-Leibler
divergence, given the edges); an edge is as much less probable as its operations are dearer,

    logit(e) + log sum over o of p(o) exp(-m c(o on e)).

The price is the least one at which the expected cost, which is exact, keeps the limit: 0 where the
learned distribution does. It depends on the logits alone, so that nothing has to be kept or tuned.
The cell is derived from the unpriced logits, as the one of the most worth within the limit
(``methods.within_budget``).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..nn.expected_cost import ExpectedCost
from ..nn.probability import operation_log_probabilities
from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES

TOLERANCE = 1e-6
"""Of the price, relative."""
HIGHEST = 60.0
"""What a price takes at most from a logit: the dearest operation is then as good as gone."""


class CostLimit:
    """Price that keeps the expected cost within a limit.

    ``edges``: whether edges have prices, too; not for methods that learn none.
    """

    def __init__(self, expected: ExpectedCost, limit: float, *, edges: bool) -> None:
        self.expected, self.limit, self.edges = expected, limit, edges
        self._cost = {cell: _padded(expected, cell) for cell in CELL_TYPES}
        dearest = max(float(cost_EO.max()) for cost_EO in self._cost.values())
        self._highest = HIGHEST / dearest if dearest else 0.0

    @torch.no_grad()
    def price(self, logits: ArchLogits) -> float:
        """Return the price, per unit of cost: the least that keeps the limit, or the highest one
        where the distribution keeps it at none.
        """
        from scipy.optimize import brentq

        def excess(price: float) -> float:
            with self.priced(logits, price):
                return float(self.expected(logits).log()) - math.log(self.limit)

        if self._highest == 0.0 or excess(0.0) <= 0.0:
            return 0.0
        if excess(self._highest) >= 0.0:
            return self._highest
        found = brentq(excess, 0.0, self._highest, rtol=TOLERANCE)
        return float(f"{found:.6g}")  # the last digits may depend on the machine

    @contextlib.contextmanager
    def priced(self, logits: ArchLogits, price: float) -> Iterator[None]:
        """Let the logits be those with a price, and afterwards again what they were."""
        if price == 0.0:
            yield
            return
        kept = [(parameter, parameter.detach().clone()) for parameter in logits.parameters()]
        with torch.no_grad():
            for cell, cost_EO in self._cost.items():
                log_p_EO = operation_log_probabilities(logits, cell)
                logits.ops(cell).sub_(price * cost_EO)
                if self.edges:
                    logits.edges(cell).add_((log_p_EO - price * cost_EO).logsumexp(dim=1))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)


def _padded(expected: ExpectedCost, cell_type: str) -> Tensor:
    """Return the costs of a cell type's operations as a table, (E, O); 0 where there is none."""
    costs = expected.costs
    rows, columns = costs.operations[cell_type], costs.space.num_columns(cell_type)
    return torch.tensor(
        [[*row, *[0.0] * (columns - len(row))] for row in rows], dtype=torch.float64
    )


def add_cost_gradient(
    logits: ArchLogits, learned: Sequence[nn.Parameter], expected: ExpectedCost, weight: float
) -> None:
    """Add the gradient of ``weight`` times the expected cost to those of the learned logits."""
    gradients = torch.autograd.grad(expected(logits), learned)
    for parameter, gradient in zip(learned, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(gradient, alpha=weight)
