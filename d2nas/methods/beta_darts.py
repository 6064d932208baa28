"""beta-DARTS (Ye et al., arXiv 2203.01665): DARTS with a penalty on large operation logits.

To the validation loss of DARTS's first order comes the mean over the edges of the logarithm of the
sum of the exponentials of an edge's logits (Eq. 12), times a factor that rises linearly by epoch
from 0 to 50 (section 3.4). Its gradient is softmax / edges: the operation in front is pulled down
most, which keeps the mixture's weights from drifting apart.

The published code (Sunshine-Ye/Beta-DARTS) has this for NAS-Bench-201, with one matrix of logits
and 100 epochs; its script for this space does not run. Ours: the mean is over the edges of both
cell types together, and the factor is 50 times the epoch over the number of epochs, whatever that
is. S0 is searched without ``none``, as in that code.
"""

import torch
from torch import Tensor

from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES
from .base import Batch, Measured, StepContext, register_method
from .darts import Darts

LARGEST_FACTOR = 50.0
"""The penalty's factor at the end of the last epoch."""


def beta_penalty(logits: ArchLogits) -> Tensor:
    """Return the mean over all edges of both cell types of the log-sum-exp of their logits, a
    scalar tensor; columns past an edge's last candidate left out.
    """
    rows = [
        logits.ops(cell)
        .masked_fill(~logits.choosable(cell, none_too=True), -torch.inf)
        .logsumexp(dim=1)
        for cell in CELL_TYPES
    ]
    return torch.cat(rows).mean()


@register_method("beta-darts")
class BetaDarts(Darts):
    """beta-DARTS (arXiv 2203.01665): DARTS with a growing penalty on the logits."""

    searches_none = False

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the validation loss and the penalty; what is measured is the former."""
        measured = super().architecture_gradients(batch, context)
        factor = LARGEST_FACTOR * context.epoch / context.epochs
        if factor:
            torch.autograd.backward(factor * beta_penalty(self.logits))
        return measured
