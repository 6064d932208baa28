"""Random search: one genotype, uniform over the space, without any training.

Two different predecessors per node and one operation per edge, each with equal chance: what a
search has to beat.
"""

import torch
from torch import nn

from ..genotype import Genotype
from ..nn.sampling import ArchLogits, draw_noise
from ..spaces import CELL_TYPES, SearchSpace
from .base import Method
from .derivation import derive_genotype


class RandomSearch(Method):
    """Logits that are one draw of Gumbel noise: their largest ones are a uniform choice."""

    passes = (0, 0)

    def __init__(self, space: SearchSpace, generator: torch.Generator) -> None:
        self.supernet = nn.Module()
        self.logits = ArchLogits(space)
        with torch.no_grad():
            for cell_type in CELL_TYPES:
                noise = draw_noise(space.num_columns(cell_type), generator)
                self.logits.ops(cell_type).copy_(noise.ops)
                self.logits.edges(cell_type).copy_(noise.edges)

    def derive(self) -> Genotype:
        """Return the drawn genotype."""
        return derive_genotype(self.logits, self.logits.space)
