"""GDAS (Dong and Yang, arXiv 1910.04465): one sampled operation on every edge.

All 14 edges of a cell are computed, one sub-network per half, weights first, gradients through
the whole network. ``none`` is a candidate. Two things are not as in the published code, which the
comparison does not need: the network ends like DARTS's, and the genotype is derived by DARTS's
rule, because the published one can put both edges of a node on the same predecessor.
"""

import torch

from ..genotype import Genotype
from ..nn.sampling import Draw, sample_operations
from ..spaces import SearchSpace
from .base import Sizes
from .derivation import derive_darts
from .single_path import SinglePath


class Gdas(SinglePath):
    """GDAS with the operations, and so the kernels, of D2NAS."""

    weights_first = True
    none_too = True
    learns_edges = False

    def __init__(
        self, space: SearchSpace, sizes: Sizes, generator: torch.Generator, *, recompute: str
    ) -> None:
        super().__init__(
            space,
            sizes,
            generator,
            draws=1,
            branch_length=sizes.num_cells,
            recompute=recompute,
        )

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return all edges with one operation each."""
        return sample_operations(self.logits, temperature, generator)

    def derive(self) -> Genotype:
        """Return the genotype by DARTS's rule."""
        return derive_darts(self.logits, self.logits.space)
