"""FairDARTS (Chu et al., arXiv 1911.12126): operations that do not compete, weighed by sigmoids.

An operation's weight is the sigmoid of its logit, whatever the others' are (Eq. 4), and a term
drives each weight to 0 or 1: minus ten times the mean over all operations of both cells of
(weight - 1/2)^2 (Eq. 6). Logits start at 0. S0 without ``none``.

As the published code (xiaomi-automl/FairDARTS), with its recipe: batches of 128, learning rates of
0.005 and 3e-3, Adam's first beta 0.9. There the term is added in both halves; in the weight half it
moves nothing and is left out. The published cells keep of the two strongest edges of a node only
those whose best weight is 0.85 or more, so that nodes with one input or none occur; a genotype here
has two edges per node, and the code's other rule, of the two strongest edges, is followed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..genotype import Genotype
from ..nn.mixed_supernet import MixtureWeights
from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES, SearchSpace
from .base import Batch, Measured, Sizes, StepContext, register_method
from .darts import Darts
from .derivation import derive_strongest

ZERO_ONE_FACTOR = 10.0
"""The weight of the term in the loss."""


def zero_one_term(logits: ArchLogits) -> Tensor:
    """Return minus the mean squared distance of the weights from a half, a scalar tensor; columns
    past an edge's last candidate left out.
    """
    weights = [
        logits.ops(cell)[logits.choosable(cell, none_too=True)].sigmoid() for cell in CELL_TYPES
    ]
    return -(torch.cat(weights) - 0.5).square().mean()


@register_method("fair-darts")
class FairDarts(Darts):
    """FairDARTS (arXiv 1911.12126): sigmoid weights, driven to 0 or 1."""

    keeps_limits = False  # its sigmoids are no distribution
    searches_none = False
    recipe: Mapping[str, Any] = {
        "batch_size": 128,
        "weight_lr": 0.005,
        "arch_lr": 3e-3,
        "arch_beta1": 0.9,
    }

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        for cell in CELL_TYPES:
            torch.nn.init.zeros_(self.logits.ops(cell))

    def mixture(self, epoch: int = 0, epochs: int = 1) -> MixtureWeights:
        """Return the sigmoids of the logits, 0 in columns without a candidate."""
        return {
            cell: (
                self.logits.ops(cell).sigmoid() * self.logits.choosable(cell, none_too=True),
                None,
            )
            for cell in CELL_TYPES
        }

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the validation loss and the term; what is measured is the former."""
        measured = super().architecture_gradients(batch, context)
        torch.autograd.backward(ZERO_ONE_FACTOR * zero_one_term(self.logits))
        return measured

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype of the two strongest edges of each node."""
        return derive_strongest(logits, logits.space)
