"""Limit on the expected cost of what is searched: corrections of the logits' updates (ours).

A search that minimizes loss + multiplier * cost has to guess the multiplier, or to adapt it from
step to step; Adam, which brings every gradient to one size, and a multiplier that lags behind make
the cost overshoot. Here the multiplier is solved for. With c(x) the expected cost at the logits x
and T the limit, an update from x to y is followed by the smallest correction s that leaves

    log c(y + s) - log c(x) <= -RATE / steps * log(c(x) / T),

to first order: where the cost is above the limit it falls geometrically, to a fraction of
exp(-RATE) of the excess within the search; where it is below, updates may use up the same part of
what is left; and on the limit all that remains of an update is what does not raise the cost, as the
Lagrangian's stationary point asks. In place of what this one update does to the cost stands a
running mean of what the last ones did: of updates that are mostly noise the limit would else stop
the half that goes up, and the cost would drift far below it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.expected_cost import ExpectedCost
from ..nn.sampling import ArchLogits

RATE = 10.0
"""How many times within a search the excess falls to 1/e of itself."""
WINDOWS = 50.0
"""Windows of the running mean in a search."""


class CostLimit(nn.Module):
    """Correction of updates of logits, and the one number that it keeps: a checkpoint's buffer.

    ``steps``: updates of the logits in the whole search. ``largest``: what a correction moves a
    logit by at most, on average over the logits (root mean square): an update of Adam's.
    """

    drift: Tensor
    """Running mean of what an update does to the logarithm of the cost."""

    def __init__(self, expected: ExpectedCost, limit: float, *, steps: int, largest: float) -> None:
        super().__init__()
        self.expected, self.limit = expected, limit
        self._rate = RATE / max(steps, RATE)
        self._share = min(1.0, WINDOWS / max(steps, 1))
        self._largest = largest
        self.register_buffer("drift", torch.zeros((), dtype=torch.float64))

    def logarithm(self, logits: ArchLogits) -> float:
        """Return the logarithm of the expected cost."""
        with torch.no_grad():
            return float(self.expected(logits).log())

    @torch.no_grad()
    def correct(self, logits: ArchLogits, learned: Sequence[nn.Parameter], before: float) -> None:
        """Correct an update that was just made. ``before``: ``logarithm`` before it; ``learned``:
        the parameters that may move.
        """
        with torch.enable_grad():
            after = self.expected(logits).log()
            gradients = torch.autograd.grad(after, learned)
        self.drift.lerp_(after.detach() - before, self._share)
        wanted = float(self.drift) + self._rate * (before - math.log(self.limit))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        if wanted <= 0.0 or norm == 0.0:
            return
        number = sum(gradient.numel() for gradient in gradients)
        length = min(wanted / norm, self._largest * math.sqrt(number))
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.sub_(gradient, alpha=length / norm)


def add_cost_gradient(
    logits: ArchLogits, learned: Sequence[nn.Parameter], expected: ExpectedCost, weight: float
) -> None:
    """Add the gradient of ``weight`` times the expected cost to those of the learned logits."""
    gradients = torch.autograd.grad(expected(logits), learned)
    for parameter, gradient in zip(learned, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(gradient, alpha=weight)
