"""Random search: one genotype, uniform over the space, without any training.

Two different predecessors per node and one operation per edge, each with equal chance: what a
search has to beat. Every study has some, and a finished study is shown without loading torch, so
torch is imported by the search alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import QUANTITIES, SearchConfig
from ..genotype import Genotype
from ..spaces import CELL_TYPES, SearchSpace
from .base import Method, Sizes, register_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..nn.sampling import ArchLogits


_READ = ("method", "space", "device", *(f"max_{quantity}" for quantity in QUANTITIES))


@register_method("random")
class RandomSearch(Method):
    """One uniform genotype, nothing trained: logits that are one draw of Gumbel noise.

    Within a limit it is the cell of the largest noise, which is nearly uniform among those that
    keep it.
    """

    passes = (0, 0)
    keeps_limits = True
    unread = tuple(field for field in SearchConfig.model_fields if field not in _READ)

    def __init__(self, space: SearchSpace, generator: torch.Generator) -> None:
        import torch

        from ..nn.sampling import ArchLogits, draw_noise

        self.supernet = torch.nn.Module()
        self.logits = ArchLogits(space)
        with torch.no_grad():
            for cell_type in CELL_TYPES:
                noise = draw_noise(self.logits.ops(cell_type), generator)
                self.logits.ops(cell_type).copy_(noise.ops)
                self.logits.edges(cell_type).copy_(noise.edges)

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with its draw made."""
        return cls(space, generator)

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the drawn genotype: the largest logits are a uniform choice."""
        from .derivation import derive_genotype

        return derive_genotype(logits, logits.space)

    @classmethod
    def choice_scores(cls, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
        """Return the logarithms of probabilities by the noise."""
        from .derivation import probability_scores

        return probability_scores(logits, cell_type)
