"""DARTS- (Chu et al., arXiv 2009.01027): DARTS with one more skip connection on every edge.

An auxiliary skip is added to the mixture of every edge, outside of its softmax, weighed by beta
(Eq. 5), which falls linearly to 0 by epoch (section 3.3). What a skip gives the training, a way for
the gradient, then no longer comes from the candidate of that name, whose logit is left to say how
good it is as an operation.

As the published code (Meituan-AutoML/DARTS-): beta is 1 in the first epoch and 1 / epochs in the
last; an auxiliary skip of stride 2 is a factorized reduction with weights of its own; derivation
ignores the auxiliary skips. Of first order, S0 with ``none``.
"""

import torch

from ..nn.mixed_supernet import MixtureWeights, mixture_weights
from ..spaces import CELL_TYPES
from .base import register_method
from .darts import Darts


def skip_weight(epoch: int, epochs: int) -> float:
    """Return beta in an epoch, counted from 0."""
    return (epochs - epoch) / epochs


@register_method("darts-minus")
class DartsMinus(Darts):
    """DARTS- (arXiv 2009.01027): an auxiliary skip on every edge, whose weight falls to 0."""

    extra = ("skip_connect",)

    def mixture(self, epoch: int = 0, epochs: int = 1) -> MixtureWeights:
        """Return the softmax of the logits, and beta in the column after each edge's last one."""
        found = {}
        for cell in CELL_TYPES:
            ops_EO, _ = mixture_weights(self.logits, cell)
            exists_EO = self.logits.choosable(cell, none_too=True)
            skip_EO = torch.zeros_like(ops_EO[:, :1]).repeat(1, ops_EO.shape[1] + 1)
            skip_EO.scatter_(1, exists_EO.sum(1, keepdim=True), skip_weight(epoch, epochs))
            found[cell] = (torch.nn.functional.pad(ops_EO, (0, 1)) + skip_EO, None)
        return found
